"""A person's table of paths and labels comes in; one row and one label an image, or an error, goes out."""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.patients import FILE_COLUMN_NAMES, PATIENT_COLUMN_NAMES
from fastcxr.data.readers.folders import SPLIT_ALIASES, identify_file, reject_image_pairs, reject_non_utf8_names
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import (
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
MULTI_LABEL_PROBLEM = "this table gives several labels an image; fastcxr trains one label an image (kind: single_label)"
ONE_LABEL_FIX = "Give one label column with one label in each cell, and leave out images that have several"


def read_label_table(path: str | Path) -> pd.DataFrame:
    """Columns path, label, split and file, patient and source where the table has them, and its further ones."""
    path = Path(path)
    table = read_table(path)
    columns = _find_columns(table, path)
    if table.empty:
        raise InputMissingError("0 images: a header without rows", "Give a row for each image", path=path, code="E002")
    table = rename_reserved_columns(table.rename(columns={name: wanted for wanted, name in columns.items()}))
    _reject_blank_cells(table, path)
    table = table.assign(label=table["label"].str.strip(), split=_parse_splits(table, path))
    _reject_multiple_labels(table, path)
    table = _locate_files(table, path)
    reject_duplicate_rows(table, path)
    extra_columns = [name for name in table.columns if name not in {*KNOWN_COLUMNS, "file"}]
    table = table.assign(**{name: to_text(table[name].where(~is_blank(table[name], {""}))) for name in extra_columns})
    return table.reset_index(drop=True)


def _find_columns(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """Which column of the table is which of ours."""
    columns = {name: column for name in KNOWN_COLUMNS if (column := find_column(table.columns, [name]))}
    if "label" not in columns:
        _reject_indicator_columns(table, path)
    for name, aliases in (("path", FILE_COLUMN_NAMES), ("label", LABEL_COLUMN_NAMES)):
        if name not in columns:
            problem = f"no column called {name}{suggest_name(name, table.columns, aliases)}"
            raise DataError(problem, f"Rename the column that holds it to {name}", path=path, code="E011")
    if "patient" not in columns:
        columns |= find_patient_column(table, path)
    for name in KNOWN_COLUMNS:
        if name not in columns and (suggestion := suggest_name(name, set(table.columns) - set(columns.values()))):
            log.warning("%s: no column called %s%s It is not used", path.name, name, suggestion)
    return columns


def find_patient_column(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """The column that names patients under another name, as {"patient": column}, said aloud; {} if there is none."""
    candidates = [column for name in PATIENT_COLUMN_NAMES[1:] if (column := find_column(table.columns, [name]))]
    if len(candidates) > 1:
        problem = f"several columns could be the patient: {format_names(map(repr, candidates))}"
        raise DataError(problem, "Rename the right one to patient", path=path, code="E029")
    if candidates:
        log.info("%s: the column %r is taken as the patient", path.name, candidates[0])
    return {"patient": candidates[0]} if candidates else {}


def rename_reserved_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Columns under names that fastcxr writes itself become given_<name>."""
    new_names = {name: name for name in table.columns if name in RESERVED_COLUMNS or name.startswith("prob_")}
    for name in new_names:
        while new_names[name] in table.columns:
            new_names[name] = f"given_{new_names[name]}"
    if new_names:
        log.info("columns renamed: %s", format_names(f"{old} to {new}" for old, new in new_names.items()))
    return table.rename(columns=new_names)


def _reject_blank_cells(table: pd.DataFrame, path: Path) -> None:
    for name in ("path", "label"):
        if (is_missing := is_blank(table[name])).any():
            problem = f"{is_missing.sum():,} rows have no {name} ({format_line_numbers(table.index[is_missing])})"
            raise DataError(problem, f"Fill in every {name}, or remove the rows", path=path, code="E012")


def _parse_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    if "split" not in table:
        return pd.Series(index=table.index, dtype=TEXT_DTYPE)
    names = table["split"].str.strip().str.casefold()
    is_missing = is_blank(names, MISSING_VALUES)
    splits = to_text(names.map(SPLIT_ALIASES).where(~is_missing))
    if (is_unknown := splits.isna() & ~is_missing).any():
        unknown_names = format_names(map(repr, sorted(set(table.loc[is_unknown, "split"]))), 5)
        problem = (
            f"{is_unknown.sum():,} rows have no split that is known: {unknown_names} "
            f"({format_line_numbers(table.index[is_unknown])})"
        )
        raise DataError(problem, "Call each train, valid or test", path=path, code="E012")
    return splits


def _reject_indicator_columns(table: pd.DataFrame, path: Path) -> None:
    """Refuse a table with a column of 0 and 1 for each finding."""
    indicator_values = {"0", "1", "0.0", "1.0", "-1", "-1.0"}
    names = [name for name in table.columns if _has_only_values(table[name], indicator_values)]
    if len(names) > 1:
        problem = (
            f"{MULTI_LABEL_PROBLEM}. No column is called label, and {format_names(map(repr, names), 5)} hold 0 and 1"
        )
        raise DataError(problem, ONE_LABEL_FIX, path=path, code="E015")


def _has_only_values(cells: pd.Series, values: set[str]) -> bool:
    given = set(cells[~is_blank(cells)].str.strip())
    return bool(given) and given <= values


def _reject_multiple_labels(table: pd.DataFrame, path: Path) -> None:
    """Refuse cells such as `A|B`; a comma or a slash separates only labels that stand alone elsewhere."""
    labels = set(table["label"])
    multiple = {label for label in labels if _is_multiple(label, labels)}
    if (is_bad := table["label"].isin(multiple)).any():
        examples = format_names(map(repr, sorted(multiple)), 5)
        raise DataError(
            f"{MULTI_LABEL_PROBLEM}: {examples} ({format_line_numbers(table.index[is_bad])})",
            ONE_LABEL_FIX,
            path=path,
            code="E015",
        )


def _is_multiple(label: str, labels: set[str]) -> bool:
    pieces = [piece.strip() for piece in re.split(r"[|;]", label)]
    if len(pieces) > 1:
        return True
    pieces = [piece.strip() for piece in re.split(r"[,/+&]", label)]
    return len(pieces) > 1 and set(pieces) <= labels


def _locate_files(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The path of each row as it is on disk, and its file. Raises DataError with every line whose file is not there."""
    folder = path.absolute().parent
    paths = table["path"].map(lambda cell: _find_file(cell, folder))
    return assign_files(table, paths, path, f"Paths are looked up from {folder}: correct them, or remove the rows")


def assign_files(table: pd.DataFrame, paths: pd.Series, path: Path, fix: str) -> pd.DataFrame:
    """The table with `path` as found below its folder, and `file`. Raises DataError with the lines of all missing."""
    if (is_missing := paths.isna()).any():
        names = format_names(map(repr, table.loc[is_missing, "path"]), 5)
        problem = f"{is_missing.sum():,} files are not there: {names} ({format_line_numbers(table.index[is_missing])})"
        raise DataError(problem, fix, path=path, code="E013")
    reject_non_utf8_names(path, paths)
    folder = path.absolute().parent
    return table.assign(path=paths, file=[str(folder / name) for name in paths])


def _find_file(cell: str, folder: Path) -> str | None:
    spellings = (cell, cell.strip(), cell.strip().replace("\\", "/"))
    return next((name for name in spellings if _exists(folder / name)), None)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # no right to look, or no possible name
        return False


def reject_duplicate_rows(table: pd.DataFrame, path: Path) -> None:
    """Each image once: no second label, no second split, no second row."""
    key = table["file"].map(identify_file)
    rows = table.assign(key=key)[key.duplicated(keep=False)]
    groups = rows.groupby("key", sort=False)
    _reject_label_conflicts(rows[groups["label"].transform("nunique") > 1], path)
    conflicting = rows[groups["split"].transform(lambda splits: splits.fillna("").nunique()) > 1]
    reject_image_pairs(
        path, _pair_with_first(conflicting, lambda row: f"line {row.Index} {row.split} {row.path}"), "E009"
    )
    if len(rows):
        line_numbers = format_line_numbers(rows.index)
        problem = f"{len(rows):,} rows repeat an image ({line_numbers})"
        raise DataError(problem, "Keep one row an image", path=path, code="E014")


def _reject_label_conflicts(conflicting: pd.DataFrame, path: Path) -> None:
    """Refuse images with two labels, under one name or under two."""
    if conflicting.empty:
        return
    if (conflicting.groupby("key")["path"].nunique() == 1).all():
        examples = format_names(dict.fromkeys(conflicting["path"]), 5)
        raise DataError(
            f"{MULTI_LABEL_PROBLEM}: {examples} ({format_line_numbers(conflicting.index)})",
            ONE_LABEL_FIX,
            path=path,
            code="E015",
        )
    reject_image_pairs(
        path, _pair_with_first(conflicting, lambda row: f"line {row.Index} {row.label} {row.path}"), "E008"
    )


def _pair_with_first(rows: pd.DataFrame, describe: Callable) -> list[tuple[str, str]]:
    groups: Iterable = (list(map(describe, group.itertuples())) for _, group in rows.groupby("key", sort=False))
    return [(group[0], other) for group in groups for other in group[1:]]
