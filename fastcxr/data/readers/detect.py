"""A folder or a file comes in; how it is laid out goes out: class folders, splits of them, a CSV, a known collection.

What could be read in two ways is an error that names both; a person may force either.
"""

import logging
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fastcxr.data.imaging.sniff import HEAD, find_kind, open_file
from fastcxr.data.readers import cohen, coronahack, covidx
from fastcxr.data.readers.folders import OWN, SPLIT_NAMES, ClassFolder, list_folders, list_loose, list_own
from fastcxr.data.readers.hdf5 import is_hdf5, read_packed
from fastcxr.errors import DataError, ImageError, InputMissingError, RecipeError
from fastcxr.io.tables import find_column, name_some, read_header, suggest, suggest_sibling

log = logging.getLogger("fastcxr")
TABLE_SUFFIXES = (".csv", ".tsv")
TWO_WAYS = "Sort the images into one folder a class, or give a CSV with the columns path and label"
COLLECTION_TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Collection:
    """A layout of its own: its words, how to recognise it, and what reads it."""

    title: str
    wanted: str  # what must be there, for the error of who forces it
    find: Callable[[Path], Path | None]  # from what --data names to what `read` takes
    read: Callable[[Path], pd.DataFrame]


def _find_table(columns: Iterable[str]) -> Callable[[Path], Path | None]:
    """Recognises a table with these columns, or the folder that it lies in."""

    def find(path: Path) -> Path | None:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        tables = [file for file in files if file.suffix.casefold() in COLLECTION_TABLE_SUFFIXES and file.is_file()]
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


LAYOUTS = ("auto", "folders", "split_folders", "csv", *SHELF)


@dataclass(frozen=True)
class Cohort:
    """Data that was recognised: its layout, the folder or table it is in, and its class folders."""

    layout: str
    path: Path
    folders: tuple[ClassFolder, ...] = ()

    @property
    def source(self) -> str:
        """What its images come from, unless they say so themselves: the folder's name, or the table's."""
        if self.layout in ("csv", "hdf5"):
            return self.path.stem
        return (self.path if self.path.is_dir() else self.path.absolute().parent).resolve().name


@dataclass(frozen=True)
class Content:
    """What lies at the top of a data folder."""

    root: Path
    splits: tuple[str, ...]  # folders called train, valid, test or the like
    others: tuple[str, ...]
    loose: tuple[str, ...]
    tables: tuple[str, ...]  # loose files with the columns path and label

    @property
    def classes(self) -> list[ClassFolder]:
        """The class folders below the split folders."""
        return [
            ClassFolder(f"{split}/{label}", label, SPLIT_NAMES[split.casefold()])
            for split in self.splits
            for label in list_folders(str(self.root), split)
        ]


def find_layout(data: str | Path, layout: str = "auto") -> Cohort:
    """How `data` is laid out, said aloud. Raises DataError if it could be two things, or cannot be what is forced."""
    if layout not in LAYOUTS:
        near = suggest(layout, LAYOUTS)
        raise RecipeError(f"no layout called {layout!r}{near}", f"Choose one of {', '.join(LAYOUTS)}", code="E019")
    path = Path(data).expanduser()
    if not _is_folder(path):
        cohort = _take_file(path, layout)
    elif layout in SHELF:
        cohort = _take_collection(path, layout)
    else:
        take = {"auto": _recognise, "folders": _take_folders, "split_folders": _take_splits, "csv": _take_table}
        cohort = take[layout](_look_into(path))
        if own := list_own(str(path)):
            log.info(OWN, name_some(own))
    log.info("layout: %s", _describe(cohort))
    return cohort


def holds_class_folders(path: str | Path) -> bool:
    """Whether a folder is there with two classes or more in it, or in its splits."""
    if not Path(path).is_dir():
        return False
    content = _look_into(Path(path))
    return len(content.others) > 1 or len({folder.label for folder in content.classes}) > 1


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"no such file or folder{suggest_sibling(path)}"
        raise InputMissingError(what, "Check the name given as --data", path=path, code="E001") from error
    except OSError as error:
        what = f"the folder cannot be read ({error.strerror})"
        raise InputMissingError(what, "Check its name and its rights", path=path, code="E001") from error


def _take_file(path: Path, layout: str) -> Cohort:
    if layout in SHELF:
        return _take_collection(path, layout)
    if layout == "auto" and (found := find_collections(path)):
        return Cohort(*next(iter(found.items())))
    if layout not in ("auto", "csv"):
        what = f"a file, and the layout {layout} needs a folder"
        raise DataError(what, "Give a folder, or leave --layout out", path=path, code="E019")
    _refuse_image(path)
    return Cohort("csv", path)


def _refuse_image(path: Path) -> None:
    try:
        with open_file(path) as file:
            kind = find_kind(file.read(HEAD))
    except ImageError:  # whoever reads the table says so
        return
    if kind:
        what = f"a {kind} image, and data is a folder of images or a table of them"
        raise DataError(what, "Name the folder above its class folders, or a CSV with path and label", path=path,
                        code="E010")  # fmt: skip


def _take_collection(path: Path, layout: str) -> Cohort:
    collection = SHELF[layout]
    place = collection.find(path)
    if place is None:
        what = f"not laid out as {collection.title}: {collection.wanted} is not there"
        raise DataError(what, "Name its folder, or leave --layout out", path=path, code="E019")
    return Cohort(layout, place)


def _look_into(root: Path) -> Content:
    folders, loose = list_folders(str(root)), list_loose(str(root))
    return Content(
        root,
        tuple(name for name in folders if name.casefold() in SPLIT_NAMES),
        tuple(name for name in folders if name.casefold() not in SPLIT_NAMES),
        tuple(loose),
        tuple(name for name in loose if _is_table(root / name)),
    )


def _is_table(path: Path) -> bool:
    if path.suffix.casefold() not in TABLE_SUFFIXES or not path.is_file():
        return False
    header = read_header(path)
    return all(find_column(header, [name]) for name in ("path", "label"))


def _recognise(content: Content) -> Cohort:
    if known := find_collections(content.root):
        return _take_known(content, known)
    if content.splits and content.others:
        what = f"{_names(content.splits)} look like splits, {_names(content.others)} like classes"
        fix = "Say --layout split_folders to leave the others out, or --layout folders to take each folder as a class"
        raise DataError(what, fix, path=content.root, code="E019")
    if content.splits and content.classes:
        return _take_splits(content)
    if content.tables and len(content.others) < 2:
        return _take_table(content)
    return _take_splits(content) if content.splits else _take_folders(content)


def _take_known(content: Content, known: dict[str, Path]) -> Cohort:
    """The one collection that this is, unless it could be read in another way too."""
    ways = [*known, *(["csv"] if content.tables else []), *(["split_folders"] if content.classes else [])]
    if len(ways) > 1:
        what = f"can be read in several ways: {name_some(ways)}"
        raise DataError(what, f"Say --layout {' or --layout '.join(ways)}", path=content.root, code="E019")
    return Cohort(*next(iter(known.items())))


def _take_splits(content: Content) -> Cohort:
    classes = content.classes
    if not classes:
        what = f"no class folders inside {_names(content.splits)}" if content.splits else "no folder called train"
        fix = "Sort the images as train/<class>/, or give a CSV with the columns path and label"
        raise DataError(what + _name_tables(content), fix, path=content.root, code="E019")
    stray = [f"{split}/{name}" for split in content.splits for name in list_loose(str(content.root), split)]
    if stray:
        log.warning("%s files lie in no class folder and are left out: %s", f"{len(stray):,}", name_some(stray))
    _say_ignored(content, [*content.others, *content.loose])
    return Cohort("split_folders", content.root, tuple(classes))


def _take_folders(content: Content) -> Cohort:
    names = sorted([*content.splits, *content.others])
    if not names:
        what = f"0 images in class folders; {len(content.loose):,} files lie loose" if content.loose else "0 images"
        raise InputMissingError(what + _name_tables(content), TWO_WAYS, path=content.root, code="E002")
    if len(names) == 1 and len(below := list_folders(str(content.root), names[0])) > 1:
        what = f"one class only, the folder {names[0]!r}, with folders inside ({name_some(map(repr, below), 5)})"
        inner = content.root / names[0]
        raise DataError(what, f"If those are the classes, give --data {inner}", path=content.root, code="E003")
    if len(names) == 1 and (tables := _name_tables(content)):
        what = f"one class only, the folder {names[0]!r}{tables}"
        raise DataError(what, TWO_WAYS, path=content.root, code="E003")
    _say_ignored(content, content.loose)
    return Cohort("folders", content.root, tuple(ClassFolder(name, name) for name in names))


def _take_table(content: Content) -> Cohort:
    if len(content.tables) == 1:
        _say_ignored(content, [name for name in content.loose if name not in content.tables])
        return Cohort("csv", content.root / content.tables[0])
    if content.tables:
        what = f"several tables with path and label: {_names(content.tables)}"
        raise DataError(what, "Give the right one itself as --data", path=content.root, code="E019")
    what = "no table with the columns path and label" + _name_tables(content)
    raise DataError(what, "Give a CSV with the columns path and label", path=content.root, code="E019")


def _name_tables(content: Content) -> str:
    """`; x.csv has neither ...` for tables that are there and are none of images and labels."""
    near = [name for name in content.loose if Path(name).suffix.casefold() in TABLE_SUFFIXES]
    near = [name for name in near if name not in content.tables]
    if not near:
        return ""
    columns = name_some(map(repr, read_header(content.root / near[0])), 8)
    return f"; {near[0]} has the columns {columns}"


def _say_ignored(content: Content, names: list[str] | tuple[str, ...]) -> None:
    for table in set(names) & set(content.tables):
        log.warning("%s is left out, though it has the columns path and label: give it as --data to use it", table)
    if names:
        log.info("left out beside the images (%d): %s", len(names), name_some(names))


def _names(names: tuple[str, ...]) -> str:
    return name_some(map(repr, names), 5)


def _describe(cohort: Cohort) -> str:
    if cohort.layout == "csv":
        return f"the table {cohort.path.name}"
    if cohort.layout in SHELF:
        named = f" ({cohort.path.name})" if cohort.path.is_file() else ""
        return SHELF[cohort.layout].title + named
    labels = name_some(sorted({folder.label for folder in cohort.folders}))
    if cohort.layout == "folders":
        return f"class folders {labels}"
    splits = sorted({folder.path.split("/")[0] for folder in cohort.folders})
    return f"class folders {labels} below {name_some(splits)}"


def find_collections(path: Path) -> dict[str, Path]:
    """The collections that a folder or file can be read as, each with what its reader takes."""
    found = {name: collection.find(path) for name, collection in SHELF.items()}
    return {name: place for name, place in found.items() if place}
