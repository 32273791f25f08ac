"""Images to predict or explain, as a table: files, folders, packed datasets, and images and files in memory."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fastcxr.data.imaging.memory import FileInMemory, MemoryImage
from fastcxr.data.imaging.sniff import looks_like_image
from fastcxr.data.readers.folders import list_files_below, reject_non_utf8_names
from fastcxr.data.readers.hdf5 import is_hdf5, parse_reference, read_packed_manifest
from fastcxr.data.relative_paths import make_paths_relative
from fastcxr.errors import DataError, InputMissingError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.paths import reject_missing_paths
from fastcxr.io.tables import format_names, to_text

log = logging.getLogger("fastcxr")
ImageInput = str | Path | np.ndarray | Image.Image | FileInMemory
COLUMNS = ("source", "path", "file")
MEMORY_SOURCE = "memory"  # source of images that are in no file


def make_image_table(
    images: pd.DataFrame | ImageInput | Iterable[ImageInput], *, log_names: bool = True
) -> pd.DataFrame:
    """Return images as a table with one row per image and the columns source, path and file.

    `path` is unique and never absolute. For one folder or packed dataset it is the path below it. For files and for
    several arguments it is the argument as given, followed by the path below it; absolute arguments are shortened to
    the part below their common folder. A file that is named twice has one row. An unreadable file keeps its row: the
    error is reported when the image is read.

    Args:
        images: one of these, or several: a file; a folder, for all images below it; a packed dataset; a gray array,
            shape (height, width), with the path `array-0`; a Pillow image; a file in memory,
            FileInMemory(name, content), whose path is its name. A manifest is returned unchanged.
        log_names: whether messages contain file names.

    Raises:
        DataError: an input of another type, an array of another shape, a table without files, or a name of a file that
            is not UTF-8, which pandas with pyarrow cannot store.
        InputMissingError: there is no image, or a path does not exist.
        RecipeError: an empty path.
    """
    if isinstance(images, pd.DataFrame):
        return _validate_table(images)
    inputs = [images] if isinstance(images, ImageInput) or not isinstance(images, Iterable) else list(images)
    _reject_missing_inputs(inputs, log_names=log_names)
    rows = [
        row
        for number, image in enumerate(inputs)
        for row in _list_rows(image, number, is_only=len(inputs) == 1, log_names=log_names)
    ]
    if not rows:
        problem = f"0 images in {format_names(map(str, inputs)) or 'an empty list'}"
        raise InputMissingError(problem, "Pass images, or folders of images", code="E002")
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype="object")
    has_files_only = all(isinstance(file, str) for _, _, file in rows)
    text_columns = COLUMNS if has_files_only else COLUMNS[:2]
    table = table.assign(**{name: to_text(table[name]) for name in text_columns})
    is_repeated = table["file"].duplicated()
    if is_repeated.any():
        log.info("files named twice, with one row each: %s", f"{is_repeated.sum():,}")
    return make_paths_relative(table[~is_repeated].reset_index(drop=True))


def _validate_table(table: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in COLUMNS if name not in table]:
        problem = f"the table of images has no column {format_names(map(repr, missing))}"
        raise DataError(problem, "Pass read_manifest(table), or list(table['path'])", code="E011")
    return table


def _reject_missing_inputs(inputs: Iterable[object], *, log_names: bool) -> None:
    paths = [image for image in inputs if isinstance(image, str | Path) and str(image).strip()]
    references = [parse_reference(path) for path in paths]
    files = [reference[0] if reference else path for reference, path in zip(references, paths, strict=True)]
    reject_missing_paths(files, "Correct these paths, or leave them out", log_names=log_names)


def _list_rows(
    image: object, number: int, *, is_only: bool, log_names: bool
) -> Iterable[tuple[str, str, str | MemoryImage | FileInMemory]]:
    """Return source, path and file of the images of one input, which is at position `number`."""
    if isinstance(image, np.ndarray | Image.Image):
        name = _make_memory_name(image, number)
        return [(MEMORY_SOURCE, name, MemoryImage(name, image))]
    if isinstance(image, FileInMemory):
        return [(MEMORY_SOURCE, image.name, image)]
    if not isinstance(image, str | Path):
        problem = f"image {number} is {image!r:.40}, expected a path, a gray array, a Pillow image or a FileInMemory"
        raise DataError(problem, "Pass one of them, or a list of them", code="E128")
    if not str(image).strip():  # an empty name would mean the current folder
        raise RecipeError("an image argument is empty", "Pass a file or a folder; . is the current folder", code="E024")
    return _list_files(Path(image).expanduser(), is_only=is_only, log_names=log_names)


def _make_memory_name(image: np.ndarray | Image.Image, number: int) -> str:
    if isinstance(image, np.ndarray):
        return f"array-{number}"
    return Path(str(getattr(image, "filename", ""))).name or f"image-{number}"


def _list_files(path: Path, *, is_only: bool, log_names: bool) -> list[tuple[str, str, str]]:
    """Return source, path and file of each image of an argument; paths start with the argument unless `is_only`."""
    given, absolute = path.as_posix(), str(path.absolute())
    if path.is_dir():
        source, below = path.resolve().name, list_images_below(path.absolute(), log_names=log_names)
        prefix = "" if is_only else f"{given}/".removeprefix("./")
        return [(source, prefix + name, f"{absolute}/{name}") for name in below]
    reject_non_utf8_names(path.absolute().parent, [given])
    if not is_hdf5(path):
        return [(path.absolute().parent.name, given, absolute)]
    packed = make_paths_relative(read_packed_manifest(path)[list(COLUMNS)])
    if packed["path"].duplicated().any():  # unique only within a source
        packed = packed.assign(path=packed["source"] + "/" + packed["path"])
    packed = packed if is_only else packed.assign(path=f"{given}/" + packed["path"])
    return list(packed.itertuples(index=False, name=None))


def list_images_below(root: Path, *, log_names: bool = True) -> list[str]:
    """Return the files of a folder that look like images, as paths below it; log the number of others."""
    files = list_files_below(root, log_names=log_names)
    images = [path for path in files if looks_like_image(root / path)]
    if others := sorted(set(files) - set(images)):
        count = pluralize(len(others), "file that is not an image", "files that are not images")
        names = f" in {root.name}: {format_names(others)}" if log_names else ""
        log.info("skipped %s by name and content%s", count, names)
    return images
