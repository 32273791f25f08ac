"""The files of a cohort and a size come in; their squares, each decoded once on this machine, go out.

Squares are kept by content, size and reader in the user's cache folder, for all runs: see `fastcxr.data.cache`.
FASTCXR_CACHE_GB says how many GB may be kept there (20); with 0, or where the folder cannot be used, a temporary
one takes its place until the process ends.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from fastcxr.data.cache.image_file import ImageStoreWriter, MappedImages
from fastcxr.data.cache.index import DecodedFile, decode, file_signature, read_fitted_image
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
from fastcxr.data.imaging.read import examine_images
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Bar, Progress

log = logging.getLogger("fastcxr")

WRITE_BATCH_BYTES = 1 << 24  # of squares that become visible at once: what a killed process loses, and memory takes
CHUNK_IMAGES = 256  # squares in memory at once
FILES_AHEAD_PER_THREAD = 4  # files a thread that are read before their turn to be stored


@dataclass(frozen=True, eq=False)
class ImageCache:
    """The squares of one cohort at one size: row i belongs to files[i]."""

    files: tuple[str, ...] = field(repr=False)
    size: int
    mapped: MappedImages | None = field(repr=False)  # None: nothing could be stored
    locations: np.ndarray = field(repr=False)  # slot and checksum of each file, shape (n, 2); zeros: not stored
    depths: tuple[int | None, ...] = field(default=(), repr=False)  # bits of each image whose file states none
    remarks: Mapping[int, Remarks] = field(default_factory=dict, repr=False)  # on the images of these rows

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The squares of these rows, in this order; uint8, shape (n, size, size).

        A square that is not as it was stored is decoded again from its file. Raises ImageError where that fails.
        """
        rows = np.asarray(rows).reshape(-1)
        if rows.dtype.kind not in "iu" and len(rows):
            raise TypeError(f"rows are whole numbers, not {rows.dtype}")  # True would be row 1
        rows = rows.astype(np.int64)
        images = np.empty((len(rows), self.size, self.size), np.uint8)
        locations = self.locations[rows]
        is_intact = self.mapped.copy_images(locations, images) if self.mapped else np.zeros(len(rows), bool)
        damaged_rows = np.flatnonzero(~is_intact)
        if len(damaged_rows):
            self._decode_again(rows[damaged_rows], damaged_rows, images)
        return images

    def select(self, files: Sequence[str], size: int) -> "ImageCache | None":
        """The cache of these files in this order; None where it does not tell them, or has another size."""
        row_by_file = {file: row for row, file in enumerate(self.files)}
        # a file that two sources share may have been read at two bit depths
        if size != self.size or len(row_by_file) < len(self.files) or not set(files) <= set(row_by_file):
            return None
        rows = [row_by_file[file] for file in files]
        depths = tuple(self.depths[row] for row in rows) if self.depths else ()
        remarks = {new: self.remarks[old] for new, old in enumerate(rows) if old in self.remarks}
        return ImageCache(tuple(files), size, self.mapped, self.locations[rows], depths, remarks)

    def log_warnings(self, *, again: bool = True) -> None:
        """Log what decoding warned of, one line a kind with the number of images; see `log_counted_warnings`."""
        log_counted_warnings(((self.files[row], remarks) for row, remarks in sorted(self.remarks.items())), again=again)

    def hash_images(self) -> list[str]:
        """A checksum of each square, by which the same picture is known again in other data of the same size."""
        hashes = []
        for start in range(0, len(self.files), CHUNK_IMAGES):
            images = self.read(range(start, min(start + CHUNK_IMAGES, len(self.files))))
            hashes += [hashlib.sha256(square.tobytes()).hexdigest()[:32] for square in images]
        return hashes

    def _decode_again(self, rows: np.ndarray, positions: np.ndarray, images: np.ndarray) -> None:
        with ThreadPoolExecutor(min(len(rows), count_cpus())) as pool:
            files, sizes = [self.files[row] for row in rows], [self.size] * len(rows)
            depths = [self.depths[row] if self.depths else None for row in rows]
            decoded = pool.map(read_fitted_image, files, sizes, depths)
            for row, position, image in zip(rows, positions, decoded, strict=True):
                images[position] = image
                slot, crc = self.locations[row].tolist()
                if slot:
                    self.mapped.repair(slot, crc, image)
        n_damaged = np.count_nonzero(self.locations[rows, 0])
        if n_damaged:
            log.warning("%s kept pictures were damaged on the disk, and are decoded again", f"{n_damaged:,}")


def open_image_cache(
    files: Sequence[str],
    size: int,
    progress: Progress | None = None,
    errors: list[ImageError] | None = None,
    depths: Sequence[int | None] | None = None,
) -> ImageCache:
    """The pictures of these files, as squares of `size` pixels: what no run has decoded yet is decoded now.

    `bad` takes the errors of all files that cannot be read; without it the first one is raised. `depths`: bits of each
    image, where it is deeper than 8 bits and its file states none.
    """
    files = tuple(str(file) for file in files)
    images = ImageList(files, tuple([None] * len(files) if depths is None else depths))
    try:
        return _open_in_cache(user_cache(), images, size, progress, errors)
    except CannotStoreError as error:
        level = logging.WARNING if read_cache_limit() else logging.INFO
        log.log(level, "images are not cached for the next run: %s", error)
    try:
        return _open_in_cache(temporary_cache(), images, size, progress, errors)
    except CannotStoreError as error:
        log.warning("every image is decoded each time it is used, which is slow: no temporary file (%s)", error)
    found = examine_images(files, images.depths, progress)
    for error in (one for one in found if isinstance(one, ImageError)):
        if errors is None:
            raise error
        errors.append(error)
    remarks = {row: one for row, one in enumerate(found) if isinstance(one, Remarks) and one != Remarks()}
    return ImageCache(files, size, None, np.zeros((len(files), 2), np.int64), images.depths, remarks)


@dataclass(frozen=True)
class ImageList:
    """Files, and the bit depth of each where it states none."""

    files: tuple[str, ...]
    depths: tuple[int | None, ...]

    def take(self, rows: Iterable[int]) -> "ImageList":
        """Return those of these rows."""
        rows = list(rows)
        return ImageList(tuple(self.files[row] for row in rows), tuple(self.depths[row] for row in rows))


def _open_in_cache(
    cache: CacheDir, images: ImageList, size: int, progress: Progress | None, errors: list | None
) -> ImageCache:
    folder, make_space = (
        cache.image_dir / make_store_name(size),
        partial(evict, limit=IMAGE_QUOTA_FRACTION * cache.max_bytes),
    )
    for _ in range(2):
        try:
            with ImageStoreWriter(folder, size) as writer:
                locations = _decode_missing(writer, images, make_space, progress, errors)
                if locations is not None:
                    remarks = _find_remarks(writer, locations)
                    return ImageCache(images.files, size, MappedImages(folder, size), locations, images.depths, remarks)
        except DamagedStoreError as error:
            log.warning("the pictures of %s px that were kept cannot be used (%s): decoding again", size, error)
        if not remove_if_unused(folder):
            break
    raise CannotStoreError("what would have to be removed first is in use")


def _find_remarks(shelf: ImageStoreWriter, places: np.ndarray) -> dict[int, Remarks]:
    of_slot = shelf.find_remarks()
    return {row: of_slot[slot] for row, slot in enumerate(places[:, 0].tolist()) if slot in of_slot}


def _decode_missing(
    writer: ImageStoreWriter, images: ImageList, make_space: Callable, progress: Progress | None, errors: list | None
) -> np.ndarray | None:
    """The places of all files, after those that had none were decoded; None if the shelf must be emptied before."""
    if errors is not None:
        errors.clear()  # of an attempt that ended early
    locations = writer.find_locations(map(file_signature, images.files, images.depths))
    missing = np.flatnonzero(locations[:, 0] == 0)
    if not make_space(writer.folder, len(missing) * writer.size**2, len(locations) * writer.size**2):
        return None
    if len(missing):
        with (progress or Progress()).bar(len(missing), "reading images") as bar:
            locations[missing] = _decode_and_store(writer, images.take(missing), bar, errors)
    return locations


def _decode_and_store(writer: ImageStoreWriter, images: ImageList, bar: Bar, errors: list | None) -> np.ndarray:
    """Slots and checksums of these files, shape (n, 2); zeros for those whose error went into `bad`."""
    locations, batch = [], max(1, WRITE_BATCH_BYTES // writer.size**2)
    with closing(_decode_ahead(writer, images, bar, strict=errors is None)) as decoded_files:
        while decoded_batch := list(islice(decoded_files, batch)):
            locations += _store_decoded(writer, decoded_batch, errors)
    return np.array(locations, np.int64)


def _store_decoded(
    writer: ImageStoreWriter, decoded_batch: list[DecodedFile | ImageError], errors: list | None
) -> list[tuple[int, int]]:
    new_locations = iter(writer.add([look for look in decoded_batch if isinstance(look, DecodedFile)]))
    if errors is not None:
        errors += [error for error in decoded_batch if isinstance(error, ImageError)]
    return [next(new_locations) if isinstance(look, DecodedFile) else (0, 0) for look in decoded_batch]


def _decode_ahead(
    writer: ImageStoreWriter, images: ImageList, bar: Bar, *, strict: bool
) -> Iterator[DecodedFile | ImageError]:
    """What each file holds, in order, read by all cores while the caller stores; memory stays bounded."""
    n_cores = count_cpus()
    with ThreadPoolExecutor(n_cores) as pool:
        pending: deque[Future] = deque()
        try:
            for file, depth in zip(images.files, images.depths, strict=True):
                pending.append(pool.submit(decode, file, writer.size, writer.is_known, depth))
                if len(pending) > FILES_AHEAD_PER_THREAD * n_cores:
                    yield _get_result(pending.popleft(), strict)
                    bar.advance()
            while pending:
                yield _get_result(pending.popleft(), strict)
                bar.advance()
        finally:  # after a bad image the rest need not be read
            for future in pending:
                future.cancel()


def _get_result(future: Future, strict: bool) -> DecodedFile | ImageError:
    try:
        return future.result()
    except ImageError as error:
        if strict:
            raise
        # a fresh one: tracebacks of this one and its cause would keep the decoded pixels alive
        return ImageError(error.problem, error.fix, path=error.path, code=error.code)
