"""Detect the layout of data: class folders, split folders with class folders, a CSV, or a known dataset.

Data that fits several layouts is an error; --data-format selects one.
"""

import logging
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from itertools import islice
from pathlib import Path

import pandas as pd

from fastcxr.data.imaging.sniff import looks_like_image
from fastcxr.data.readers.copies import leave_out_copies
from fastcxr.data.readers.csv_table import is_label_table
from fastcxr.data.readers.folders import (
    OUTPUT_FOLDERS,
    ClassFolder,
    find_split_folders,
    list_folders,
    list_loose_files,
    list_output_folders,
)
from fastcxr.data.readers.hdf5 import is_hdf5
from fastcxr.data.readers.label_tables import find_tables
from fastcxr.data.readers.masks import is_mask_folder, log_masks
from fastcxr.data.readers.name_signs import find_name_sign, has_label_word
from fastcxr.data.readers.registry import PUBLIC_DATASETS, detect_public_datasets, find_public_dataset
from fastcxr.data.readers.signs import (
    describe_tables,
    make_table_fix,
    reject_doubtful_classes,
)
from fastcxr.data.readers.table_columns import has_role
from fastcxr.data.readers.unsupported import reject_archives, reject_unsupported_file
from fastcxr.data.readers.visible_files import iterate_files, list_only_folders
from fastcxr.errors import DataError, InputMissingError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.paths import reject_missing_paths
from fastcxr.io.tables import find_table_stem, format_names, is_table_name, read_header, suggest_name

log = logging.getLogger("fastcxr")
MAX_COLUMNS = 8  # of a table, named in a message
MAX_SAMPLED_IMAGES = 20  # searched for in the tables above a folder without classes
MISSING_DATA_FIX = "Check the name given as `data`"
LAYOUT_FIX = "Sort the images into one folder per class, or pass a CSV with the columns path and label"
SPLIT_FIX = "Sort the images as train/<class>/, or pass a CSV with the columns path and label"


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
    split_folders: dict[str, str]  # split of each, see find_split_folders
    mask_folders: tuple[str, ...]
    other_folders: tuple[str, ...]
    loose_files: tuple[str, ...]

    @cached_property
    def label_tables(self) -> list[str]:
        """Loose files with a path column, and a label column or findings; a table without a label column is read."""
        return [name for name in self.loose_files if is_label_table(self.root / name)]

    @property
    def class_folders(self) -> list[ClassFolder]:
        """Class folders in the split folders."""
        return [
            ClassFolder(f"{name}/{label}", label, split)
            for name, split in self.split_folders.items()
            for label in list_folders(str(self.root), name)
            if not is_mask_folder(label)
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
        content = _read_directory(path)
        dataset = detectors[layout](content if layout == "hdf5" else _enter_only_folder(content))
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
    reject_unsupported_file(path)
    return DetectedDataset("csv", path)


def _reject_folder(content: DirectoryContent) -> DetectedDataset:
    problem = "the path is a folder, and the data format hdf5 needs a file made by `fastcxr pack`"
    raise DataError(problem, "Pass the file, or omit `data_format`", path=content.root, code="E036")


def _require_public_dataset(path: Path, layout: str) -> DetectedDataset:
    dataset = PUBLIC_DATASETS[layout]
    location = find_public_dataset(layout, path)
    if location is None:
        problem = f"the data is not {dataset.title}, expected {dataset.required}"
        raise DataError(problem, "Pass its folder, or omit `data_format`", path=path, code="E036")
    return DetectedDataset(layout, location)


def _read_directory(root: Path) -> DirectoryContent:
    folders, loose_files = list_folders(str(root)), list_loose_files(str(root))
    splits = find_split_folders(folders)
    others = [name for name in folders if name not in splits]
    return DirectoryContent(
        root,
        splits,
        tuple(filter(is_mask_folder, others)),
        tuple(name for name in others if not is_mask_folder(name)),
        tuple(loose_files),
    )


def _enter_only_folder(content: DirectoryContent) -> DirectoryContent:
    """Return the content of the first folder with class folders or tables, of those that each contain only the next.

    The only folder may also be a class with subfolders. Its name decides, or else the names of the subfolders.
    """
    for path in list_only_folders(content.root)[1:]:
        inner = _read_directory(path)
        names = (*inner.split_folders, *inner.other_folders)
        is_class = has_label_word(path.name) and not any(map(has_label_word, names)) and not inner.split_folders
        if inner.label_tables or (len(names) > 1 and not is_class):
            parents = [parent for parent in path.parents if parent == content.root or content.root in parent.parents]
            for masks in filter(None, (_read_directory(parent).mask_folders for parent in parents)):
                log.info("skipped %d mask folders: %s", len(masks), format_names(masks))
            log.info("data folder: %s, the only folder in %s", path.relative_to(content.root), content.root)
            return inner
    return content


def _detect_directory(content: DirectoryContent) -> DetectedDataset:
    if found := detect_public_datasets(content.root):
        return _choose_public_dataset(content, found)
    content = _leave_out_copies(content)
    if content.split_folders and content.other_folders:
        splits, classes = _quote_names(content.split_folders), _quote_names(content.other_folders)
        problem = f"the folder contains both splits ({splits}) and classes ({classes})"
        fix = (
            "Pass `data_format='split_folders'` to skip the classes, "
            "or `data_format='folders'` for one class per folder"
        )
        raise DataError(problem, fix, path=content.root, code="E019")
    if content.label_tables and len(content.other_folders) < 2 and not content.class_folders:
        return _make_table_dataset(content)
    if content.split_folders:
        dataset = _make_split_dataset(content)
    else:
        dataset = _make_folder_dataset(_leave_out_masks(content))
        _reject_only_folder(content, dataset)
    reject_doubtful_classes(content.root, dataset.folders, dataset.layout)
    return dataset


def _leave_out_copies(content: DirectoryContent) -> DirectoryContent:
    """Return the content without folders that are copies of those beside them."""
    names = set(leave_out_copies(content.root, [*content.split_folders, *content.other_folders]))
    splits = {name: split for name, split in content.split_folders.items() if name in names}
    return replace(
        content, split_folders=splits, other_folders=tuple(filter(names.__contains__, content.other_folders))
    )


def _leave_out_masks(content: DirectoryContent) -> DirectoryContent:
    """Return the content without the mask folders beside class folders, and log the number of their files."""
    if not content.mask_folders or not content.other_folders:
        return content
    n_files = sum(1 for name in content.mask_folders for _ in iterate_files(content.root / name))
    log_masks(n_files, content.mask_folders)
    return replace(content, mask_folders=())


def _choose_public_dataset(content: DirectoryContent, found: dict[str, Path]) -> DetectedDataset:
    """Return the detected dataset; raise DataError if there are several, or a table that is not one of its files."""
    if len(set(found.values())) > 1:
        problem = f"the folder contains several public datasets: {format_names(found)}"
        fix = f"Pass one of them, such as `data={str(next(iter(found.values())))!r}`"
        raise DataError(problem, fix, path=content.root, code="E019")
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
        table_text, fix = _describe_tables(content, SPLIT_FIX)
        raise DataError(problem + table_text, fix, path=content.root, code="E036")
    stray_files = [
        f"{split}/{name}" for split in content.split_folders for name in list_loose_files(str(content.root), split)
    ]
    if stray_files:
        count = pluralize(len(stray_files), "file")
        log.warning("skipped %s outside class folders: %s", count, format_names(stray_files))
    _log_ignored(content, [*content.other_folders, *content.loose_files])
    return DetectedDataset("split_folders", content.root, tuple(class_folders))


def _make_folder_dataset(content: DirectoryContent) -> DetectedDataset:
    names = sorted([*content.split_folders, *content.mask_folders, *content.other_folders])
    if not names:
        reject_archives(content.root, content.loose_files)
        n_files = len(content.loose_files)
        problem = f"0 images in class folders; {n_files:,} files are outside" if n_files else "0 images"
        table_text, fix = _describe_tables(content, LAYOUT_FIX)
        raise InputMissingError(problem + table_text, fix, path=content.root, code="E002")
    _log_ignored(content, content.loose_files)
    return DetectedDataset("folders", content.root, tuple(ClassFolder(name, name) for name in names))


def _reject_only_folder(content: DirectoryContent, dataset: DetectedDataset) -> None:
    """Raise DataError if the classes may be subfolders of the only class folder, or the labels of a table."""
    if len(dataset.folders) > 1:
        return
    (name,) = (folder.path for folder in dataset.folders)
    subfolders, (table_text, fix) = list_folders(str(content.root), name), _describe_tables(content, LAYOUT_FIX)
    problem = f"only one class, the folder {name!r}"
    if len(subfolders) > 1:
        problem += f", with subfolders ({format_names(map(repr, subfolders), 5)})"
        if find_name_sign(subfolders) is None:
            fix = f"If the subfolders are the classes, pass `data={str(content.root / name)!r}`"
    if len(subfolders) > 1 or table_text:
        raise DataError(problem + table_text, fix, path=content.root, code="E003")


def _describe_tables(content: DirectoryContent, fix: str) -> tuple[str, str]:
    """Return a text on the tables that name the images of a folder without class folders, and the fix.

    Without such tables, the text is on another table of the folder, and the fix is the one given.
    """
    images = islice(filter(looks_like_image, iterate_files(content.root)), MAX_SAMPLED_IMAGES)
    tables = find_tables(content.root, list(images))
    text = describe_tables(tables) if tables else _describe_other_tables(content)
    return text, make_table_fix(content.root, tables, fix)


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
            return f"; {name} has the columns {format_names(map(repr, read_header(content.root / name)), MAX_COLUMNS)}"
    return ""


def _log_ignored(content: DirectoryContent, names: list[str] | tuple[str, ...]) -> None:
    for table in set(names) & set(content.label_tables):
        header = read_header(content.root / table)
        columns = "path and label" if has_role(header, "label") else format_names(header, MAX_COLUMNS)
        log.warning("%s is ignored although it has the columns %s: pass it as `data` to use it", table, columns)
    if names:
        log.info("skipped %d other files and folders: %s", len(names), format_names(names))


def _quote_names(names: Iterable[str]) -> str:
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
