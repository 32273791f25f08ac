"""A folder or a file comes in; which known collection it is, and the rows that its reader makes of it, go out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fastcxr.data.cohort.tables import read_header
from fastcxr.data.collections import cohen, coronahack, covidx
from fastcxr.data.hdf5 import is_hdf5, read_packed

TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Collection:
    """A layout of its own: its words, how to recognise it, and what reads it."""

    title: str
    wanted: str  # what must be there, for the error of who forces it
    find: Callable[[Path], Path | None]  # from what --data names to what `read` takes
    read: Callable[[Path], pd.DataFrame]


def find_collections(path: Path) -> dict[str, Path]:
    """The collections that a folder or file can be read as, each with what its reader takes."""
    found = {name: collection.find(path) for name, collection in SHELF.items()}
    return {name: place for name, place in found.items() if place}


def _find_table(columns: Iterable[str]) -> Callable[[Path], Path | None]:
    """Recognises a table with these columns, or the folder that it lies in."""

    def find(path: Path) -> Path | None:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        tables = [file for file in files if file.suffix.casefold() in TABLE_SUFFIXES and file.is_file()]
        return next((table for table in tables if set(columns) <= set(read_header(table))), None)

    return find


def _find_lists(path: Path) -> Path | None:
    return path if path.is_dir() and covidx.find_lists(path) else None


def _find_hdf5(path: Path) -> Path | None:
    return path if path.is_file() and is_hdf5(path) else None


SHELF = {
    "coronahack": Collection(
        "CoronaHack", f"a table with the columns {', '.join(coronahack.COLUMNS)}",
        _find_table(coronahack.COLUMNS), coronahack.read_coronahack,
    ),
    "cohen": Collection(
        "Cohen's collection", f"a metadata.csv with the columns {', '.join(cohen.COLUMNS)}",
        _find_table(cohen.COLUMNS), cohen.read_cohen,
    ),
    "covidx": Collection(
        "COVIDx", "train*.txt or test*.txt with lines of patient, filename, label and source, there or in labels/",
        _find_lists, covidx.read_covidx,
    ),
    "hdf5": Collection("a packed cohort", "a file made by `fastcxr pack`", _find_hdf5, read_packed),
}  # fmt: skip
