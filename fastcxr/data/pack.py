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
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.data.manifest import replace_error_paths
from fastcxr.data.readers.hdf5 import (
    FORMAT_NAME,
    FORMAT_VERSION,
    HDF5_SUFFIXES,
    import_h5py,
    parse_reference,
    read_packed_checksum,
)
from fastcxr.errors import BadImagesError, ImageError, OutputError, RecipeError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import atomic_file, compute_sha256
from fastcxr.io.tables import format_names
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    import h5py

log = logging.getLogger("fastcxr")

BATCH_IMAGES = 64  # images in memory at once
STANDARD_COLUMNS = ("source", "path", "label", "patient", "split", "file")  # all others are further columns


def pack_dataset(
    manifest: pd.DataFrame,
    output: str | Path,
    *,
    size: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write every image of the manifest, in its order, with what is known of it; returns the path of the file.

    `size`: side of the padded square that images become; without it each keeps its own size.
    Raises BadImagesError with the whole list and writes nothing, unless bad images may be skipped.
    """
    path, h5py = Path(output), import_h5py()
    if path.suffix.casefold() not in HDF5_SUFFIXES:
        raise OutputError("a packed cohort ends in .h5 or .hdf5", f"Call it {path.stem or 'cohort'}.h5", path=path)
    if size is not None and size < 16:
        raise RecipeError(f"size is {size}, it must be at least 16", "Give another size, or none to keep every pixel")
    with atomic_file(path) as temporary_path, h5py.File(temporary_path, "w") as h5_file:
        manifest, packed_rows, errors = _write_images(h5_file, manifest, size, progress or Progress())
        if errors and not (skip_bad and packed_rows):
            raise BadImagesError(replace_error_paths(errors, manifest))
        _write_table_datasets(h5_file, manifest.iloc[packed_rows])
    if errors:
        path_by_file = dict(zip(manifest["file"], manifest["path"], strict=True))
        examples = format_names((f"{path_by_file.get(error.path, '')} ({error.problem})" for error in errors), 5)
        log.warning("left out %s unreadable images: %s", f"{len(errors):,}", examples)
    log.info("packed %s images into %s, %.1f MB", f"{len(packed_rows):,}", path.name, path.stat().st_size / 1e6)
    return path


def shuffle_rows(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same rows in an order that the seed draws."""
    return manifest.iloc[np.random.default_rng(seed).permutation(len(manifest))].reset_index(drop=True)


def _write_images(
    h5_file: "h5py.File", manifest: pd.DataFrame, size: int | None, progress: Progress
) -> tuple[pd.DataFrame, list[int], list[ImageError]]:
    """The manifest with bit depths, the places in it of the images that were written, and the errors of all others.

    Images without a bit depth are written after the others, when that of their source is decided.
    """
    write_image = _make_image_writer(h5_file, len(manifest), size)
    files, depths = manifest["file"].tolist(), read_depths(manifest) or [None] * len(manifest)
    packed_rows, errors, remarks = [], [], {}
    with progress.bar(len(manifest), "packing images") as bar:
        for row, read in enumerate(_read_images(files, depths, size)):
            bar.advance()
            if isinstance(read, ImageError):
                errors.append(read)
                continue
            image, remarks[row] = read
            if remarks[row].peak is None or depths[row]:
                write_image(len(packed_rows), image)
            packed_rows.append(row)
    for name in ("images", "shapes"):
        h5_file[name].resize(len(packed_rows), axis=0)
    waiting = [place for place in packed_rows if remarks[place].peak is not None and not depths[place]]
    if waiting:
        decided = decide_depths(manifest["source"].iloc[waiting], [remarks[place].peak for place in waiting])
        manifest = write_depths(manifest, waiting, decided)
        depths = read_depths(manifest)
        slots = {place: slot for slot, place in enumerate(packed_rows)}
        again = _read_images([files[place] for place in waiting], [depths[place] for place in waiting], size)
        for row, read in zip(waiting, again, strict=True):
            if isinstance(read, ImageError):  # it was read a moment ago
                raise read
            image, remarks[row] = read
            write_image(slots[row], image)
    log_counted_warnings((files[place], one) for place, one in remarks.items())
    return manifest, packed_rows, errors


def _make_image_writer(h5_file: "h5py.File", n_images: int, size: int | None) -> Any:
    """Empty places for `number` images; returns what puts a picture into one."""
    import h5py

    shapes = h5_file.create_dataset("shapes", (n_images, 2), "int32", maxshape=(None, 2), chunks=(1024, 2))
    if size:
        images = h5_file.create_dataset("images", (n_images, size, size), "uint8", maxshape=(None, size, size),
                                        chunks=(1, size, size))  # fmt: skip
    else:
        images = h5_file.create_dataset(
            "images", (n_images,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(1024,)
        )

    def add(index: int, image: np.ndarray) -> None:
        images[index] = image if size else image.ravel()
        shapes[index] = image.shape

    return add


def _read_images(
    files: list[str], depths: list[int | None], size: int | None
) -> Iterator[tuple[np.ndarray, Remarks] | ImageError]:
    def read(file: str, depth: int | None) -> tuple[np.ndarray, Remarks] | ImageError:
        try:
            image, remarks = read_with_remarks(file, depth)
        except ImageError as error:
            return ImageError(error.problem, error.fix, path=error.path, code=error.code)
        return fit_square(image, size) if size else image, remarks

    with ThreadPoolExecutor(count_cpus()) as pool:
        for start in range(0, len(files), BATCH_IMAGES):
            yield from pool.map(read, files[start : start + BATCH_IMAGES], depths[start : start + BATCH_IMAGES])


def _write_table_datasets(h5_file: "h5py.File", rows: pd.DataFrame) -> None:
    h5_file.attrs["format"], h5_file.attrs["version"] = FORMAT_NAME, FORMAT_VERSION
    classes = sorted(rows["label"].unique())
    h5_file["labels"] = rows["label"].map(classes.index).to_numpy("int64")
    with ThreadPoolExecutor(count_cpus()) as pool:
        checksums = list(pool.map(_find_file_checksum, rows["file"]))
    columns = {"names": rows["path"], "patients": rows["patient"], "sources": rows["source"], "splits": rows["split"]}
    for name, cells in {**columns, "classes": classes, "sha256": checksums}.items():
        _write_text_dataset(h5_file, name, cells)
    extra_columns = h5_file.create_group("columns")
    for name in rows.columns:
        if name not in STANDARD_COLUMNS and "/" not in name:  # a slash would be a group of that file
            _write_text_dataset(extra_columns, name, rows[name])


def _find_file_checksum(file: str) -> str:
    return read_packed_checksum(file) if parse_reference(file) else compute_sha256(file)


def _write_text_dataset(group: "h5py.Group", name: str, cells: Any) -> None:
    import h5py

    values = ["" if pd.isna(cell) else str(cell) for cell in cells]
    group.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
