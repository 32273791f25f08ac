"""Reader of an image folder of Hugging Face: metadata.csv or metadata.jsonl with the column file_name.

The layout is documented at https://huggingface.co/docs/datasets/image_dataset. Paths are relative to the folder of each
metadata file. The folders train, validation and test, perhaps in data/, may contain a metadata file each.
Trap: the labels may be in any column, or in the names of the folders only, which is the layout of class folders.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import has_label_columns, make_label_rows
from fastcxr.data.readers.folders import SPLIT_ALIASES, list_folders
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.errors import DataError
from fastcxr.io.tables import format_names, read_header, read_table, to_text

log = logging.getLogger("fastcxr")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
FILE_NAME_COLUMN = "file_name"
LOCATIONS = ("", "data")  # folders that contain the metadata or the folders of the splits


def read_imagefolder(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return the rows of `make_label_rows` for all metadata files of a folder, with the splits of their folders."""
    files = _find_metadata(location)
    tables = [_read_metadata(location, folder, path) for folder, path in files.items()]
    if len(files) == 1:
        return make_label_rows(tables[0], location / next(iter(files.values())).name, options)
    if any(set(table.columns) != set(tables[0].columns) for table in tables):
        names = format_names(path.relative_to(location).as_posix() for path in files.values())
        raise DataError(
            f"the columns of {names} differ", "Give all metadata files the same columns", path=location, code="E011"
        )
    table = pd.concat(tables, ignore_index=True)
    return make_label_rows(table.rename_axis(index="row"), location / "metadata", options)


def _find_metadata(location: Path) -> dict[str, Path]:
    """Return the metadata file of each folder, a path below the location; that of the location itself comes alone."""
    for parent in LOCATIONS:
        if not (location / parent).is_dir():
            continue
        if metadata := _find_metadata_file(location / parent):
            return {parent: metadata}
        folders = [name for name in list_folders(str(location), parent) if name.casefold() in SPLIT_ALIASES]
        paths = {f"{parent}/{name}".lstrip("/"): _find_metadata_file(location / parent / name) for name in folders}
        if found := {folder: path for folder, path in paths.items() if path}:
            return found
    return {}


def _find_metadata_file(folder: Path) -> Path | None:
    paths = (folder / name for name in METADATA_NAMES)
    return next((path for path in paths if path.is_file() and FILE_NAME_COLUMN in read_header(path)), None)


def _read_metadata(location: Path, folder: str, path: Path) -> pd.DataFrame:
    """Return a metadata file with paths below the location, and the splits if the folders are named for them."""
    table = read_table(path)
    names = f"{folder}/".lstrip("/") + table[FILE_NAME_COLUMN].str.strip()
    table = table.assign(**{FILE_NAME_COLUMN: names})
    folders = names.str.removeprefix("data/").str.partition("/")[0].str.casefold()
    splits = to_text(folders.map(SPLIT_ALIASES))
    return table.assign(split=splits) if splits.notna().all() and "split" not in table else table


def _detect(path: Path) -> Path | None:
    location = path.parent if path.name in METADATA_NAMES else path
    if not location.is_dir():
        return None
    files = _find_metadata(location)
    return location if files and all(map(has_label_columns, files.values())) else None


DATASET = PublicDataset(
    name="imagefolder",
    title="an image folder of Hugging Face",
    required="metadata.csv or metadata.jsonl with the columns file_name and label, also in train/ and test/",
    detect=_detect,
    read=read_imagefolder,
    labels="those of the metadata",
    page="https://huggingface.co/docs/datasets/image_dataset",
    files={"metadata.*": "file_name and labels of each image"},
)
