"""Reader of a user's table, a CSV or a DataFrame: image paths, and one label or several findings per image."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.findings import FINDING_PREFIX, list_findings
from fastcxr.data.patients import PATIENT_COLUMN_NAMES
from fastcxr.data.readers.finding_columns import (
    MIN_COLUMNS,
    find_indicator_columns,
    find_written_columns,
    has_only_indicators,
    parse_indicator_columns,
    parse_written_columns,
    reject_two_readings,
)
from fastcxr.data.readers.folders import SPLIT_ALIASES, reject_non_utf8_names
from fastcxr.data.readers.label_cells import parse_label_cells
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.table_columns import find_role_columns, has_role, list_chosen_findings
from fastcxr.data.readers.table_files import find_table_files
from fastcxr.data.readers.table_splits import find_path_splits, find_split_column
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import (
    BLANK_VALUES,
    MISSING_VALUES,
    TEXT_DTYPE,
    find_column,
    format_line_numbers,
    format_names,
    is_blank,
    is_table_name,
    read_header,
    read_table,
    suggest_name,
    to_text,
)

log = logging.getLogger("fastcxr")

SCHEMA_COLUMNS = ("path", "label", "split", "file")  # without blank cells, or with their own
RESERVED_COLUMNS = {"file", "predicted", "error", "ood_score", "in_distribution", "patient_origin", "split_origin"}
FLAG_COLUMNS = ("is_test", "is_valid")  # the second is that of fastai's data blocks
FLAGS = {"true": "1", "1": "1", "1.0": "1", "false": "0", "0": "0", "0.0": "0"}
MAX_LISTED_COLUMNS = 8  # in an error
DEFAULT_OPTIONS = ReaderOptions()


def read_label_table(path: str | Path, options: ReaderOptions = DEFAULT_OPTIONS) -> pd.DataFrame:
    """Return path, label, split and file, patient, sex, age, view and source if known, and all other columns.

    A table with several labels per image has a finding column for each (see fastcxr.data.findings).
    """
    return make_label_rows(read_table(path), Path(path), options)


def is_label_table(path: str | Path) -> bool:
    """Return whether a file is a table with a path column, and a label column or a column per finding."""
    return is_table_name(path) and Path(path).is_file() and has_label_columns(path)


def has_label_columns(path: str | Path) -> bool:
    """Return whether a table has a path column, and a label column or a column per finding."""
    if not has_role(header := read_header(path), "path"):
        return False
    if has_role(header, "label"):
        return True
    try:
        return bool(find_indicator_columns(read_table(path)))
    except (DataError, InputMissingError):
        return False


def make_label_rows(table: pd.DataFrame, path: Path, options: ReaderOptions = DEFAULT_OPTIONS) -> pd.DataFrame:
    """Return the rows of `read_label_table` for a table of text that was read from `path`."""
    columns = find_role_columns(table.columns, path, options.columns)
    _require_column(table, columns, "path", path)
    if table.empty:
        raise InputMissingError("0 images: the table has no rows", "Add one row per image", path=path, code="E002")
    if "split" not in columns and not _find_flags(table):
        columns |= find_split_column(table, columns.values(), path)
    labels, replaced = _read_labels(table, columns, path, options)
    table = _rename_roles(table.drop(columns=replaced), columns).assign(**{str(name): labels[name] for name in labels})
    reject_rows(is_blank(table["path"]), "have no path", "Fill in every path, or remove the rows", path)
    table = table.assign(split=_parse_splits(table, path))
    table = assign_files(table, find_table_files(table["path"], path.absolute().parent), path)
    extra_columns = [name for name in table.columns if name not in SCHEMA_COLUMNS and name not in labels]
    return clear_blank_cells(table, extra_columns, {""})


def _require_column(table: pd.DataFrame, columns: dict[str, str], role: str, path: Path, hint: str = "") -> None:
    if role not in columns:
        names = format_names(map(repr, table.columns), MAX_LISTED_COLUMNS)
        problem = f"no column called {role}{suggest_name(role, table.columns)}{hint}; the columns are {names}"
        fix = f"Rename the column that contains it to {role}, or pass `columns={[f'{role}=NAME']}`"
        raise DataError(problem, fix, path=path, code="E011")


def _read_labels(
    table: pd.DataFrame, columns: dict[str, str], path: Path, options: ReaderOptions
) -> tuple[pd.DataFrame, list[str]]:
    """Return `label`, finding columns if there are several labels per image, and the columns that these replace."""
    if chosen := list_chosen_findings(table.columns, options.columns):
        return parse_indicator_columns(table, chosen, path), chosen
    if columns.get("label") == "label" and (written := find_written_columns(table)):
        return parse_written_columns(table, written, path), written
    min_columns = 1 if options.task == MULTI_LABEL else MIN_COLUMNS
    indicators = find_indicator_columns(table, columns.values(), min_columns)
    if options.task == MULTI_LABEL and has_only_indicators(table[columns.get("label", columns["path"])]):
        return parse_indicator_columns(table, [columns["label"]], path), [columns["label"]]
    if "label" not in columns and indicators:
        reject_two_readings(table, indicators, columns.values(), path)
        return parse_indicator_columns(table, indicators, path), indicators
    _require_column(table, columns, "label", path, " and no columns of 0 and 1 for several findings")
    column = columns["label"]
    if indicators:
        log.info("%s: the label is %s; not used: the columns %s", path.name, column, format_names(indicators, 5))
    cells = to_text(table[column].str.strip().mask(is_blank(table[column]), ""))
    labels = parse_label_cells(cells, path, options.label_separator)
    if findings := list_findings(labels):
        log.info("%s: several labels per image: the findings %s", path.name, format_names(findings))
    return labels, []


def _rename_roles(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Return the table with the names of the manifest; other columns of these names get the prefix given_."""
    others = [name for name in table.columns if name in columns and name not in columns.values()]
    table = _add_prefix(table, others).rename(columns={column: role for role, column in columns.items()})
    return rename_reserved_columns(table)


def find_patient_column(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """Return {"patient": column} for a patient column with another name, and log it; {} if there is none."""
    candidates = [column for name in PATIENT_COLUMN_NAMES[1:] if (column := find_column(table.columns, [name]))]
    if len(candidates) > 1:
        problem = f"several columns may contain the patient: {format_names(map(repr, candidates))}"
        raise DataError(problem, "Rename the correct one to patient", path=path, code="E029")
    if candidates:
        log.info("%s: the column %r is used as the patient", path.name, candidates[0])
    return {"patient": candidates[0]} if candidates else {}


def rename_reserved_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Rename columns that fastcxr itself writes to given_<name>."""
    prefixes = ("prob_", FINDING_PREFIX)
    return _add_prefix(table, (name for name in table.columns if name in RESERVED_COLUMNS or name.startswith(prefixes)))


def _add_prefix(table: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    new_names = {name: name for name in names}
    for name in new_names:
        while new_names[name] in table.columns:
            new_names[name] = f"given_{new_names[name]}"
    if new_names:
        log.info("columns renamed: %s", format_names(f"{old} to {new}" for old, new in new_names.items()))
    return table.rename(columns=new_names)


def clear_blank_cells(table: pd.DataFrame, names: Iterable[str], blanks: set[str] = BLANK_VALUES) -> pd.DataFrame:
    """Return the table with missing values for the blank cells of these columns."""
    return table.assign(**{name: to_text(table[name].where(~is_blank(table[name], blanks))) for name in names})


def reject_rows(is_bad: pd.Series, problem: str, fix: str, path: str | Path, values: pd.Series | None = None) -> None:
    """Raise DataError with the lines of the bad rows, if any, and with their values."""
    if is_bad.any():
        names = "" if values is None else f": {format_names(map(repr, sorted(set(values[is_bad]))), 5)}"
        problem = f"{is_bad.sum():,} rows {problem}{names} ({format_line_numbers(is_bad.index[is_bad])})"
        raise DataError(problem, fix, path=path, code="E012")


def _find_flags(table: pd.DataFrame) -> dict[str, str]:
    """Return the column of each flag (is_test, is_valid) that the table has."""
    found = {name: find_column(table.columns, [name]) for name in FLAG_COLUMNS}
    return {name: column for name, column in found.items() if column}


def _parse_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    flags = _find_flags(table)
    if flags and "split" in table:
        problem = f"the columns split and {format_names(flags.values())} both give splits"
        raise DataError(problem, "Remove one of them", path=path, code="E029")
    if flags:
        return _parse_flags({name: table[column] for name, column in flags.items()}, path)
    if "split" not in table:
        return find_path_splits(table["path"], path)
    names = table["split"].str.strip().str.casefold()
    is_missing = is_blank(names, MISSING_VALUES)
    splits = to_text(names.map(SPLIT_ALIASES).where(~is_missing))
    is_unknown = splits.isna() & ~is_missing
    reject_rows(is_unknown, "have an unknown split", "Use train, valid or test", path, table["split"])
    return splits


def _parse_flags(flags: dict[str, pd.Series], path: Path) -> pd.Series:
    """Return the split of each row from truth values: test or valid if its flag is true, else train."""
    values = {}
    for name, cells in flags.items():
        is_missing = is_blank(cells, MISSING_VALUES)
        values[name] = to_text(cells.str.strip().str.casefold().map(FLAGS).where(~is_missing))
        split = name.removeprefix("is_")
        is_unknown = values[name].isna() & ~is_missing
        reject_rows(is_unknown, f"have an unknown {cells.name}", f"Use True ({split}) or False", path, cells)
    table = pd.DataFrame(values)
    is_both = (table == "1").all(axis=1) & (len(values) > 1)
    reject_rows(is_both, "are in both test and valid", "Set is_test or is_valid to False", path)
    splits = pd.Series("train", table.index, dtype=TEXT_DTYPE).mask(table.isna().any(axis=1))
    for name in values:
        splits = splits.mask(table[name] == "1", name.removeprefix("is_"))
    return to_text(splits)


def assign_files(table: pd.DataFrame, paths: Iterable[str | None], path: Path) -> pd.DataFrame:
    """Return the table with `path`, relative to the folder of the table at `path`, and the absolute `file`.

    A row whose path is None keeps its text in `path`, and its `file` is missing: see check_rows.
    """
    found = to_text(pd.Series(list(paths), table.index, dtype="object"))
    reject_non_utf8_names(path, found.dropna())
    folder = path.absolute().parent
    files = [str(folder / name) if isinstance(name, str) else None for name in found]
    return table.assign(path=found.fillna(table["path"]), file=pd.Series(files, table.index, dtype=TEXT_DTYPE))
