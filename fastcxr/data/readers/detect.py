"""Detect the layout of data: class folders, split folders with class folders, a CSV, or a known dataset.

Data that fits several layouts is an error; --data-format selects one.
"""

import logging
import stat
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, open_file
from fastcxr.data.readers.csv_table import is_label_table
from fastcxr.data.readers.folders import (
    OUTPUT_FOLDERS,
    SPLIT_ALIASES,
    ClassFolder,
    list_folders,
    list_loose_files,
    list_output_folders,
)
from fastcxr.data.readers.hdf5 import is_hdf5
from fastcxr.data.readers.registry import PUBLIC_DATASETS, detect_public_datasets
from fastcxr.errors import DataError, ImageError, InputMissingError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.paths import reject_missing_paths
from fastcxr.io.tables import find_table_stem, format_names, is_table_name, read_header, suggest_name

log = logging.getLogger("fastcxr")
MISSING_DATA_FIX = "Check the name given as `data`"
LAYOUT_FIX = "Sort the images into one folder per class, or pass a CSV with the columns path and label"


FRAME_LAYOUT = "table"  # of a DataFrame
LAYOUTS = ("auto", "folders", "split_folders", "csv", "hdf5", *PUBLIC_DATASETS)


@dataclass(frozen=True)
class DetectedDataset:
    """Detected data: its layout, the path of the folder or table, its class folders, and the table of the user."""

    layout: str
    path: Path
    folders: tuple[ClassFolder, ...] = ()
    table: pd.DataFrame | None = field(default=None, compare=False)

    @property
    def source(self) -> str:
        """Name of the folder or file, or folder of a DataFrame: the source of images that have no other."""
        if self.layout in ("csv", "hdf5"):
            return find_table_stem(self.path) or self.path.stem
        return (self.path if self.path.is_dir() else self.path.absolute().parent).resolve().name


@dataclass(frozen=True)
class DirectoryContent:
    """Folders and files at the top level of a data folder."""

    root: Path
    split_folders: tuple[str, ...]  # names in SPLIT_ALIASES
    other_folders: tuple[str, ...]
    loose_files: tuple[str, ...]
    label_tables: tuple[str, ...]  # loose files with a path column, and a label column or findings

    @property
    def class_folders(self) -> list[ClassFolder]:
        """Class folders in the split folders."""
        return [
            ClassFolder(f"{split}/{label}", label, SPLIT_ALIASES[split.casefold()])
            for split in self.split_folders
            for label in list_folders(str(self.root), split)
        ]


def detect_layout(data: str | Path, layout: str = "auto") -> DetectedDataset:
    """Return the layout of `data` and log it.

    Raises:
        DataError: The data fits several layouts, or not the given one.
    """
    if layout not in LAYOUTS:
        problem = f"no data format called {layout!r}{suggest_name(layout, LAYOUTS)}"
        raise RecipeError(problem, f"Choose one of {', '.join(LAYOUTS)}", code="E022")
    path = Path(data).expanduser()
    is_directory = _is_directory(path)
    if layout in PUBLIC_DATASETS:
        dataset = _require_public_dataset(path, layout)
    elif not is_directory:
        dataset = _detect_file(path, layout)
    else:
        detectors = {
            "auto": _detect_directory,
            "folders": _make_folder_dataset,
            "split_folders": _make_split_dataset,
            "csv": _make_table_dataset,
            "hdf5": _reject_folder,
        }
        dataset = detectors[layout](_read_directory(path))
        if output_folders := list_output_folders(str(path)):
            log.info("skipped %d %s: %s", len(output_folders), OUTPUT_FOLDERS, format_names(output_folders))
    log.info("data format: %s", _describe_dataset(dataset))
    return dataset


def has_class_folders(path: str | Path) -> bool:
    """Return whether a folder exists and has at least two class folders, also inside split folders."""
    if not Path(path).is_dir():
        return False
    content = _read_directory(Path(path))
    return len(content.other_folders) > 1 or len({folder.label for folder in content.class_folders}) > 1


def _is_directory(path: Path) -> bool:
    reject_missing_paths([path], MISSING_DATA_FIX)
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        problem = f"the folder cannot be read ({error.strerror})"
        raise InputMissingError(problem, "Check its name and its permissions", path=path, code="E026") from error


def _detect_file(path: Path, layout: str) -> DetectedDataset:
    if layout in ("auto", "hdf5") and is_hdf5(path):
        return DetectedDataset("hdf5", path)
    if layout == "auto" and (found := detect_public_datasets(path)):
        return DetectedDataset(*next(iter(found.items())))
    if layout not in ("auto", "csv"):
        expected = "a file made by `fastcxr pack`" if layout == "hdf5" else "a folder"
        problem = f"the path is a file, and the data format {layout} needs {expected}"
        raise DataError(problem, "Pass a folder, or omit `data_format`", path=path, code="E036")
    _reject_image_file(path)
    return DetectedDataset("csv", path)


def _reject_image_file(path: Path) -> None:
    try:
        with open_file(path) as file:
            kind = detect_format(file.read(HEAD_BYTES))
    except ImageError:  # the reader of the table raises an error
        return
    if kind:
        problem = f"the path is a {kind} image, expected a folder of images or a table"
        fix = "Pass the folder above the class folders, or a CSV with path and label"
        raise DataError(problem, fix, path=path, code="E028")


def _reject_folder(content: DirectoryContent) -> DetectedDataset:
    problem = "the path is a folder, and the data format hdf5 needs a file made by `fastcxr pack`"
    raise DataError(problem, "Pass the file, or omit `data_format`", path=content.root, code="E036")


def _require_public_dataset(path: Path, layout: str) -> DetectedDataset:
    dataset = PUBLIC_DATASETS[layout]
    location = dataset.detect(path)
    if location is None:
        problem = f"the data is not {dataset.title}, expected {dataset.required}"
        raise DataError(problem, "Pass its folder, or omit `data_format`", path=path, code="E036")
    return DetectedDataset(layout, location)


def _read_directory(root: Path) -> DirectoryContent:
    folders, loose_files = list_folders(str(root)), list_loose_files(str(root))
    return DirectoryContent(
        root,
        tuple(name for name in folders if name.casefold() in SPLIT_ALIASES),
        tuple(name for name in folders if name.casefold() not in SPLIT_ALIASES),
        tuple(loose_files),
        tuple(name for name in loose_files if is_label_table(root / name)),
    )


def _detect_directory(content: DirectoryContent) -> DetectedDataset:
    if found := detect_public_datasets(content.root):
        return _choose_public_dataset(content, found)
    if content.split_folders and content.other_folders:
        splits, classes = _quote_names(content.split_folders), _quote_names(content.other_folders)
        problem = f"the folder contains both splits ({splits}) and classes ({classes})"
        fix = (
            "Pass `data_format='split_folders'` to skip the classes, "
            "or `data_format='folders'` for one class per folder"
        )
        raise DataError(problem, fix, path=content.root, code="E019")
    if content.split_folders and content.class_folders:
        return _make_split_dataset(content)
    if content.label_tables and len(content.other_folders) < 2:
        return _make_table_dataset(content)
    return _make_split_dataset(content) if content.split_folders else _make_folder_dataset(content)


def _choose_public_dataset(content: DirectoryContent, found: dict[str, Path]) -> DetectedDataset:
    """Return the detected dataset; raise DataError if there are several, or a table that is not one of its files."""
    known_files = [pattern for name in found for pattern in (*PUBLIC_DATASETS[name].files, found[name].name)]
    other_files = [name for name in content.loose_files if not any(fnmatch(name, pattern) for pattern in known_files)]
    own_tables = [name for name in other_files if is_label_table(content.root / name)]
    layouts = [*found, *["csv"] * bool(own_tables)]
    if len(layouts) > 1:
        fix = f"Pass {' or '.join(f'`data_format={layout!r}`' for layout in layouts)}"
        problem = f"the folder fits several data formats: {format_names(layouts)}"
        raise DataError(problem, fix, path=content.root, code="E019")
    return DetectedDataset(*next(iter(found.items())))


def _make_split_dataset(content: DirectoryContent) -> DetectedDataset:
    class_folders = content.class_folders
    if not class_folders:
        splits = _quote_names(content.split_folders)
        problem = f"no class folders inside {splits}" if splits else "no folder called train"
        fix = "Sort the images as train/<class>/, or pass a CSV with the columns path and label"
        raise DataError(problem + _describe_other_tables(content), fix, path=content.root, code="E036")
    stray_files = [
        f"{split}/{name}" for split in content.split_folders for name in list_loose_files(str(content.root), split)
    ]
    if stray_files:
        count = pluralize(len(stray_files), "file")
        log.warning("skipped %s outside class folders: %s", count, format_names(stray_files))
    _log_ignored(content, [*content.other_folders, *content.loose_files])
    return DetectedDataset("split_folders", content.root, tuple(class_folders))


def _make_folder_dataset(content: DirectoryContent) -> DetectedDataset:
    names = sorted([*content.split_folders, *content.other_folders])
    if not names:
        n_files = len(content.loose_files)
        problem = f"0 images in class folders; {n_files:,} files are outside" if n_files else "0 images"
        raise InputMissingError(problem + _describe_other_tables(content), LAYOUT_FIX, path=content.root, code="E002")
    if len(names) == 1 and len(subfolders := list_folders(str(content.root), names[0])) > 1:
        problem = f"only one class, the folder {names[0]!r}, with subfolders ({format_names(map(repr, subfolders), 5)})"
        fix = f"If the subfolders are the classes, pass `data={str(content.root / names[0])!r}`"
        raise DataError(problem, fix, path=content.root, code="E003")
    if len(names) == 1 and (table_text := _describe_other_tables(content)):
        problem = f"only one class, the folder {names[0]!r}{table_text}"
        raise DataError(problem, LAYOUT_FIX, path=content.root, code="E003")
    _log_ignored(content, content.loose_files)
    return DetectedDataset("folders", content.root, tuple(ClassFolder(name, name) for name in names))


def _make_table_dataset(content: DirectoryContent) -> DetectedDataset:
    if len(content.label_tables) == 1:
        _log_ignored(content, [name for name in content.loose_files if name not in content.label_tables])
        return DetectedDataset("csv", content.root / content.label_tables[0])
    if content.label_tables:
        problem = f"several tables with path and label: {_quote_names(content.label_tables)}"
        raise DataError(problem, "Pass one of them as `data`", path=content.root, code="E035")
    problem = "no table with the columns path and label" + _describe_other_tables(content)
    raise DataError(problem, "Pass a CSV with the columns path and label", path=content.root, code="E036")


def _describe_other_tables(content: DirectoryContent) -> str:
    """Return `; x.csv has the columns ...` for the first table without path and label, or an empty text."""
    for name in content.loose_files:
        if is_table_name(name) and name not in content.label_tables:
            return f"; {name} has the columns {format_names(map(repr, read_header(content.root / name)), 8)}"
    return ""


def _log_ignored(content: DirectoryContent, names: list[str] | tuple[str, ...]) -> None:
    for table in set(names) & set(content.label_tables):
        log.warning("%s is ignored although it has the columns path and label: pass it as `data` to use it", table)
    if names:
        log.info("skipped %d other files and folders: %s", len(names), format_names(names))


def _quote_names(names: tuple[str, ...]) -> str:
    return format_names(map(repr, names), 5)


def _describe_dataset(dataset: DetectedDataset) -> str:
    if dataset.layout == "csv":
        return f"the table {dataset.path.name}"
    if dataset.layout == "hdf5":
        return f"a packed dataset ({dataset.path.name})"
    if dataset.layout in PUBLIC_DATASETS:
        file_name = f" ({dataset.path.name})" if dataset.path.is_file() else ""
        return PUBLIC_DATASETS[dataset.layout].title + file_name
    labels = format_names(sorted({folder.label for folder in dataset.folders}))
    if dataset.layout == "folders":
        return f"class folders {labels}"
    splits = sorted({folder.path.split("/")[0] for folder in dataset.folders})
    return f"class folders {labels} below {format_names(splits)}"
