"""Helpers of the readers of public datasets: find the folder, the tables and the images of a dataset."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.folders import list_folders
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, read_header, to_text

log = logging.getLogger("fastcxr")


def find_table(folder: Path, names: Iterable[str], columns: Iterable[str]) -> Path | None:
    """Return the first file with one of the names, also with .gz, and with these columns, or None."""
    paths = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in paths if path.is_file() and set(columns) <= set(read_header(path))), None)


def find_dataset_folder(path: Path, is_dataset: Callable[[Path], bool]) -> Path | None:
    """Return the folder if it is the dataset, else the folder in it that is, or None.

    Raises:
        DataError: several folders in it are the dataset (E019).
    """
    if not path.is_dir():
        return None
    if is_dataset(path):
        return path
    names = [name for name in list_folders(str(path)) if is_dataset(path / name)]
    if len(names) > 1:
        problem = f"several folders contain the same dataset: {format_names(names)}"
        raise DataError(problem, "Name one of them", path=path, code="E019")
    return path / names[0] if names else None


def make_path_columns(names: pd.Series, found: Iterable[str | None], root: Path) -> pd.DataFrame:
    """Return `path` and `file` of each row: the name and a missing file where no file is found.

    Args:
        names: paths or file names in a table.
        found: path below the root of each, or None.
        root: absolute path of the folder.
    """
    paths = to_text(pd.Series(list(found), index=names.index, dtype="object"))
    return pd.DataFrame({"path": paths.fillna(names), "file": to_text(f"{root.as_posix()}/" + paths)})


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
    found = make_path_columns(names, index.find(names), index.root)
    return rows.assign(path=found["path"], file=found["file"], split=splits)


def log_unlabelled(title: str, index: FileIndex, folder: str) -> None:
    """Log the number of images in a folder of the dataset for which it has no labels."""
    n_images = sum(path.startswith(f"{folder}/") for path in index.paths)
    if n_images:
        log.info("%s: left out %s of %s/, which have no published labels", title, pluralize(n_images, "image"), folder)
