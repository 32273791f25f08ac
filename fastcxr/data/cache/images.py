"""Image cache: decoded images of one size, each decoded once per machine.

Images are cached by content, size and reader version in the cache folder of the user, for all runs.
FASTCXR_CACHE_GB limits it (default: 20 GB). With 0, or if the folder cannot be used, a temporary folder is used until
the process ends.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from fastcxr.data.cache.image_file import ImageStoreWriter, MappedImages
from fastcxr.data.cache.index import NO_LOCATION, DecodedFile, decode, file_signature, read_fitted_image
from fastcxr.data.cache.quota import (
    IMAGE_QUOTA_FRACTION,
    CacheDir,
    CannotStoreError,
    DamagedStoreError,
    evict,
    make_store_name,
    read_cache_limit,
    remove_if_unused,
    temporary_cache,
    user_cache,
)
from fastcxr.data.imaging.read import copy_error, examine_images
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.threads import map_ahead
from fastcxr.progress.base import Bar, Progress

log = logging.getLogger("fastcxr")

WRITE_BATCH_BYTES = 1 << 24  # images stored in one transaction: a killed process loses at most one batch
CHUNK_BYTES = 1 << 24  # images that one thread reads at once
FILES_AHEAD_PER_THREAD = 4  # decoded files per thread that wait to be stored

FileAndDepth: TypeAlias = tuple[str, int | None]
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

    def select(self, files: Sequence[str], size: int) -> "ImageCache | None":
        """Return the cache of these files in this order, or None if it lacks one of them or has another size."""
        row_by_file = {file: row for row, file in enumerate(self.files)}
        # a file of two sources may have been read with two bit depths
        if size != self.size or len(row_by_file) < len(self.files) or not set(files) <= set(row_by_file):
            return None
        rows = [row_by_file[file] for file in files]
        depths = tuple(self.depths[row] for row in rows) if self.depths else ()
        remarks = {new: self.remarks[old] for new, old in enumerate(rows) if old in self.remarks}
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
                images = list(zip(files, depths, strict=True))
                locations = _decode_missing(writer, images, make_space, progress, errors)
                if locations is not None:
                    by_slot = writer.find_remarks()
                    slots = locations[:, 0].tolist()
                    remarks = {row: by_slot[slot] for row, slot in enumerate(slots) if slot in by_slot}
                    return ImageCache(files, size, MappedImages(folder, size), locations, depths, remarks)
        except DamagedStoreError as error:
            log.warning("the image cache of %s px is damaged (%s): decoding again", size, error)
        if not remove_if_unused(folder):
            break
    raise CannotStoreError("the image caches that must be removed first are in use")


def _decode_missing(
    writer: ImageStoreWriter,
    images: list[FileAndDepth],
    make_space: Callable[[Path, int, int], bool],
    progress: Progress | None,
    errors: list[ImageError] | None,
) -> np.ndarray | None:
    """Decode the files that are not cached; return all locations, or None if the cache must be emptied first."""
    if errors is not None:
        errors.clear()  # errors of a first attempt that failed
    locations = writer.find_locations(file_signature(file, depth) for file, depth in images)
    missing = np.flatnonzero(locations[:, 0] == 0)
    if not make_space(writer.folder, len(missing) * writer.size**2, len(locations) * writer.size**2):
        return None
    if len(missing):
        with (progress or Progress()).bar(len(missing), "reading images") as bar:
            locations[missing] = _decode_and_store(writer, [images[row] for row in missing], bar, errors)
    return locations


def _decode_and_store(
    writer: ImageStoreWriter, images: list[FileAndDepth], bar: Bar, errors: list[ImageError] | None
) -> np.ndarray:
    """Return slots and checksums of these files, shape (n, 2); zeros for files whose error is added to `errors`."""
    locations, batch_size = [], max(1, WRITE_BATCH_BYTES // writer.size**2)
    with closing(_decode_ahead(writer, images, bar, strict=errors is None)) as decoded_files:
        while batch := list(islice(decoded_files, batch_size)):
            stored = iter(writer.add([one for one in batch if isinstance(one, DecodedFile)]))
            locations += [next(stored) if isinstance(one, DecodedFile) else NO_LOCATION for one in batch]
            if errors is not None:
                errors += [one for one in batch if isinstance(one, ImageError)]
    return np.array(locations, np.int64)


def _decode_ahead(
    writer: ImageStoreWriter, images: list[FileAndDepth], bar: Bar, *, strict: bool
) -> Generator[DecodedFile | ImageError, None, None]:
    """Yield the decoded files in order; all cores decode a limited number of files ahead of the caller."""

    def decode_or_fail(image: FileAndDepth) -> DecodedFile | ImageError:
        file, depth = image
        try:
            return decode(file, writer.size, writer.is_known, depth)
        except ImageError as error:
            return copy_error(error)

    n_cores = count_cpus()
    decoded = map_ahead(decode_or_fail, images, n_threads=n_cores, n_ahead=FILES_AHEAD_PER_THREAD * n_cores)
    with closing(decoded):
        for one in decoded:
            if strict and isinstance(one, ImageError):
                raise one
            yield one
            bar.advance()
