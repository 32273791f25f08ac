"""Feature cache: arrays on disk that one run fills and later runs read.

The name of a complete array ends in its checksum; a damaged array is computed again. An unfinished array is a folder
with the array, the number and checksum of its finished rows, and a lock. A later run continues after these rows.
"""

import errno
import logging
import mmap
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from fastcxr.data.cache.quota import (
    IMAGE_QUOTA_FRACTION,
    CannotStoreError,
    find_image_cache_dir,
    make_size_error,
    read_cache_limit,
    temporary_cache,
    user_cache,
)
from fastcxr.errors import OutputError
from fastcxr.io.files import read_json, write_json
from fastcxr.io.formats import FEATURE_CACHE_FORMAT
from fastcxr.io.lock import directory_lock, is_locked

log = logging.getLogger("fastcxr")
UNFINISHED_SUFFIX = ".unfinished"  # of the folder of an array that a later run can continue
PRIVATE_SUFFIX = ".private"  # of the folder of an array that only one process fills
ARRAY_FILE, RECORD_FILE = "features.npy", "rows.json"  # in these folders
CHECKSUM_BYTES = 1 << 26  # read at once to compute a checksum
RECORD_SECONDS = 10.0  # between two records of finished rows: a killed process loses at most these rows
MAX_UNFINISHED_SECONDS = 7 * 86400.0  # since the last finished rows of an array that a later run can continue
ABANDONED_SECONDS = 86400.0  # since the last change of other temporary files, after which their process has ended
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without posix_fallocate


@dataclass
class FeatureArray:
    """Features by image, of which the first rows are computed.

    Attributes:
        values: float32, shape (n, d).
        n_finished: number of computed rows.
        path: file of the values; None: in memory.
        record_path: file that records the finished rows; None for an array that is complete or in memory.
    """

    values: np.ndarray
    n_finished: int = 0
    path: Path | None = None
    record_path: Path | None = None
    n_recorded: int = 0
    checksum: int = 0  # CRC-32 of the recorded rows
    recorded_at: float = 0.0  # time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether all rows are computed."""
        return self.n_finished == len(self.values)

    @property
    def is_kept(self) -> bool:
        """Whether a later run continues after the finished rows, if the array is not complete."""
        folder = self.path.parent if self.path else Path()
        return folder.suffix == UNFINISHED_SUFFIX and folder.parent == find_feature_cache_dir()

    def finish_rows(self, stop: int) -> None:
        """State that all rows before `stop` are computed; they are recorded at most every RECORD_SECONDS."""
        self.n_finished = stop
        if self.record_path and time.monotonic() - self.recorded_at >= RECORD_SECONDS:
            with suppress(OSError):  # the cache was cleared meanwhile, or the disk is full: the next record may work
                self.record()

    def record(self) -> None:
        """Write the finished rows to disk, then their number and checksum. Raises OSError."""
        cast(np.memmap, self.values).flush()
        self.checksum = compute_checksum(self.values[self.n_recorded : self.n_finished], self.checksum)
        self.n_recorded, self.recorded_at = self.n_finished, time.monotonic()
        write_json(cast(Path, self.record_path), {"rows": self.n_recorded, "crc32": self.checksum})


def find_feature_cache_dir() -> Path:
    """Return the folder of the user's feature cache."""
    return find_image_cache_dir().with_name("features")


@contextmanager
def open_feature_array(name: str, shape: tuple[int, int], in_use: Collection[Path] = ()) -> Iterator[FeatureArray]:
    """Yield the float32 array of this name; the block computes its missing rows and states which are finished.

    Rows that an interrupted run finished are kept. A complete array is cached. If the block ends before that, its
    finished rows are kept for the next run. An array that cannot be cached for the next run is a temporary file of this
    process, or else in memory, with a log message.

    Args:
        name: name of the array.
        shape: number of images and of features.
        in_use: files of the cache that are not removed to gain space.
    """
    with ExitStack() as stack:
        yield _find_or_create(f"{name}-format{FEATURE_CACHE_FORMAT}", shape, in_use, stack)


def list_feature_files(folder: Path | None = None) -> list[Path]:
    """Return the files of complete arrays in `folder`, or in the user's cache, the most recently used first."""
    return sorted((folder or find_feature_cache_dir()).glob("*.npy"), key=lambda file: -file.stat().st_mtime)


def list_unfinished_files(folder: Path | None = None) -> list[Path]:
    """Return the files of unfinished arrays in `folder`, or in the user's cache, the most recently changed first."""
    files = (folder or find_feature_cache_dir()).glob(f"*/{ARRAY_FILE}")
    return sorted(files, key=lambda file: -file.parent.stat().st_mtime)


def clear_feature_cache() -> int:
    """Remove all arrays, of any format, and return the freed bytes; keep those that a running process fills.

    Complete arrays that are open remain valid.
    """
    folder = find_feature_cache_dir()
    n_bytes = _measure_bytes(folder)
    for path in folder.iterdir() if folder.is_dir() else ():
        if not is_locked(path):
            _remove(path)
    with suppress(OSError):  # missing, or not empty
        folder.rmdir()
    return n_bytes - _measure_bytes(folder)


def compute_checksum(values: np.ndarray, start: int = 0) -> int:
    """Return the CRC-32 of contiguous rows; `start`: that of the rows before them."""
    n_rows = max(1, CHECKSUM_BYTES // max(1, values.nbytes // max(1, len(values))))
    for first in range(0, len(values) if values.size else 0, n_rows):
        start = zlib.crc32(values[first : first + n_rows].data, start)
        release_pages(values)
    return start


def release_pages(values: np.ndarray) -> None:
    """Remove the pages of a memory-mapped array from this process; they stay in the page cache of the system."""
    buffer = values
    while isinstance(buffer, np.ndarray):  # a part of an array, or the mapped array
        buffer = buffer.base
    if isinstance(buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.madvise(mmap.MADV_DONTNEED)  # of a shared mapping: changed pages are written to the file later


def _measure_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (*list_feature_files(folder), *list_unfinished_files(folder)))


def _find_or_create(name: str, shape: tuple[int, int], in_use: Collection[Path], stack: ExitStack) -> FeatureArray:
    """Return the array of this name, complete, unfinished, or new; in memory if no disk can store it."""
    first_level = logging.WARNING if read_cache_limit() else logging.INFO
    for open_cache, level, text in (
        (user_cache, first_level, "features are not cached for the next run: %s"),
        (temporary_cache, logging.WARNING, "no temporary file can be created (%s): features are kept in memory"),
    ):
        try:
            cache = open_cache()
            if array := _read_array(cache.feature_dir, name, shape):
                return array
            max_bytes = (1 - IMAGE_QUOTA_FRACTION) * cache.max_bytes
            return stack.enter_context(_open_unfinished(cache.feature_dir / name, shape, max_bytes, in_use))
        except (OSError, CannotStoreError) as error:
            log.log(level, text, error)
    return FeatureArray(np.empty(shape, np.float32))


def _read_array(folder: Path, name: str, shape: tuple[int, int]) -> FeatureArray | None:
    for file in folder.glob(f"{name}-*.npy"):
        values = _map_file(file, shape)
        if values is not None and file.stem == f"{name}-{compute_checksum(values):08x}":
            with suppress(OSError):  # a file of another user may be read-only
                file.touch()
            return FeatureArray(values, len(values), file)
    return None


def _map_file(file: Path, shape: tuple[int, int]) -> np.memmap | None:
    """Return the read-only array of a file, or None if it is missing, damaged or of another shape or type."""
    try:
        values = np.lib.format.open_memmap(file, mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    is_valid = values.shape == shape and values.dtype == np.float32 and values.flags.c_contiguous
    return values if is_valid else None


@contextmanager
def _open_unfinished(
    path: Path, shape: tuple[int, int], max_bytes: float, in_use: Collection[Path]
) -> Iterator[FeatureArray]:
    """Yield the unfinished or new array; at the end of the block keep its finished rows, renamed if it is complete.

    If another process has locked the unfinished array, the block fills a separate one, which is removed if it remains
    incomplete. `path`: of the complete array without checksum and suffix.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = path.with_name(path.name + UNFINISHED_SUFFIX)
        try:
            stack.enter_context(_locked_folder(folder))
        except OutputError:  # BusyError, or its owner has just removed it
            log.info("another process is computing these features: this process computes them too")
            folder = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PRIVATE_SUFFIX}")
            stack.enter_context(_locked_folder(folder))
        array = _resume(folder, shape)
        if array is None:
            array = _create(folder, path, shape, max_bytes, in_use)
        try:
            yield array
        finally:
            _close(array, folder, path)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        with directory_lock(folder):
            yield
    finally:
        with suppress(OSError):  # removed, locked by another process, or with finished rows
            folder.rmdir()


def _resume(folder: Path, shape: tuple[int, int]) -> FeatureArray | None:
    """Return the unfinished array of a locked folder, or None if it has no finished rows or they are damaged."""
    path, record_path = folder / ARRAY_FILE, folder / RECORD_FILE
    try:
        record = read_json(record_path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    match record:
        case {"rows": int(n_rows), "crc32": int(checksum)} if 0 < n_rows <= shape[0]:
            values = _map_file(path, shape)
            if values is not None and compute_checksum(values[:n_rows]) == checksum:
                values = np.lib.format.open_memmap(path, mode="r+")  # a short file would be extended
                return FeatureArray(values, n_rows, path, record_path, n_rows, checksum, time.monotonic())
    log.warning("the features of an interrupted run are damaged, and are computed again")
    return None


def _create(
    folder: Path, path: Path, shape: tuple[int, int], max_bytes: float, in_use: Collection[Path]
) -> FeatureArray:
    """Return a new array in a locked folder, after removing the least recently used arrays if space is needed."""
    for damaged in (*path.parent.glob(f"{path.name}-*.npy"), folder / ARRAY_FILE, folder / RECORD_FILE):
        damaged.unlink(missing_ok=True)
    _remove_abandoned(path.parent)
    _make_space(path.parent, 4 * int(np.prod(shape)), max_bytes, in_use)
    array_path = folder / ARRAY_FILE
    try:
        np.lib.format.open_memmap(array_path, mode="w+", dtype=np.float32, shape=shape)
        _allocate_blocks(array_path)
        values = np.lib.format.open_memmap(array_path, mode="r+")
    except BaseException:
        array_path.unlink(missing_ok=True)
        raise
    return FeatureArray(values, 0, array_path, folder / RECORD_FILE, recorded_at=time.monotonic())


def _make_space(folder: Path, needed_bytes: int, max_bytes: float, in_use: Collection[Path]) -> None:
    """Remove the least recently used arrays until there is space. Raises CannotStoreError if that is not enough."""
    times_and_files = [(file.stat().st_mtime, file) for file in list_feature_files(folder)]
    times_and_files += [(file.parent.stat().st_mtime, file) for file in list_unfinished_files(folder)]
    size_by_file = {file: file.stat().st_size for _, file in sorted(times_and_files)}
    total_bytes = sum(size_by_file.values())
    disk_bytes = (shutil.disk_usage(folder).free + total_bytes) / 2
    budget_bytes = min(max_bytes, disk_bytes)
    removable = [file for file in size_by_file if file not in in_use and not is_locked(file.parent)]
    kept_bytes = total_bytes - sum(size_by_file[file] for file in removable)
    if needed_bytes + kept_bytes > budget_bytes:
        raise make_size_error(needed_bytes + kept_bytes, max_bytes, disk_bytes, 1 - IMAGE_QUOTA_FRACTION)
    for file in removable:  # the least recently used first
        if needed_bytes + total_bytes <= budget_bytes:
            break
        _remove(file if file.parent == folder else file.parent)
        total_bytes -= size_by_file[file]


def _allocate_blocks(path: Path) -> None:
    # the file is sparse, and writing to a mapped page on a full disk would kill the process
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS:
                raise


def _close(array: FeatureArray, folder: Path, path: Path) -> None:
    """Record the finished rows, and rename a complete array; remove one that no later run can continue."""
    try:
        if array.n_finished:
            array.record()
        if array.is_complete:
            final_path = path.with_name(f"{path.name}-{array.checksum:08x}.npy")
            cast(Path, array.path).replace(final_path)  # atomic: no process reads an incomplete array
            array.path = final_path
    except OSError as error:
        log.warning("features are not cached for the next run: %s", error)
    if array.is_complete or not array.n_finished or folder.suffix == PRIVATE_SUFFIX:
        _remove(folder)


def _remove(path: Path) -> None:
    """Remove an array: a file, or a folder; ignore one that is missing or cannot be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished arrays that no run has continued for long, and temporary files of killed processes."""
    for path in set(folder.iterdir()) - set(folder.glob("*.npy")):
        max_seconds = MAX_UNFINISHED_SECONDS if path.suffix == UNFINISHED_SUFFIX else ABANDONED_SECONDS
        with suppress(FileNotFoundError):  # another process has removed it
            if time.time() - path.stat().st_mtime > max_seconds and not is_locked(path):
                _remove(path)
