"""Find the tables in or above a folder that name its images, and the labels that they give."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.patients import MATCH_KEYS
from fastcxr.data.readers.table_columns import ROLE_NAMES, has_role
from fastcxr.errors import DataError
from fastcxr.io.tables import find_column, is_table_name, read_header, read_table

MAX_TABLES, MAX_TABLE_BYTES = 50, 500_000_000  # of a folder; larger tables are no label tables
N_PARENTS = 2  # folders above the data folder that may contain its table: nih/images_001/images
MIN_STEM_CHARACTERS = 6  # a shorter name without extension, such as 1, may be any number of a table


def find_tables(root: Path, images: Sequence[str]) -> list[Path]:
    """Return the tables of the nearest folder, from the data folder upwards, that name one of the images.

    Tables with a column of labels are first. A table is searched in all columns.
    """
    names = {PurePosixPath(image).name for image in images}
    names |= {stem for image in images if len(stem := PurePosixPath(image).stem) >= MIN_STEM_CHARACTERS}
    root = root.resolve()
    for folder in (root, *root.parents[:N_PARENTS]):
        if found := [table for table in _list_tables(folder) if _has_name(table, names)]:
            return sorted(found, key=lambda table: not has_role(read_header(table), "label"))
    return []


def describe_other_label(root: Path, images: Mapping[str, Sequence[str]]) -> str | None:
    """Return how a table in the data folder or its parent contradicts the labels of the folders, or None.

    Args:
        root: the data folder.
        images: absolute paths of some images of each label.
    """
    root = root.resolve()
    for path in (*_list_tables(root), *_list_tables(root.parent)):
        header = read_header(path)
        columns = [find_column(header, names) for names in (ROLE_NAMES["path"], ROLE_NAMES["label"])]
        table = _read_or_skip(path) if all(columns) else None
        if table is None:
            continue
        label_by_file = {
            os.path.relpath(os.path.realpath(f), path.parent): label for label in images for f in images[label]
        }
        for file, given in _find_labels(table[columns], label_by_file).items():
            if label_by_file[file].casefold() not in given:
                text = f"{PurePosixPath(file).name!r} is in the folder {label_by_file[file]!r}"
                return f"{text}, but {path.name} gives it the label {min(given)!r}"
    return None


def _find_labels(table: pd.DataFrame, files: Iterable[str]) -> dict[str, set[str]]:
    """Return the labels, in lower case, of the rows that name each file, by the strictest key that matches."""
    names, labels = table.iloc[:, 0].str.strip().str.replace("\\", "/"), table.iloc[:, 1].str.strip().str.casefold()
    found: dict[str, set[str]] = {}
    for make_key in MATCH_KEYS:
        file_by_key = {make_key(file): file for file in files if file not in found}
        keys = names.map(make_key)
        for key, label in zip(keys[is_known := keys.isin(file_by_key)], labels[is_known], strict=True):
            found.setdefault(file_by_key[key], set()).add(label)
    return found


def _list_tables(folder: Path) -> list[Path]:
    """Return the tables of a folder; none if it cannot be listed."""
    try:
        tables = [Path(entry.path) for entry in os.scandir(folder) if is_table_name(entry.name) and entry.is_file()]
        return [table for table in sorted(tables)[:MAX_TABLES] if table.stat().st_size <= MAX_TABLE_BYTES]
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
