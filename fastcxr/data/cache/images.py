"""Image cache: decoded images of one size, each decoded once per machine.

Images are cached by content, size and reader version in the cache folder of the user, for all runs.
FASTCXR_CACHE_GB limits it (default: 20 GB). With 0, or if the folder cannot be used, a temporary folder is used until
the process ends.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import numpy as np

from fastcxr.data.cache.fill import ImageList, fill_cache
from fastcxr.data.cache.image_file import ImageStoreWriter, MappedImages
from fastcxr.data.cache.index import read_fitted_image
from fastcxr.data.cache.quota import (
    IMAGE_QUOTA_FRACTION,
    CacheDir,
    CannotStoreError,
    DamagedStoreError,
    evict,
    make_store_name,
    read_cache_limit,
    remove_if_empty,
    remove_if_unused,
    temporary_cache,
    user_cache,
)
from fastcxr.data.imaging.read import examine_images
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.threads import map_ahead
from fastcxr.progress.base import Progress

log = logging.getLogger("fastcxr")

CHUNK_BYTES = 1 << 24  # images that one thread reads at once
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class ImageCache:
    """Images of one dataset at one size; row i belongs to files[i]."""

    files: tuple[str, ...] = field(repr=False)
    size: int
    mapped: MappedImages | None = field(repr=False)  # None: no disk can store images
    locations: np.ndarray = field(repr=False)  # slot and checksum of each file, shape (n, 2); zeros: not stored
    depths: tuple[int | None, ...] = field(default=(), repr=False)  # bits of each image whose file states no depth
    remarks: Mapping[int, Remarks] = field(default_factory=dict, repr=False)  # by row

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the images of these rows in this order, uint8, shape (n, size, size).

        A damaged image is decoded again from its file, which may raise an ImageError.
        """
        rows = np.asarray(rows).reshape(-1)
        if rows.dtype.kind not in "iu" and len(rows):
            raise TypeError(f"rows must be integers, got {rows.dtype}")  # True would be row 1
        rows = rows.astype(np.int64)
        images = np.empty((len(rows), self.size, self.size), np.uint8)
        locations = self.locations[rows]
        is_intact = self.mapped.copy_images(locations, images) if self.mapped else np.zeros(len(rows), bool)
        damaged_rows = np.flatnonzero(~is_intact)
        if len(damaged_rows):
            self._decode_again(rows[damaged_rows], damaged_rows, images)
        return images

    @cached_property
    def row_by_file(self) -> Mapping[str, int]:
        """Row of each file; the last one of a file that is listed twice."""
        return {file: row for row, file in enumerate(self.files)}

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "row_by_file"}  # for worker processes

    def find_rows(self, files: Iterable[str]) -> np.ndarray | None:
        """Return the rows of these files, shape (n,), or None if one of them is missing."""
        try:
            return np.fromiter(map(self.row_by_file.__getitem__, files), np.int64)
        except KeyError:
            return None

    def select(self, files: Sequence[str], size: int) -> "ImageCache | None":
        """Return the cache of these files in this order, or None if it lacks one of them or has another size."""
        # a file of two sources may have been read with two bit depths
        if size != self.size or len(self.row_by_file) < len(self.files):
            return None
        rows = self.find_rows(files)
        if rows is None:
            return None
        if np.array_equal(rows, np.arange(len(self.files))):
            return self
        depths = tuple(self.depths[row] for row in rows.tolist()) if self.depths else ()
        remarks = {new: self.remarks[old] for new, old in enumerate(rows.tolist()) if old in self.remarks}
        return ImageCache(tuple(files), size, self.mapped, self.locations[rows], depths, remarks)

    def log_warnings(self, *, again: bool = True) -> None:
        """Log each warning of the decoders once, with the number of images; see `log_counted_warnings`."""
        log_counted_warnings(((self.files[row], remarks) for row, remarks in sorted(self.remarks.items())), again=again)

    def hash_images(self) -> list[str]:
        """Return a hash of each image, equal for equal images of this size in other datasets."""
        hashes = self.map_chunks(lambda _, images: [hashlib.sha256(one.data).hexdigest()[:32] for one in images])
        return [image_hash for chunk in hashes for image_hash in chunk]

    def map_chunks(self, function: Callable[[slice, np.ndarray], Result]) -> Iterator[Result]:
        """Yield function(rows, images) for CHUNK_BYTES of images at a time, in order, computed by all cores."""
        n_images, n_rows = len(self.files), max(1, CHUNK_BYTES // self.size**2)
        chunks = [slice(start, min(start + n_rows, n_images)) for start in range(0, n_images, n_rows)]
        n_threads = count_cpus() if self.mapped else 1  # files are decoded by all cores already
        return map_ahead(
            lambda rows: function(rows, self.read(range(rows.start, rows.stop))), chunks,
            n_threads=n_threads, n_ahead=n_threads,
        )  # fmt: skip

    def _decode_again(self, rows: np.ndarray, positions: np.ndarray, images: np.ndarray) -> None:
        with ThreadPoolExecutor(min(len(rows), count_cpus())) as pool:
            files, sizes = [self.files[row] for row in rows], [self.size] * len(rows)
            depths = [self.depths[row] if self.depths else None for row in rows]
            decoded = pool.map(read_fitted_image, files, sizes, depths)
            for row, position, image in zip(rows, positions, decoded, strict=True):
                images[position] = image
                slot, crc = self.locations[row].tolist()
                if slot and self.mapped:
                    self.mapped.repair(slot, crc, image)
        n_damaged = np.count_nonzero(self.locations[rows, 0])
        if n_damaged:
            log.warning("%s cached images are damaged, and are decoded again", f"{n_damaged:,}")


def open_image_cache(
    files: Sequence[str],
    size: int,
    progress: Progress | None = None,
    errors: list[ImageError] | None = None,
    depths: Sequence[int | None] | None = None,
) -> ImageCache:
    """Return the images of these files with `size` pixels per side, and decode those that are not cached.

    Args:
        files: Paths of the images.
        size: Pixels per side.
        progress: Progress display.
        errors: List to which the errors of unreadable files are added; without it the first one is raised.
        depths: Bits per pixel of each image with more than 8 bits whose file states no depth.
    """
    files = tuple(str(file) for file in files)
    depths = tuple([None] * len(files) if depths is None else depths)
    first_level = logging.WARNING if read_cache_limit() else logging.INFO
    for open_cache, level, text in (
        (user_cache, first_level, "images are not cached for the next run: %s"),
        (
            temporary_cache,
            logging.WARNING,
            "no temporary file can be created (%s): every image is decoded each time it is used, which is slow",
        ),
    ):
        try:
            return _open_in_cache(open_cache(), files, depths, size, progress, errors)
        except CannotStoreError as error:
            log.log(level, text, error)
    found = examine_images(files, depths, progress)
    for error in (one for one in found if isinstance(one, ImageError)):
        if errors is None:
            raise error
        errors.append(error)
    remarks = {row: one for row, one in enumerate(found) if isinstance(one, Remarks) and one != Remarks()}
    return ImageCache(files, size, None, np.zeros((len(files), 2), np.int64), depths, remarks)


def _open_in_cache(
    cache: CacheDir,
    files: tuple[str, ...],
    depths: tuple[int | None, ...],
    size: int,
    progress: Progress | None,
    errors: list[ImageError] | None,
) -> ImageCache:
    folder = cache.image_dir / make_store_name(size)
    make_space = partial(evict, limit=IMAGE_QUOTA_FRACTION * cache.max_bytes)
    for _ in range(2):
        try:
            with ImageStoreWriter(folder, size) as writer:
                locations = fill_cache(writer, ImageList(files, depths), make_space, progress, errors)
                if locations is not None:
                    remarks = writer.find_remarks(locations[:, 0])
                    return ImageCache(files, size, MappedImages(folder, size), locations, depths, remarks)
        except DamagedStoreError as error:
            log.warning("the image cache of %s px is damaged (%s): decoding again", size, error)
        except CannotStoreError:
            remove_if_empty(folder)
            raise
        if not remove_if_unused(folder):
            break
    raise CannotStoreError("the image caches that must be removed first are in use")
