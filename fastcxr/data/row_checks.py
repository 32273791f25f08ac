"""Check the selected rows of a dataset: every label is given, every file exists, and no image has two rows.

Rows that the user has not selected are never checked. With `skip_bad` rows without a label or a file are left out and
counted; contradictions are always an error.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.findings import FINDING_PREFIX, is_multi_label
from fastcxr.data.readers.folders import identify_file, reject_image_pairs
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import FRAME_INDEX, format_line_numbers, format_names, is_blank, to_text

log = logging.getLogger("fastcxr")


def check_rows(
    rows: pd.DataFrame, path: Path, missing_fix: str | None = None, *, skip_bad: bool = False
) -> pd.DataFrame:
    """Return the rows with a label and a file, one per image.

    Args:
        rows: rows as returned by a reader, see PublicDataset; the index is the line or the row in the table.
        path: table or folder of the dataset, for errors.
        missing_fix: what to do about missing files; by default the paths may be wrong.
        skip_bad: leave out rows without a label or a file, instead of raising an error.

    Raises:
        DataError: a label (E012) or a file (E013) is missing, or an image has rows that contradict each other: two
            labels (E008), two splits (E009), or other values that differ (E014).
    """
    if not is_multi_label(rows):  # a blank cell of a finding is an unknown finding
        is_unlabelled = is_blank(rows["label"])
        problem = f"{is_unlabelled.sum():,} rows have no label"
        rows = _leave_out(rows, is_unlabelled, problem, "Fill in every label", "E012", path, skip_bad=skip_bad)
    is_missing = rows["file"].isna()
    problem = f"{is_missing.sum():,} files are missing: {format_names(map(repr, rows.loc[is_missing, 'path']), 5)}"
    folder = path if path.is_dir() else path.absolute().parent
    note = "; `root` changes this folder" if rows.index.name == FRAME_INDEX else ""
    fix = missing_fix or f"Correct the paths (relative to {folder}{note})"
    return join_repeated_rows(_leave_out(rows, is_missing, problem, fix, "E013", path, skip_bad=skip_bad), path)


def _leave_out(
    rows: pd.DataFrame, is_bad: pd.Series, problem: str, fix: str, code: str, path: Path, *, skip_bad: bool
) -> pd.DataFrame:
    if not is_bad.any():
        return rows
    problem = f"{problem} ({format_line_numbers(rows.index[is_bad])})"
    if not skip_bad:
        raise DataError(problem, f"{fix}, or pass `skip_bad=True` to leave out these rows", path=path, code=code)
    log.warning("%s: %s of %s rows left out: %s", path.name, f"{is_bad.sum():,}", f"{len(rows):,}", problem)
    return rows[~is_bad]


def join_repeated_rows(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the first row of each image, if its rows agree in label, findings, split and patient.

    Raises:
        DataError: they differ (E008, E009, E014, E015).
    """
    rows = _find_repeated_rows(table)
    if rows.empty:
        return table
    _reject_contradictions(rows, path)
    is_repeated = rows["key"].duplicated()
    if is_repeated.any():
        text = "%s: %s of an image with an earlier row are left out: label, split and patient are the same"
        log.info(text, path.name, pluralize(int(is_repeated.sum()), "row"))
    return table.drop(index=rows.index[is_repeated])


def _find_repeated_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of images with several rows, with the identity of the file in `key`."""
    files = table["file"].tolist()
    keys = pd.Series([file if parse_reference(file) else identify_file(file) for file in files], table.index, object)
    is_repeated = keys.duplicated(keep=False)
    return table[is_repeated].assign(key=keys[is_repeated])


def _reject_contradictions(rows: pd.DataFrame, path: Path) -> None:
    conflicting = rows[_differs(rows, "label")]
    if len(conflicting) and (conflicting.groupby("key")["path"].nunique() == 1).all():
        examples = format_names(dict.fromkeys(conflicting["path"]), 5)
        problem = (
            f"images have several rows with different labels: {examples} ({format_line_numbers(conflicting.index)})"
        )
        fix = "Keep one row per image, or write all findings of an image into one cell, separated by |"
        raise DataError(problem, fix, path=path, code="E015")
    unit = rows.index.name or "line"
    pairs = _pair_with_first(conflicting, lambda row: f"{unit} {row.Index} {row.label} {row.path}")
    reject_image_pairs(path, pairs, "E008")
    conflicting = rows[_differs(rows, "split")]
    pairs = _pair_with_first(conflicting, lambda row: f"{unit} {row.Index} {row.split} {row.path}")
    reject_image_pairs(path, pairs, "E009")
    for name in ["patient", *(name for name in rows.columns if name.startswith(FINDING_PREFIX))]:
        if name in rows and (is_bad := _differs(rows, name)).any():
            values = f"values of {name.removeprefix(FINDING_PREFIX)} ({format_line_numbers(rows.index[is_bad])})"
            problem = f"{is_bad.sum():,} rows repeat an image with different {values}"
            raise DataError(problem, "Keep one row per image", path=path, code="E014")


def _differs(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return which rows have an image whose rows differ in a column; a missing value differs from others."""
    values = to_text(rows[name].astype("object").map(str, na_action="ignore")).fillna("")
    return values.groupby(rows["key"], sort=False).transform("nunique") > 1


def _pair_with_first(rows: pd.DataFrame, describe: Callable[[Any], str]) -> list[tuple[str, str]]:
    groups = [list(map(describe, group.itertuples())) for _, group in rows.groupby("key", sort=False)]
    return [(first, other) for first, *others in groups for other in others]
