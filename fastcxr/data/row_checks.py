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
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import FRAME_INDEX, format_line_numbers, format_names, is_blank

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


def join_repeated_rows(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the first of the rows of each image; raise DataError if they contradict each other."""
    keys = rows["file"].map(identify_file)
    repeated = rows.assign(key=keys)[keys.duplicated(keep=False)]
    if repeated.empty:
        return rows
    unit = rows.index.name or "line"
    _reject_conflicts(repeated, "label", "E008", unit, path)
    _reject_conflicts(repeated, "split", "E009", unit, path)
    others = [name for name in repeated.columns if name == "patient" or name.startswith(FINDING_PREFIX)]
    for name in others:
        if len(conflicting := _find_conflicts(repeated, name)):
            problem = f"rows of one image differ in {name.removeprefix(FINDING_PREFIX)}"
            problem += f" ({format_line_numbers(conflicting.index)})"
            raise DataError(
                problem, "Keep one row per image, or give all of its rows one value", path=path, code="E014"
            )
    joined = rows[~keys.duplicated()]
    text = "%s: %s repeat an image with the same label: each image is used once"
    log.info(text, path.name, pluralize(len(rows) - len(joined), "row"))
    return joined


def _find_conflicts(repeated: pd.DataFrame, column: str) -> pd.DataFrame:
    cells = repeated[column].astype("object").where(repeated[column].notna(), "")
    return repeated[cells.groupby(repeated["key"], sort=False).transform("nunique") > 1]


def _reject_conflicts(repeated: pd.DataFrame, column: str, code: str, unit: str, path: Path) -> None:
    conflicting = _find_conflicts(repeated, column)
    pairs = _pair_with_first(conflicting, lambda row: f"{unit} {row.Index} {getattr(row, column)} {row.path}")
    reject_image_pairs(path, pairs, code)


def _pair_with_first(rows: pd.DataFrame, describe: Callable[[Any], str]) -> list[tuple[str, str]]:
    groups = [list(map(describe, group.itertuples())) for _, group in rows.groupby("key", sort=False)]
    return [(first, other) for first, *others in groups for other in others]
