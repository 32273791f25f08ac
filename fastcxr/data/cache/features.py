"""Feature cache: arrays on disk that one run fills and later runs read.

A file name ends in the checksum of its array. A damaged array is computed again.
"""

import errno
import logging
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
from fastcxr.io.formats import FEATURE_CACHE_FORMAT

log = logging.getLogger("fastcxr")
ABANDONED_SECONDS = 86400.0  # since the last change of a temporary file, after which its process has ended
UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without posix_fallocate


def find_feature_cache_dir() -> Path:
    """Return the folder of the user's feature cache."""
    return find_image_cache_dir().with_name("features")


@contextmanager
def open_feature_array(name: str, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield the float32 array of this name, and whether it is new; the block fills a new one, which is then cached.

    An array that cannot be cached for the next run is a temporary file of this process, or else in memory, with a
    log message.
    """
    array, temporary_path = _find_or_create(f"{name}-format{FEATURE_CACHE_FORMAT}", shape)
    if temporary_path is None:
        yield (np.empty(shape, np.float32), True) if array is None else (array, False)
        return
    try:
        array = np.load(temporary_path, mmap_mode="r+")
        yield array, True
        _finalize(array, temporary_path)
    finally:
        with suppress(OSError):
            temporary_path.unlink(missing_ok=True)


def list_feature_files(folder: Path | None = None) -> list[Path]:
    """Return the feature files in `folder`, or in the user's cache, the most recently used first."""
    return sorted((folder or find_feature_cache_dir()).glob("*.npy"), key=lambda file: -file.stat().st_mtime)


def clear_feature_cache() -> int:
    """Remove all feature files, of any format, and return the freed bytes. Arrays that are open remain valid."""
    freed_bytes = sum(file.stat().st_size for file in list_feature_files())
    shutil.rmtree(find_feature_cache_dir(), ignore_errors=True)
    return freed_bytes


def _find_or_create(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Path | None]:
    """Return the array of this name, or the path of a new temporary file, or neither if no disk can store it."""
    first_level = logging.WARNING if read_cache_limit() else logging.INFO
    for open_cache, level, text in (
        (user_cache, first_level, "features are not cached for the next run: %s"),
        (temporary_cache, logging.WARNING, "no temporary file can be created (%s): features are kept in memory"),
    ):
        try:
            cache = open_cache()
            array = _read_array(cache.feature_dir, name, shape)
            if array is not None:
                return array, None
            max_bytes = (1 - IMAGE_QUOTA_FRACTION) * cache.max_bytes
            return None, _create_temporary(cache.feature_dir / name, shape, max_bytes)
        except (OSError, CannotStoreError) as error:
            log.log(level, text, error)
    return None, None


def _read_array(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    for file in folder.glob(f"{name}-*.npy"):
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except (FileNotFoundError, ValueError, EOFError):
            continue
        if array.shape == shape and array.dtype == np.float32 and file.stem == f"{name}-{_compute_checksum(array)}":
            with suppress(OSError):  # a file of another user may be read-only
                file.touch()
            return array
    return None


def _compute_checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.data):08x}"


def _create_temporary(path: Path, shape: tuple[int, ...], max_bytes: float) -> Path:
    """Create the file of a new array, after removing the least recently used arrays if space is needed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    for damaged in path.parent.glob(f"{path.name}-*.npy"):
        damaged.unlink(missing_ok=True)
    needed_bytes = 4 * int(np.prod(shape))
    size_by_file = {file: file.stat().st_size for file in list_feature_files(path.parent)}
    total_bytes = sum(size_by_file.values())
    budget_bytes = min(max_bytes, (shutil.disk_usage(path.parent).free + total_bytes) / 2)
    if needed_bytes > budget_bytes:
        raise make_size_error(needed_bytes, budget_bytes)
    while needed_bytes + total_bytes > budget_bytes:
        oldest, size = size_by_file.popitem()
        total_bytes -= size
        oldest.unlink(missing_ok=True)
    temporary_path = path.with_suffix(f".{uuid.uuid4().hex}")
    try:
        np.lib.format.open_memmap(temporary_path, mode="w+", dtype=np.float32, shape=shape)
        _allocate_blocks(temporary_path)
    except BaseException:
        temporary_path.unlink(missing_ok=True)
        raise
    return temporary_path


def _allocate_blocks(temporary_path: Path) -> None:
    # the file is sparse, and writing to a mapped page on a full disk would kill the process
    if not hasattr(os, "posix_fallocate"):
        return
    with temporary_path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in UNSUPPORTED_ERRNOS:
                raise


def _finalize(array: np.memmap, temporary_path: Path) -> None:
    try:
        array.flush()
        path = temporary_path.with_name(f"{temporary_path.stem}-{_compute_checksum(array)}.npy")
        temporary_path.replace(path)  # atomic: no process reads an incomplete array
    except OSError as error:  # for example because the cache was cleared meanwhile
        log.warning("features are not cached for the next run: %s", error)


def _remove_abandoned(folder: Path) -> None:
    """Remove incomplete arrays of killed processes."""
    for temporary_path in set(folder.iterdir()) - set(folder.glob("*.npy")):
        if time.time() - temporary_path.stat().st_mtime > ABANDONED_SECONDS:
            temporary_path.unlink(missing_ok=True)
