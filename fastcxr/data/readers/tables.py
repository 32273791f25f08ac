"""Helpers of the readers of public datasets: find the folder, the tables and the images of a dataset."""

import logging
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import FINDING_PREFIX, NO_FINDING, make_finding_labels, parse_finding_columns
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.folders import list_folders
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import (
    TEXT_DTYPE,
    format_line_numbers,
    format_names,
    is_blank,
    is_table_name,
    read_header,
    to_text,
)

log = logging.getLogger("fastcxr")
CHEXPERT_LABELS = (
    NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
MAX_FOLDERS = 50  # in which a dataset is looked for; more are classes, patients or studies
VIEW_BY_CELL = dict.fromkeys(("l", "ll", "rl", "lateral"), "lateral") | {"pa": "PA", "ap": "AP", "ap_horizontal": "AP"}


def find_table(folder: Path, names: Iterable[str], columns: Iterable[str]) -> Path | None:
    """Return the first file with one of the names, also with .gz, and with these columns, or None."""
    paths = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file() and set(columns) <= set(read_header(path))), None)


def find_table_by_columns(path: Path, columns: Iterable[str]) -> Path | None:
    """Return `path` if it is a table with these columns, else the first such table in the folder `path`, if any."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    tables = [file for file in files if is_table_name(file) and file.is_file()]
    return next((table for table in tables if set(columns) <= set(read_header(table))), None)


def find_dataset_folder(path: Path, is_dataset: Callable[[Path], bool]) -> Path | None:
    """Return the folder if it is the dataset, else the folder in it that is, or None; more than 50 are not searched.

    Raises:
        DataError: several folders in it are the dataset (E019).
    """
    if not path.is_dir():
        return None
    if is_dataset(path):
        return path
    names = [name for name in list_folders(str(path)) if is_dataset(path / name)] if _has_few_folders(path) else []
    if len(names) > 1:
        problem = f"several folders contain the same dataset: {format_names(names)}"
        raise DataError(problem, "Name one of them", path=path, code="E019")
    return path / names[0] if names else None


def _has_few_folders(path: Path) -> bool:
    """Return whether a folder has at most 50 folders; no further ones are listed."""
    with os.scandir(path) as entries:
        return sum(1 for _ in islice((entry for entry in entries if entry.is_dir()), MAX_FOLDERS + 1)) <= MAX_FOLDERS


def make_path_columns(names: pd.Series, found: Iterable[str | None], root: Path) -> pd.DataFrame:
    """Return `path` and `file` of each row: the name and a missing file where no file is found.

    Args:
        names: paths or file names in a table.
        found: path below the root of each, or None.
        root: absolute path of the folder.
    """
    paths = to_text(pd.Series(list(found), index=names.index, dtype="object"))
    return pd.DataFrame({"path": paths.fillna(names), "file": to_text(f"{root.as_posix()}/" + paths)})


def reject_repeated_rows(table: pd.DataFrame, column: str, path: Path) -> None:
    """Raise DataError if two rows have the same value in the column that identifies a row (E014)."""
    if (is_repeated := table[column].duplicated(keep=False)).any():
        lines = format_line_numbers(table.index[is_repeated])
        problem = f"{is_repeated.sum():,} rows repeat a value of {column} ({lines})"
        raise DataError(problem, f"Keep one row per {column}", path=path, code="E014")


def parse_view(cells: pd.Series) -> pd.Series:
    """Return PA, AP or lateral for common names of these views, other names unchanged, and blank cells missing."""
    cells = cells.str.strip()
    known = cells.str.casefold().map(VIEW_BY_CELL)
    return to_text(known.where(known.notna(), cells.where(~is_blank(cells))))


def parse_chexpert_labels(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the finding columns and `label` of a table of text with some of the 14 columns; blanks stay unknown.

    Raises:
        DataError: a cell is not 1, 0, -1 or blank (E012).
    """
    parsed = parse_finding_columns(table, [name for name in CHEXPERT_LABELS if name in table], path)
    findings = parsed.drop(columns=FINDING_PREFIX + NO_FINDING, errors="ignore")
    no_finding = parsed[FINDING_PREFIX + NO_FINDING] == 1 if FINDING_PREFIX + NO_FINDING in parsed else None
    return findings.assign(label=make_finding_labels(findings, no_finding))


def find_location(
    path: Path, is_dataset: Callable[[Path], bool], *, tables: Iterable[str] = (), inner: Iterable[str] = ()
) -> Path | None:
    """Return the folder of a dataset for any path by which a user may name it, or None for other data.

    Args:
        path: the folder itself, the folder above it, one of its folders, or one of its tables, also with .gz.
        is_dataset: whether a folder is the dataset.
        tables: paths of its tables below the folder.
        inner: names of its folders.
    """
    absolute = path.absolute()
    if path.is_file():
        name = absolute.as_posix().removesuffix(".gz")
        folders = (absolute.parents[table.count("/")] for table in tables if name.endswith(f"/{table}"))
        return next(filter(is_dataset, folders), None)
    if absolute.name in inner and is_dataset(absolute.parent):
        return absolute.parent
    return find_dataset_folder(path, is_dataset)


def assign_images(rows: pd.DataFrame, names: pd.Series, index: FileIndex) -> pd.DataFrame:
    """Return the rows with `path` and `file` of the images with these names, and with `split`."""
    splits = rows["split"] if "split" in rows else pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    found = make_path_columns(names, index.find(names, any_folder=True), index.root)
    return rows.assign(path=found["path"], file=found["file"], split=splits)


def log_unlabelled(title: str, index: FileIndex, folder: str) -> None:
    """Log the number of images in a folder of the dataset for which it has no labels."""
    n_images = sum(path.startswith(f"{folder}/") for path in index.paths)
    if n_images:
        log.info("%s: left out %s of %s/, which have no published labels", title, pluralize(n_images, "image"), folder)
