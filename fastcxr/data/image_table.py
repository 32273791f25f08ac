"""Images to predict or explain, as a table: files, folders, packed datasets, arrays and Pillow images."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fastcxr.data.imaging.memory import MemoryImage
from fastcxr.data.imaging.sniff import looks_like_image
from fastcxr.data.readers.folders import list_files_below
from fastcxr.data.readers.hdf5 import is_hdf5, read_packed_manifest
from fastcxr.data.relative_paths import make_paths_relative
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names, to_text

log = logging.getLogger("fastcxr")
ImageInput = str | Path | np.ndarray | Image.Image
COLUMNS = ("source", "path", "file")
MEMORY_SOURCE = "memory"  # source of images that are in no file


def make_image_table(images: pd.DataFrame | ImageInput | Iterable[ImageInput]) -> pd.DataFrame:
    """Return images as a table with one row per image and the columns source, path and file.

    A missing file keeps its row: the error is reported when the image is read.

    Args:
        images: one of these, or several: a file; a folder, for all images below it; a packed dataset; a gray array,
            shape (height, width), with the path `array-0`; a Pillow image. A manifest is returned unchanged.

    Raises:
        DataError: an input of another type, an array of another shape, or a table without files.
        InputMissingError: there is no image.
    """
    if isinstance(images, pd.DataFrame):
        return _validate_table(images)
    inputs = [images] if isinstance(images, ImageInput) or not isinstance(images, Iterable) else list(images)
    rows = [row for number, image in enumerate(inputs) for row in _list_rows(image, number)]
    if not rows:
        problem = f"0 images in {format_names(map(str, inputs)) or 'an empty list'}"
        raise InputMissingError(problem, "Pass images, or folders of images", code="E002")
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype="object")
    has_files_only = all(isinstance(file, str) for _, _, file in rows)
    text_columns = COLUMNS if has_files_only else COLUMNS[:2]
    return table.assign(**{name: to_text(table[name]) for name in text_columns})


def _validate_table(table: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in COLUMNS if name not in table]:
        problem = f"the table of images has no column {format_names(map(repr, missing))}"
        raise DataError(problem, "Pass read_manifest(table), or list(table['path'])", code="E011")
    return table


def _list_rows(image: object, number: int) -> Iterator[tuple[str, str, str | MemoryImage]]:
    """Yield source, path and file of the images of one input, which is at position `number`."""
    if isinstance(image, np.ndarray | Image.Image):
        name = _make_memory_name(image, number)
        yield MEMORY_SOURCE, name, MemoryImage(name, image)
    elif isinstance(image, str | Path) and str(image).strip():  # an empty name would be the current folder
        yield from _list_files(Path(image).expanduser())
    else:
        problem = f"image {number} is {image!r:.40}, expected a path, a gray array or a Pillow image"
        raise DataError(problem, "Pass one of them, or a list of them", code="E128")


def _make_memory_name(image: np.ndarray | Image.Image, number: int) -> str:
    if isinstance(image, np.ndarray):
        return f"array-{number}"
    return Path(str(getattr(image, "filename", ""))).name or f"image-{number}"


def _list_files(path: Path) -> Iterator[tuple[str, str, str]]:
    if path.is_dir():
        source, root = path.resolve().name, path.absolute()
        yield from ((source, below, f"{root}/{below}") for below in list_images_below(root))
    elif is_hdf5(path):
        packed = make_paths_relative(read_packed_manifest(path)[list(COLUMNS)])
        yield from packed.itertuples(index=False, name=None)
    else:
        yield path.absolute().parent.name, path.name, str(path.absolute())


def list_images_below(root: Path) -> list[str]:
    """Return the files of a folder that look like images, as paths below it; log the number of others."""
    files = list_files_below(root)
    images = [path for path in files if looks_like_image(root / path)]
    if others := sorted(set(files) - set(images)):
        count = pluralize(len(others), "file")
        log.info("skipped %s in %s that are not images by name and content: %s", count, root.name, format_names(others))
    return images
