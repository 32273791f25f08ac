"""A manifest comes in; one HDF5 file of its images, labels and patients, written whole or not at all, goes out.

Images keep their own sizes: nothing is resampled twice, and training from the file sees the very pixels that it would
read from the folder. With a size they become padded squares in one array, which any other program can read. The file
is not compressed: an image is then one copy, several times as fast as decoding it, at a byte a pixel on the disk.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastcxr.data.bit_depth import decide_depths, read_depths, write_depths
from fastcxr.data.imaging.read import fit_square, read_with_remarks
from fastcxr.data.imaging.sniff import Remarks, count_warnings
from fastcxr.data.manifest import name_in_data
from fastcxr.data.readers.hdf5 import FORMAT, SUFFIXES, VERSION, load_h5py, read_packed_checksum, read_reference
from fastcxr.errors import BadImagesError, ImageError, OutputError, RecipeError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import draft_beside, sha256_of
from fastcxr.io.tables import name_some
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    import h5py

log = logging.getLogger("fastcxr")

BATCH = 64  # images in memory at once
KNOWN = ("source", "path", "label", "patient", "split", "file")  # all others are further columns


def pack_cohort(
    manifest: pd.DataFrame,
    to: str | Path,
    *,
    size: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write every image of the manifest, in its order, with what is known of it; returns the path of the file.

    `size`: side of the padded square that images become; without it each keeps its own size.
    Raises BadImagesError with the whole list and writes nothing, unless bad images may be skipped.
    """
    path, h5py = Path(to), load_h5py()
    if path.suffix.casefold() not in SUFFIXES:
        raise OutputError("a packed cohort ends in .h5 or .hdf5", f"Call it {path.stem or 'cohort'}.h5", path=path)
    if size is not None and size < 16:
        raise RecipeError(f"size is {size}, it must be at least 16", "Give another size, or none to keep every pixel")
    with draft_beside(path) as draft, h5py.File(draft, "w") as content:
        manifest, packed, bad = _write_images(content, manifest, size, progress or Progress())
        if bad and not (skip_bad and packed):
            raise BadImagesError(name_in_data(bad, manifest))
        _write_table(content, manifest.iloc[packed])
    if bad:
        shown = dict(zip(manifest["file"], manifest["path"], strict=True))
        named = name_some((f"{shown.get(error.path, '')} ({error.what})" for error in bad), 5)
        log.warning("left out %s unreadable images: %s", f"{len(bad):,}", named)
    log.info("packed %s images into %s, %.1f MB", f"{len(packed):,}", path.name, path.stat().st_size / 1e6)
    return path


def shuffle_rows(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same rows in an order that the seed draws."""
    return manifest.iloc[np.random.default_rng(seed).permutation(len(manifest))].reset_index(drop=True)


def _write_images(
    content: "h5py.File", manifest: pd.DataFrame, size: int | None, progress: Progress
) -> tuple[pd.DataFrame, list[int], list[ImageError]]:
    """The manifest with bit depths, the places in it of the images that were written, and the errors of all others.

    Images without a bit depth are written after the others, when that of their source is decided.
    """
    add = _make_images(content, len(manifest), size)
    files, depths = manifest["file"].tolist(), read_depths(manifest) or [None] * len(manifest)
    packed, bad, remarks = [], [], {}
    with progress.bar(len(manifest), "packing images") as bar:
        for place, read in enumerate(_read_all(files, depths, size)):
            bar.advance()
            if isinstance(read, ImageError):
                bad.append(read)
                continue
            picture, remarks[place] = read
            if remarks[place].peak is None or depths[place]:
                add(len(packed), picture)
            packed.append(place)
    for name in ("images", "shapes"):
        content[name].resize(len(packed), axis=0)
    waiting = [place for place in packed if remarks[place].peak is not None and not depths[place]]
    if waiting:
        decided = decide_depths(manifest["source"].iloc[waiting], [remarks[place].peak for place in waiting])
        manifest = write_depths(manifest, waiting, decided)
        depths = read_depths(manifest)
        slots = {place: slot for slot, place in enumerate(packed)}
        again = _read_all([files[place] for place in waiting], [depths[place] for place in waiting], size)
        for place, read in zip(waiting, again, strict=True):
            if isinstance(read, ImageError):  # it was read a moment ago
                raise read
            picture, remarks[place] = read
            add(slots[place], picture)
    count_warnings((files[place], one) for place, one in remarks.items())
    return manifest, packed, bad


def _make_images(content: "h5py.File", number: int, size: int | None) -> Any:
    """Empty places for `number` images; returns what puts a picture into one."""
    import h5py

    shapes = content.create_dataset("shapes", (number, 2), "int32", maxshape=(None, 2), chunks=(1024, 2))
    if size:
        images = content.create_dataset("images", (number, size, size), "uint8", maxshape=(None, size, size),
                                        chunks=(1, size, size))  # fmt: skip
    else:
        images = content.create_dataset(
            "images", (number,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(1024,)
        )

    def add(place: int, picture: np.ndarray) -> None:
        images[place] = picture if size else picture.ravel()
        shapes[place] = picture.shape

    return add


def _read_all(
    files: list[str], depths: list[int | None], size: int | None
) -> Iterator[tuple[np.ndarray, Remarks] | ImageError]:
    def read(file: str, depth: int | None) -> tuple[np.ndarray, Remarks] | ImageError:
        try:
            picture, remarks = read_with_remarks(file, depth)
        except ImageError as error:
            return ImageError(error.what, error.fix, path=error.path, code=error.code)
        return fit_square(picture, size) if size else picture, remarks

    with ThreadPoolExecutor(count_cpus()) as pool:
        for start in range(0, len(files), BATCH):
            yield from pool.map(read, files[start : start + BATCH], depths[start : start + BATCH])


def _write_table(content: "h5py.File", rows: pd.DataFrame) -> None:
    content.attrs["format"], content.attrs["version"] = FORMAT, VERSION
    classes = sorted(rows["label"].unique())
    content["labels"] = rows["label"].map(classes.index).to_numpy("int64")
    with ThreadPoolExecutor(count_cpus()) as pool:
        checksums = list(pool.map(_checksum, rows["file"]))
    columns = {"names": rows["path"], "patients": rows["patient"], "sources": rows["source"], "splits": rows["split"]}
    for name, cells in {**columns, "classes": classes, "sha256": checksums}.items():
        _write_texts(content, name, cells)
    further = content.create_group("columns")
    for name in rows.columns:
        if name not in KNOWN and "/" not in name:  # a slash would be a group of that file
            _write_texts(further, name, rows[name])


def _checksum(file: str) -> str:
    return read_packed_checksum(file) if read_reference(file) else sha256_of(file)


def _write_texts(place: "h5py.Group", name: str, cells: Any) -> None:
    import h5py

    values = ["" if pd.isna(cell) else str(cell) for cell in cells]
    place.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
