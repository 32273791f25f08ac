"""Decode the files that an image cache lacks; several processes at once share the work.

The files of a dataset are divided into blocks of BLOCK_FILES. A process claims a block with a lock, looks up which of
its images another process has stored meanwhile, decodes the others and stores them. The lock of a killed process ends
with it, and another process claims the block. On a file system without locks each process decodes every block; the
index stores each image once.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fastcxr.data.cache.image_file import ImageStoreWriter
from fastcxr.data.cache.index import NO_LOCATION, DecodedFile, decode, file_signature
from fastcxr.data.cache.quota import convert_storage_errors, lock_now
from fastcxr.data.imaging.read import copy_error
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.threads import map_ahead
from fastcxr.progress.base import Bar, Progress

BLOCK_FILES = 512  # consecutive files of a dataset that one process claims
WAIT_SECONDS = 0.2  # between two attempts to claim blocks that other processes have claimed
WRITE_BATCH_BYTES = 1 << 24  # images stored in one transaction: a killed process loses at most one batch
FILES_AHEAD_PER_THREAD = 4  # decoded files per thread that wait to be stored
CLAIM_PREFIX = "claim-"


@dataclass(frozen=True, eq=False)
class ImageList:
    """The files of a dataset, and the bits per pixel of each image whose file states none."""

    files: tuple[str, ...]
    depths: tuple[int | None, ...]

    def find_signatures(self, rows: Sequence[int] | range) -> Iterator[bytes | None]:
        """Yield the file signature of each row."""
        return (file_signature(self.files[row], self.depths[row]) for row in rows)

    def hash_block(self, number: int) -> str:
        """Return a name of block `number` that is the same in all processes with this dataset."""
        rows = slice(number * BLOCK_FILES, (number + 1) * BLOCK_FILES)
        digest = hashlib.blake2b(repr(self.depths[rows]).encode(), digest_size=16)
        for file in self.files[rows]:
            digest.update(os.fsencode(os.path.abspath(file)) + b"\0")
        return digest.hexdigest()


def fill_cache(
    writer: ImageStoreWriter,
    images: ImageList,
    make_space: Callable[[Path, int, int], bool],
    progress: Progress | None = None,
    errors: list[ImageError] | None = None,
) -> np.ndarray | None:
    """Decode the files that are not cached; return slot and checksum of all, or None if the cache must be emptied.

    Args:
        writer: the open cache.
        images: the files.
        make_space: see quota.evict; called with the folder, the missing and all bytes before anything is decoded.
        progress: progress display.
        errors: receives the error of each unreadable file, whose location is zeros; without it the first is raised.
    """
    if errors is not None:
        errors.clear()  # errors of a first attempt that failed
    n_images, n_bytes = len(images.files), writer.size**2
    locations = writer.find_locations(images.find_signatures(range(n_images)))
    missing = np.flatnonzero(locations[:, 0] == 0)
    if not make_space(writer.folder, len(missing) * n_bytes, n_images * n_bytes):
        return None
    if len(missing):
        with (progress or Progress()).bar(len(missing), "reading images") as bar:
            _fill_blocks(writer, images, missing, locations, bar, errors)
    return locations


def _fill_blocks(
    writer: ImageStoreWriter,
    images: ImageList,
    missing: np.ndarray,
    locations: np.ndarray,
    bar: Bar,
    errors: list[ImageError] | None,
) -> None:
    """Set the locations of the missing rows; blocks that other processes have claimed are visited again later."""
    errors_by_row: dict[int, ImageError] | None = None if errors is None else {}
    numbers = missing // BLOCK_FILES
    pending = deque(np.split(missing, np.flatnonzero(np.diff(numbers)) + 1))
    n_busy = 0  # blocks in a row that other processes have claimed
    while pending:
        rows = pending.popleft()
        with _claim(writer.folder, images.hash_block(int(rows[0]) // BLOCK_FILES)) as is_claimed:
            n_busy = 0 if is_claimed else n_busy + 1
            if is_claimed:
                locations[rows] = _fill_block(writer, images, rows, bar, errors_by_row)
            else:
                pending.append(rows)
        if n_busy and n_busy >= len(pending):
            time.sleep(WAIT_SECONDS)
            n_busy = 0
    if errors is not None and errors_by_row:
        errors += [errors_by_row[row] for row in sorted(errors_by_row)]


def _fill_block(
    writer: ImageStoreWriter,
    images: ImageList,
    rows: np.ndarray,
    bar: Bar,
    errors: dict[int, ImageError] | None,
) -> np.ndarray:
    """Return the locations of these rows; those that another process has stored meanwhile are not decoded."""
    locations = np.zeros((len(rows), 2), np.int64)
    if writer.has_changed():
        locations = writer.find_locations(images.find_signatures(rows.tolist()))
        bar.advance(int(np.count_nonzero(locations[:, 0])))
    missing = locations[:, 0] == 0
    if missing.any():
        locations[missing] = _decode_and_store(writer, images, rows[missing].tolist(), bar, errors)
    return locations


@contextmanager
def _claim(folder: Path, name: str) -> Iterator[bool]:
    """Claim a block in this context; yield False if another process has claimed it."""
    path = folder / (CLAIM_PREFIX + name)
    with convert_storage_errors():
        file = lock_now(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            with suppress(OSError):  # Windows does not remove an open file
                path.unlink()
            file.close()


def _decode_and_store(
    writer: ImageStoreWriter,
    images: ImageList,
    rows: list[int],
    bar: Bar,
    errors: dict[int, ImageError] | None,
) -> np.ndarray:
    """Return slots and checksums of these rows, shape (n, 2); zeros for a file whose error is added to `errors`."""
    locations, batch_size = [], max(1, WRITE_BATCH_BYTES // writer.size**2)
    with closing(_decode_ahead(writer, images, rows, bar, strict=errors is None)) as decoded_files:
        while batch := list(islice(decoded_files, batch_size)):
            stored = iter(writer.add([one for one in batch if isinstance(one, DecodedFile)]))
            for one in batch:
                if errors is not None and isinstance(one, ImageError):
                    errors[rows[len(locations)]] = one
                locations.append(next(stored) if isinstance(one, DecodedFile) else NO_LOCATION)
    return np.array(locations, np.int64)


def _decode_ahead(
    writer: ImageStoreWriter, images: ImageList, rows: list[int], bar: Bar, *, strict: bool
) -> Generator[DecodedFile | ImageError, None, None]:
    """Yield the decoded files in order; all cores decode a limited number of files ahead of the caller."""

    def decode_or_fail(row: int) -> DecodedFile | ImageError:
        try:
            return decode(images.files[row], writer.size, writer.is_known, images.depths[row])
        except ImageError as error:
            return copy_error(error)

    n_cores = count_cpus()
    decoded = map_ahead(decode_or_fail, rows, n_threads=n_cores, n_ahead=FILES_AHEAD_PER_THREAD * n_cores)
    with closing(decoded):
        for one in decoded:
            if strict and isinstance(one, ImageError):
                raise one
            yield one
            bar.advance()
