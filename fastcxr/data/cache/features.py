"""A name and a shape become an array on the disk, filled once and kept for the next run, or else for this one.

The file's own name ends in the checksum of the array: one that was damaged is made anew.
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
    CacheDir,
    CannotStoreError,
    find_image_cache_dir,
    read_cache_limit,
    temporary_cache,
    user_cache,
)
from fastcxr.io.formats import FEATURE_CACHE_FORMAT

log = logging.getLogger("fastcxr")
ABANDONED_SECONDS = 86400.0  # seconds without a change, after which nobody is filling a draft any more
UNSUPPORTED_ERRNOS = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
)  # what file systems without it say to posix_fallocate


def find_feature_cache_dir() -> Path:
    """Where banks of features are kept, beside the pictures."""
    return find_image_cache_dir().with_name("features")


@contextmanager
def open_feature_array(name: str, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, bool]]:
    """The array of this name in single precision, and whether it is new; a new one is kept if the block fills it.

    What cannot be kept for the next run is kept until this process ends, and what no disk has room for is in memory;
    both are said aloud.
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
    """Every bank in `folder`, or in the user's cache, the one that was used last first."""
    return sorted((folder or find_feature_cache_dir()).glob("*.npy"), key=lambda file: -file.stat().st_mtime)


def clear_feature_cache() -> int:
    """Remove every bank, of any format: how many bytes that freed. Who has one open keeps it until it is closed."""
    freed_bytes = sum(file.stat().st_size for file in list_feature_files())
    shutil.rmtree(find_feature_cache_dir(), ignore_errors=True)
    return freed_bytes


def _find_or_create(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Path | None]:
    """The bank of this name, or the draft of a new one; neither where no disk takes it."""
    try:
        return _find_in_cache(user_cache(), name, shape)
    except (OSError, CannotStoreError) as error:
        level = logging.WARNING if read_cache_limit() else logging.INFO
        log.log(level, "features are not cached for the next run: %s", error)
    try:
        return _find_in_cache(temporary_cache(), name, shape)
    except (OSError, CannotStoreError) as error:
        log.warning("features are in memory: no temporary file (%s)", error)
    return None, None


def _find_in_cache(cache: CacheDir, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Path | None]:
    array = _read_array(cache.feature_dir, name, shape)
    if array is not None:
        return array, None
    return None, _create_temporary(cache.feature_dir / name, shape, (1 - IMAGE_QUOTA_FRACTION) * cache.max_bytes)


def _read_array(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    for file in folder.glob(f"{name}-*.npy"):
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except (FileNotFoundError, ValueError, EOFError):
            continue
        if array.shape == shape and array.dtype == np.float32 and file.stem == f"{name}-{_compute_checksum(array)}":
            with suppress(OSError):  # somebody else's, who lets us read
                file.touch()
            return array
    return None


def _compute_checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.data):08x}"


def _create_temporary(path: Path, shape: tuple[int, ...], max_bytes: float) -> Path:
    """A place for the new array, after the banks used longest ago made room for it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    for damaged in path.parent.glob(f"{path.name}-*.npy"):
        damaged.unlink(missing_ok=True)
    needed_bytes, size_by_file = (
        4 * int(np.prod(shape)),
        {bank: bank.stat().st_size for bank in list_feature_files(path.parent)},
    )
    budget_bytes = min(max_bytes, (shutil.disk_usage(path.parent).free + sum(size_by_file.values())) / 2)
    if needed_bytes > budget_bytes:
        raise CannotStoreError(f"{needed_bytes / 1e6:,.0f} MB are wanted, and {budget_bytes / 1e6:,.0f} MB may be used")
    while needed_bytes + sum(size_by_file.values()) > budget_bytes:
        oldest, _ = size_by_file.popitem()
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
    """See that the disk holds the whole file: it is sparse, and a mapped page without room kills the process."""
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
        temporary_path.replace(
            temporary_path.with_name(f"{temporary_path.stem}-{_compute_checksum(array)}.npy")
        )  # in one step: nobody reads half a bank
    except OSError as error:  # as when somebody cleared the cache meanwhile
        log.warning("features are not cached for the next run: %s", error)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a process that was killed left half filled."""
    for temporary_path in set(folder.iterdir()) - set(folder.glob("*.npy")):
        if time.time() - temporary_path.stat().st_mtime > ABANDONED_SECONDS:
            temporary_path.unlink(missing_ok=True)
