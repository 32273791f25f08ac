"""Find the tables in or above a folder that name its images, and the labels that they give."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.findings import NO_FINDING
from fastcxr.data.patients import MATCH_KEYS
from fastcxr.data.readers.finding_columns import find_indicator_columns
from fastcxr.data.readers.label_cells import is_no_finding
from fastcxr.data.readers.table_columns import ROLE_NAMES
from fastcxr.errors import DataError
from fastcxr.io.tables import find_column, is_blank, is_table_name, normalize_name, read_header, read_table

MAX_TABLES, MAX_TABLE_BYTES = 50, 500_000_000  # of a folder; larger tables are no label tables
N_PARENTS = 2  # folders above the data folder that may contain its table: nih/images_001/images
LABEL_STEM = re.compile(r"label|class|finding|diagn|disease|patholog|befund|category")  # of other names of a column
NO_LABELS = 2  # see _rank_labels
MAX_LABELS = 50  # different ones of a column with another name
MIN_STEM_CHARACTERS = 6  # a shorter name without extension, such as 1, may be any number of a table


def find_tables(root: Path, images: Sequence[str]) -> list[Path]:
    """Return the tables of the nearest folder, from the data folder upwards, that name one of the images.

    Tables with labels that differ are first. A table is searched in all columns. Tables of boxes and the examples of a
    submission to a challenge are left out.
    """
    names = {PurePosixPath(image).name for image in images}
    names |= {stem for image in images if len(stem := PurePosixPath(image).stem) >= MIN_STEM_CHARACTERS}
    root = root.resolve()
    for folder in (root, *root.parents[:N_PARENTS]):
        tables = [table for table in _list_tables(folder) if not _is_box_table(table)]
        if found := [table for table in tables if _has_name(table, names)]:
            return sorted(found, key=_rank_labels)
    return []


def has_labels(path: Path) -> bool:
    """Return whether a table has a column of labels, or columns of findings."""
    return _rank_labels(path) < NO_LABELS


def _rank_labels(path: Path) -> int:
    """Return 0 for a table with labels or findings that differ, 1 for one with the same label in every row, else 2."""
    table = _read_or_skip(path)
    if table is None:
        return NO_LABELS
    if _find_label_column(table) is not None or find_indicator_columns(table):
        return 0
    return 1 if find_column(table.columns, ROLE_NAMES["label"]) else NO_LABELS


def describe_other_label(root: Path, images: Mapping[str, Sequence[str]]) -> str | None:
    """Return how a table in the data folder or its parent contradicts the labels of the folders, or None.

    Args:
        root: the data folder.
        images: absolute paths of some images of each label.
    """
    root = root.resolve()
    for path in (*_list_tables(root), *_list_tables(root.parent)):
        header = read_header(path)
        name_column = find_column(header, ROLE_NAMES["path"])
        table = _read_or_skip(path) if name_column and not _is_box_table(path) else None
        labels = None if table is None else _read_labels(table)
        if table is None or labels is None:
            continue
        label_by_file = {
            os.path.relpath(os.path.realpath(f), path.parent): label for label in images for f in images[label]
        }
        labels = labels[~is_blank(labels)]
        for file, given in _find_labels(table.loc[labels.index, name_column], labels, label_by_file).items():
            if not any(_is_same_label(label_by_file[file], label) for label in given):
                text = f"{PurePosixPath(file).name!r} is in the folder {label_by_file[file]!r}"
                return f"{text}, but {path.name} gives it the label {min(given)!r}"
    return None


def _is_prediction_table(header: Sequence[str]) -> bool:
    """Return whether a table is that of `fastcxr predict`, whose labels are those of the data, or blank."""
    return "predicted" in header and any(name.startswith("prob_") for name in header)


def _find_label_column(table: pd.DataFrame) -> str | None:
    """Return the column of labels: with a usual name, or with a similar one and text; not all values are equal."""
    name = find_column(table.columns, ROLE_NAMES["label"])
    if name and table[name].nunique() > 1:
        return name
    similar = (name for name in table.columns if LABEL_STEM.search(normalize_name(name)))
    return next((name for name in similar if 1 < table[name].nunique() <= MAX_LABELS and _is_text(table[name])), None)


def _is_text(cells: pd.Series) -> bool:
    return bool(pd.to_numeric(cells, errors="coerce").isna().all())


def _read_labels(table: pd.DataFrame) -> pd.Series | None:
    """Return the labels of each row in lower case, separated by |, from a column or from columns of findings."""
    column = find_column(table.columns, ROLE_NAMES["label"]) or _find_label_column(table)
    if column:
        return table[column].str.strip().str.casefold()
    if not (findings := find_indicator_columns(table)):
        return None
    is_present = table[findings].apply(lambda cells: pd.to_numeric(cells, errors="coerce") == 1)
    names = [name.strip().casefold() for name in findings]
    rows = ["|".join(name for name, is_one in zip(names, row, strict=True) if is_one) for row in is_present.to_numpy()]
    return pd.Series([row or NO_FINDING.casefold() for row in rows], index=table.index)


def _is_same_label(folder: str, label: str) -> bool:
    """Return whether a folder has a label of a row, in which several labels are separated by |."""
    return folder.casefold() in (label, *label.split("|")) or (is_no_finding(folder) and is_no_finding(label))


def _find_labels(names: pd.Series, labels: pd.Series, files: Iterable[str]) -> dict[str, set[str]]:
    """Return the labels of the rows that name each file, by the strictest key that matches."""
    names = names.str.strip().str.replace("\\", "/")
    found: dict[str, set[str]] = {}
    for make_key in MATCH_KEYS:
        file_by_key = {make_key(file): file for file in files if file not in found}
        keys = names.map(make_key)
        is_known = keys.isin(file_by_key) & ~is_blank(labels)
        for key, label in zip(keys[is_known], labels[is_known], strict=True):
            found.setdefault(file_by_key[key], set()).add(label)
    return found


def _is_box_table(path: Path) -> bool:
    """Return whether a table gives boxes, or is the example of a submission to a challenge."""
    names = {normalize_name(name) for name in read_header(path)}
    is_box = names >= {"x", "y", "width", "height"} or "xmin" in names or any(name.startswith("bbox") for name in names)
    return is_box or "submission" in path.name.casefold()


def _list_tables(folder: Path) -> list[Path]:
    """Return the tables of a folder, without those of `fastcxr predict`; none if it cannot be listed."""
    try:
        tables = [Path(entry.path) for entry in os.scandir(folder) if is_table_name(entry.name) and entry.is_file()]
        label_tables = (table for table in sorted(tables) if not _is_prediction_table(read_header(table)))
        return [table for table in islice(label_tables, MAX_TABLES) if table.stat().st_size <= MAX_TABLE_BYTES]
    except OSError:
        return []


def _has_name(path: Path, names: set[str]) -> bool:
    table = _read_or_skip(path)
    if table is None:
        return False
    return any(table[column].str.replace(r".*[/\\]", "", regex=True).isin(names).any() for column in table)


def _read_or_skip(path: Path) -> pd.DataFrame | None:
    try:
        return read_table(path)
    except DataError:  # not a table that could be used
        return None
