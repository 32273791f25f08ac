"""Write the images, labels and patients of a manifest to one HDF5 file, atomically.

Images keep their sizes by default: nothing is resampled twice, and training uses the same pixels as from the folder.
With a size, images become padded squares in one array, which other programs can read easily. The file is uncompressed:
reading an image is several times as fast as decoding it, at one byte per pixel on disk.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

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
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    import h5py

log = logging.getLogger("fastcxr")

BATCH_IMAGES = 64  # in memory at the same time
STANDARD_COLUMNS = ("source", "path", "label", "patient", "split", "file")  # all others are additional columns


def pack_dataset(
    manifest: pd.DataFrame,
    output: str | Path,
    *,
    size: int | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write every image of the manifest, in its order, with all columns, and return the path of the file.

    `size`: side of padded squares [pixels]; without it, each image keeps its size. Raises BadImagesError, and writes no
    file, if images are unreadable, unless `skip_bad` is true and other images are readable.
    """
    path, h5py = Path(output), import_h5py()
    if path.suffix.casefold() not in HDF5_SUFFIXES:
        fix = f"Name the file {path.stem or 'dataset'}.h5"
        raise OutputError("the name of a packed dataset must end in .h5 or .hdf5", fix, path=path)
    if size is not None and size < 16:
        raise RecipeError(f"size is {size}, it must be at least 16", "Choose a larger size, or none to keep all pixels")
    with atomic_file(path) as temporary_path, h5py.File(temporary_path, "w") as h5_file:
        manifest, packed_rows, errors = _write_images(h5_file, manifest, size, progress or Progress())
        if errors and not (skip_bad and packed_rows):
            raise BadImagesError(replace_error_paths(errors, manifest))
        _write_table_datasets(h5_file, manifest.iloc[packed_rows])
    if errors:
        path_by_file = dict(zip(manifest["file"], manifest["path"], strict=True))
        examples = format_names((f"{path_by_file.get(error.path, '')} ({error.problem})" for error in errors), 5)
        log.warning("left out %s: %s", pluralize(len(errors), "unreadable image"), examples)
    count = pluralize(len(packed_rows), "image")
    log.info("packed %s into %s, %.1f MB", count, path.name, path.stat().st_size / 1e6)
    return path


def shuffle_rows(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows in a random order."""
    return manifest.iloc[np.random.default_rng(seed).permutation(len(manifest))].reset_index(drop=True)


def _write_images(
    h5_file: "h5py.File", manifest: pd.DataFrame, size: int | None, progress: Progress
) -> tuple[pd.DataFrame, list[int], list[ImageError]]:
    """Write the images; return the manifest with bit depths, the positions of the written rows, and the errors.

    Images without a known bit depth are written last, after the depth of their source is determined.
    """
    images, shapes = _create_image_datasets(h5_file, len(manifest), size)

    def write_image(slot: int, image: np.ndarray) -> None:
        images[slot] = image if size else image.ravel()
        shapes[slot] = image.shape

    files, depths = manifest["file"].tolist(), read_depths(manifest) or [None] * len(manifest)
    slots: dict[int, int] = {}  # place in the file of each readable row
    errors: list[ImageError] = []
    remarks: dict[int, Remarks] = {}
    peaks: dict[int, int] = {}  # of the rows without a known bit depth
    with progress.bar(len(manifest), "packing images") as bar:
        for row, read in enumerate(_read_images(files, depths, size)):
            bar.advance()
            if isinstance(read, ImageError):
                errors.append(read)
                continue
            image, remarks[row] = read
            slots[row] = len(slots)
            if (peak := remarks[row].peak) is None or depths[row]:
                write_image(slots[row], image)
            else:
                peaks[row] = peak
    for dataset in (images, shapes):
        dataset.resize(len(slots), axis=0)
    if peaks:
        decided = decide_depths(manifest["source"].iloc[list(peaks)], list(peaks.values()))
        manifest = write_depths(manifest, list(peaks), decided)
        depths = read_depths(manifest) or depths
        again = _read_images([files[row] for row in peaks], [depths[row] for row in peaks], size)
        for row, read in zip(peaks, again, strict=True):
            if isinstance(read, ImageError):  # the file has changed since it was first read
                raise read
            image, remarks[row] = read
            write_image(slots[row], image)
    log_counted_warnings((files[row], one) for row, one in remarks.items())
    return manifest, list(slots), errors


def _create_image_datasets(
    h5_file: "h5py.File", n_images: int, size: int | None
) -> tuple["h5py.Dataset", "h5py.Dataset"]:
    import h5py

    create = h5_file.create_dataset
    shapes = create("shapes", (n_images, 2), "int32", maxshape=(None, 2), chunks=(1024, 2))
    if size:
        side = (size, size)
        return create("images", (n_images, *side), "uint8", maxshape=(None, *side), chunks=(1, *side)), shapes
    return create("images", (n_images,), h5py.vlen_dtype(np.uint8), maxshape=(None,), chunks=(1024,)), shapes


def _read_images(
    files: list[str], depths: Sequence[int | None], size: int | None
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
        checksums = list(
            pool.map(lambda f: read_packed_checksum(f) if parse_reference(f) else compute_sha256(f), rows["file"])
        )
    columns = {"names": rows["path"], "patients": rows["patient"], "sources": rows["source"], "splits": rows["split"]}
    for name, cells in {**columns, "classes": classes, "sha256": checksums}.items():
        _write_text_dataset(h5_file, name, cells)
    extra_columns = h5_file.create_group("columns")
    for name in rows.columns:
        if name not in STANDARD_COLUMNS and "/" not in name:  # a slash would create an HDF5 group
            _write_text_dataset(extra_columns, name, rows[name])


def _write_text_dataset(group: "h5py.Group", name: str, cells: Iterable[str | float | None]) -> None:
    import h5py

    values = ["" if pd.isna(cell) else str(cell) for cell in cells]
    group.create_dataset(name, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
