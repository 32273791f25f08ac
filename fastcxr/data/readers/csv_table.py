"""Reader of a table, a CSV or a DataFrame, with image paths and labels, one row and one label per image."""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.findings import FINDING_PREFIX, list_findings
from fastcxr.data.patients import FILE_COLUMN_NAMES, PATIENT_COLUMN_NAMES
from fastcxr.data.readers.folders import SPLIT_ALIASES, identify_file, reject_image_pairs, reject_non_utf8_names
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import (
    BLANK_VALUES,
    MISSING_VALUES,
    TEXT_DTYPE,
    find_column,
    format_line_numbers,
    format_names,
    is_blank,
    read_table,
    suggest_name,
    to_text,
)

log = logging.getLogger("fastcxr")

LABEL_COLUMN_NAMES = ("label", "labels", "class", "finding", "findinglabels", "diagnosis", "target", "category")
KNOWN_COLUMNS = ("path", "label", "patient", "source", "split")
RESERVED_COLUMNS = {"file", "predicted", "error", "ood_score", "in_distribution", "patient_origin", "split_origin"}
IS_VALID_COLUMN = "is_valid"  # of fastai's data blocks
SPLIT_BY_IS_VALID = {"true": "valid", "1": "valid", "1.0": "valid", "false": "train", "0": "train", "0.0": "train"}
INDICATOR_VALUES = {"0", "1", "0.0", "1.0", "-1", "-1.0"}


def read_label_table(path: str | Path) -> pd.DataFrame:
    """Return path, label, split and file, patient and source if the table has them, and all other columns."""
    return make_label_rows(read_table(path), Path(path))


def make_label_rows(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the rows of `read_label_table` for a table of text that was read from `path`."""
    columns = _find_columns(table, path)
    if table.empty:
        raise InputMissingError("0 images: the table has no rows", "Add one row per image", path=path, code="E002")
    table = rename_reserved_columns(table.rename(columns={column: name for name, column in columns.items()}))
    reject_rows(is_blank(table["path"]), "have no path", "Fill in every path, or remove the rows", path)
    labels = to_text(table["label"].str.strip().mask(is_blank(table["label"]), ""))
    table = table.assign(label=labels, split=_parse_splits(table, path))
    _reject_multiple_labels(table, path)
    folder = path.absolute().parent
    table = assign_files(table, [_find_file(cell, folder) for cell in table["path"]], path)
    extra_columns = [name for name in table.columns if name not in {*KNOWN_COLUMNS, "file"}]
    return clear_blank_cells(table, extra_columns, {""})


def _find_columns(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """Return the column of the table for each name in KNOWN_COLUMNS that it has."""
    columns = {name: column for name in KNOWN_COLUMNS if (column := find_column(table.columns, [name]))}
    if "label" not in columns:
        _reject_indicator_columns(table, path)
    for name, aliases in (("path", FILE_COLUMN_NAMES), ("label", LABEL_COLUMN_NAMES)):
        if name not in columns:
            problem = f"no column called {name}{suggest_name(name, table.columns, aliases)}"
            raise DataError(problem, f"Rename the column that contains it to {name}", path=path, code="E011")
    if "patient" not in columns:
        columns |= find_patient_column(table, path)
    for name in KNOWN_COLUMNS:
        if name not in columns and (suggestion := suggest_name(name, set(table.columns) - set(columns.values()))):
            log.warning("%s: no column called %s%s; the similar column is ignored", path.name, name, suggestion)
    return columns


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
    new_names = {name: name for name in table.columns if name in RESERVED_COLUMNS or name.startswith("prob_")}
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


def _parse_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    is_valid_column = find_column(table.columns, [IS_VALID_COLUMN])
    if is_valid_column and "split" in table:
        problem = f"the columns split and {is_valid_column} both give splits"
        raise DataError(problem, "Remove one of them", path=path, code="E029")
    if is_valid_column:
        return _parse_is_valid(table[is_valid_column], path)
    if "split" not in table:
        return pd.Series(index=table.index, dtype=TEXT_DTYPE)
    names = table["split"].str.strip().str.casefold()
    is_missing = is_blank(names, MISSING_VALUES)
    splits = to_text(names.map(SPLIT_ALIASES).where(~is_missing))
    is_unknown = splits.isna() & ~is_missing
    reject_rows(is_unknown, "have an unknown split", "Use train, valid or test", path, table["split"])
    return splits


def _parse_is_valid(cells: pd.Series, path: Path) -> pd.Series:
    """Return valid for True and train for False, in the column that fastai uses for splits."""
    is_missing = is_blank(cells, MISSING_VALUES)
    splits = to_text(cells.str.strip().str.casefold().map(SPLIT_BY_IS_VALID).where(~is_missing))
    is_unknown = splits.isna() & ~is_missing
    reject_rows(is_unknown, f"have an unknown {cells.name}", "Use True (valid) or False (train)", path, cells)
    return splits


def _reject_indicator_columns(table: pd.DataFrame, path: Path) -> None:
    """Reject a table with a column of 0 and 1 for each finding."""
    values = {name: set(table.loc[~is_blank(table[name]), name].str.strip()) for name in table.columns}
    names = [name for name, given in values.items() if given and given <= INDICATOR_VALUES]
    if len(names) > 1:
        details = f"no column is called label, and {format_names(map(repr, names), 5)} contain 0 and 1"
        raise _make_multi_label_error(details, path)


def _reject_multiple_labels(table: pd.DataFrame, path: Path) -> None:
    """Reject cells such as `A|B`; a comma or slash separates only labels that other cells contain alone."""
    labels = set(table["label"])
    multiple = {label for label in labels if _is_multiple(label, labels)}
    if (is_bad := table["label"].isin(multiple)).any():
        examples = format_names(map(repr, sorted(multiple)), 5)
        raise _make_multi_label_error(f"{examples} ({format_line_numbers(table.index[is_bad])})", path)


def _is_multiple(label: str, labels: set[str]) -> bool:
    if re.search(r"[|;]", label):
        return True
    pieces = [piece.strip() for piece in re.split(r"[,/+&]", label)]
    return len(pieces) > 1 and set(pieces) <= labels


def _make_multi_label_error(details: str, path: Path) -> DataError:
    problem = f"the table has several labels per image, and fastcxr trains one label per image: {details}"
    fix = "Keep one label column with one label per cell, and remove images with several labels"
    return DataError(problem, fix, path=path, code="E015")


def assign_files(table: pd.DataFrame, paths: Iterable[str | None], path: Path) -> pd.DataFrame:
    """Return the table with `path`, relative to the folder of the table at `path`, and the absolute `file`.

    A row whose path is None keeps its text in `path`, and its `file` is missing: reject_missing_files judges it after
    the rows are selected.
    """
    found = to_text(pd.Series(list(paths), table.index, dtype="object"))
    reject_non_utf8_names(path, found.dropna())
    folder = path.absolute().parent
    files = [str(folder / name) if isinstance(name, str) else None for name in found]
    return table.assign(path=found.fillna(table["path"]), file=pd.Series(files, table.index, dtype=TEXT_DTYPE))


def reject_missing_files(rows: pd.DataFrame, path: str | Path, fix: str) -> None:
    """Raise DataError (E013) with the names and lines of the rows without `file`, if any."""
    if (is_missing := rows["file"].isna()).any():
        names = format_names(map(repr, rows.loc[is_missing, "path"]), 5)
        problem = f"{is_missing.sum():,} files are missing: {names} ({format_line_numbers(rows.index[is_missing])})"
        raise DataError(problem, fix, path=path, code="E013")


def make_missing_files_fix(folder: Path, *, is_frame: bool = False) -> str:
    """Return the fix of reject_missing_files for a table of the user, whose paths are relative to `folder`."""
    note = "; `root` changes this folder" if is_frame else ""
    return f"Correct the paths (relative to {folder}{note}), or remove the rows"


def find_blank_labels(rows: pd.DataFrame) -> pd.Series:
    """Return which rows have no label; with several labels per image, those whose findings are all unknown."""
    findings = [FINDING_PREFIX + name for name in list_findings(rows)]
    is_unlabelled = is_blank(rows["label"])
    return is_unlabelled & rows[findings].isna().all(axis=1) if findings else is_unlabelled


def reject_blank_labels(rows: pd.DataFrame, path: str | Path) -> None:
    """Raise DataError (E012) with the lines of the rows of find_blank_labels, if any."""
    reject_rows(find_blank_labels(rows), "have no label", "Fill in every label, or remove the rows", path)


def _find_file(cell: str, folder: Path) -> str | None:
    spellings = (cell, cell.strip(), cell.strip().replace("\\", "/"))
    return next((name for name in spellings if _exists(folder / name)), None)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # no permission, or not a valid file name
        return False


def reject_duplicate_rows(table: pd.DataFrame, path: Path) -> None:
    """Raise DataError if an image has two labels, two splits or two rows."""
    key = table["file"].dropna().map(identify_file).reindex(table.index)
    key = key.astype("object").where(key.notna(), table["path"])
    rows = table.assign(key=key)[key.duplicated(keep=False)]
    groups = rows.groupby("key", sort=False)
    conflicting = rows[groups["label"].transform("nunique") > 1]
    if len(conflicting) and (conflicting.groupby("key")["path"].nunique() == 1).all():
        examples = format_names(dict.fromkeys(conflicting["path"]), 5)
        raise _make_multi_label_error(f"{examples} ({format_line_numbers(conflicting.index)})", path)
    unit = table.index.name or "line"
    pairs = _pair_with_first(conflicting, lambda row: f"{unit} {row.Index} {row.label} {row.path}")
    reject_image_pairs(path, pairs, "E008")
    conflicting = rows[groups["split"].transform(lambda splits: splits.fillna("").nunique()) > 1]
    pairs = _pair_with_first(conflicting, lambda row: f"{unit} {row.Index} {row.split} {row.path}")
    reject_image_pairs(path, pairs, "E009")
    if len(rows):
        problem = f"{len(rows):,} rows repeat an image ({format_line_numbers(rows.index)})"
        raise DataError(problem, "Keep one row per image", path=path, code="E014")


def _pair_with_first(rows: pd.DataFrame, describe: Callable[[Any], str]) -> list[tuple[str, str]]:
    groups = [list(map(describe, group.itertuples())) for _, group in rows.groupby("key", sort=False)]
    return [(first, other) for first, *others in groups for other in others]
