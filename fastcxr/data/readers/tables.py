"""Helpers of the readers of public datasets: find the folder, the tables and the images of a dataset."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.folders import list_folders
from fastcxr.errors import DataError
from fastcxr.io.tables import format_names, read_header, to_text


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
