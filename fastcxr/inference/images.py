"""Read the images that a model predicts: fitted to its size, from the image cache or decoded by several threads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from fastcxr.data.bit_depth import BitDepths, warn_unknown_sources
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks, collect_remarks, log_counted_warnings
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.threads import map_ahead

READ_BATCH_SIZE = 32
MAX_READER_THREADS = READ_BATCH_SIZE  # each holds a full-size image in memory
N_IMAGES_AHEAD = 3 * READ_BATCH_SIZE  # decoded while the network computes
N_CACHE_THREADS, N_CHUNKS_AHEAD = 2, 8  # read from the image cache while the network computes: a batch of a GPU

ImageOrError = np.ndarray | ImageError


def find_cached_remarks(files: Sequence[str], image_cache: ImageCache | None) -> dict[int, Remarks]:
    """Return the remarks on these files that the image cache has stored, by row."""
    if image_cache is None:
        return {}
    remarks_by_file = {image_cache.files[row]: one for row, one in image_cache.remarks.items()}
    return {row: remarks_by_file[file] for row, file in enumerate(files) if file in remarks_by_file}


def log_image_warnings(table: pd.DataFrame, remarks: Mapping[int, Remarks], depths: BitDepths) -> None:
    """Log the warnings of decoding, by row of the table, one line per type."""
    log_counted_warnings((table["path"].iloc[row], remark) for row, remark in sorted(remarks.items()))
    warn_unknown_sources(table, remarks, depths)


def read_fitted_images(
    files: Sequence[str],
    size: int,
    image_cache: ImageCache | None,
    depths: Sequence[int | None] | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[ImageOrError]:
    """Yield each image, shape (size, size), or its error: from the image cache if it has all files, else decoded.

    `depths`: bit depth of each image whose file does not state it. `remarks`: receives the warnings of decoding by row.
    """
    depths = [None] * len(files) if depths is None else depths
    remarks = {} if remarks is None else remarks
    cache_rows = image_cache.find_rows(files) if image_cache is not None and image_cache.size == size else None
    if image_cache is None or cache_rows is None:
        yield from _decode_ahead(range(len(files)), files, size, depths, remarks)
        return

    def read(start: int) -> np.ndarray | list[ImageOrError]:
        rows = range(start, min(start + READ_BATCH_SIZE, len(files)))
        try:
            return image_cache.read(cache_rows[rows.start : rows.stop])
        except ImageError:  # an image is damaged in the cache, and its file cannot be read: a row with an error
            return list(_decode_ahead(rows, files, size, depths, remarks))

    starts = range(0, len(files), READ_BATCH_SIZE)
    for images in map_ahead(read, starts, n_threads=N_CACHE_THREADS, n_ahead=N_CHUNKS_AHEAD):
        yield from images


def _decode_ahead(
    rows: Iterable[int], files: Sequence[str], size: int, depths: Sequence[int | None], remarks: dict[int, Remarks]
) -> Iterator[ImageOrError]:
    """Yield the images of these rows in order, decoded by all cores while the caller computes, in bounded memory."""

    def read(row: int) -> tuple[int, ImageOrError, Remarks]:
        return row, *_read_fitted_image(files[row], size, depths[row])

    n_threads = min(count_cpus(), MAX_READER_THREADS)
    for row, image, remark in map_ahead(read, rows, n_threads=n_threads, n_ahead=N_IMAGES_AHEAD):
        if remark != Remarks():
            remarks[row] = remark
        yield image


def _read_fitted_image(file: str, size: int, depth: int | None) -> tuple[ImageOrError, Remarks]:
    with collect_remarks() as remarks:
        try:
            return fit_square(read_image(file, depth), size), remarks
        except ImageError as error:
            return error, Remarks()
