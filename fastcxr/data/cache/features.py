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
    SHARE_OF_PICTURES,
    Cache,
    CannotStoreError,
    find_limit,
    own_cache,
    passing_cache,
    pictures_folder,
)

log = logging.getLogger("fastcxr")
ABANDONED = 86400.0  # seconds without a change, after which nobody is filling a draft any more
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without it say to posix_fallocate


def banks_folder() -> Path:
    """Where banks of features are kept, beside the pictures."""
    return pictures_folder().with_name("features")


@contextmanager
def open_bank(name: str, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, bool]]:
    """The array of this name in single precision, and whether it is new; a new one is kept if the block fills it.

    What cannot be kept for the next run is kept until this process ends, and what no disk has room for is in memory;
    both are said aloud.
    """
    array, draft = _find_or_begin(name, shape)
    if draft is None:
        yield (np.empty(shape, np.float32), True) if array is None else (array, False)
        return
    try:
        array = np.load(draft, mmap_mode="r+")
        yield array, True
        _keep(array, draft)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def list_banks(folder: Path | None = None) -> list[Path]:
    """Every bank in `folder`, or in the user's cache, the one that was used last first."""
    return sorted((folder or banks_folder()).glob("*.npy"), key=lambda file: -file.stat().st_mtime)


def clear_banks() -> int:
    """Remove every bank: how many bytes that freed. Who has one open keeps it until it is closed."""
    freed = sum(file.stat().st_size for file in list_banks())
    shutil.rmtree(banks_folder(), ignore_errors=True)
    return freed


def _find_or_begin(name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Path | None]:
    """The bank of this name, or the draft of a new one; neither where no disk takes it."""
    try:
        return _look_in(own_cache(), name, shape)
    except (OSError, CannotStoreError) as error:
        level = logging.WARNING if find_limit() else logging.INFO
        log.log(level, "features are not kept for the next run: %s", error)
    try:
        return _look_in(passing_cache(), name, shape)
    except (OSError, CannotStoreError) as error:
        log.warning("features are in memory: no temporary file (%s)", error)
    return None, None


def _look_in(cache: Cache, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, Path | None]:
    array = _read(cache.features, name, shape)
    if array is not None:
        return array, None
    return None, _begin(cache.features / name, shape, (1 - SHARE_OF_PICTURES) * cache.limit)


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    for file in folder.glob(f"{name}-*.npy"):
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except (FileNotFoundError, ValueError, EOFError):
            continue
        if array.shape == shape and array.dtype == np.float32 and file.stem == f"{name}-{_checksum(array)}":
            with suppress(OSError):  # somebody else's, who lets us read
                file.touch()
            return array
    return None


def _checksum(array: np.ndarray) -> str:
    return f"{zlib.crc32(array.data):08x}"


def _begin(place: Path, shape: tuple[int, ...], limit: float) -> Path:
    """A place for the new array, after the banks used longest ago made room for it."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(place.parent)
    for damaged in place.parent.glob(f"{place.name}-*.npy"):
        damaged.unlink(missing_ok=True)
    need, kept = 4 * int(np.prod(shape)), {bank: bank.stat().st_size for bank in list_banks(place.parent)}
    budget = min(limit, (shutil.disk_usage(place.parent).free + sum(kept.values())) / 2)
    if need > budget:
        raise CannotStoreError(f"{need / 1e6:,.0f} MB are wanted, and {budget / 1e6:,.0f} MB may be used")
    while need + sum(kept.values()) > budget:
        oldest, _ = kept.popitem()
        oldest.unlink(missing_ok=True)
    draft = place.with_suffix(f".{uuid.uuid4().hex}")
    try:
        np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
        _take_room(draft)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _take_room(draft: Path) -> None:
    """See that the disk holds the whole file: it is sparse, and a mapped page without room kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with draft.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if error.errno not in NO_SUCH_CALL:
                raise


def _keep(array: np.memmap, draft: Path) -> None:
    try:
        array.flush()
        draft.replace(draft.with_name(f"{draft.stem}-{_checksum(array)}.npy"))  # in one step: nobody reads half a bank
    except OSError as error:  # as when somebody cleared the cache meanwhile
        log.warning("features are not kept for the next run: %s", error)


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed left half filled."""
    for draft in set(folder.iterdir()) - set(folder.glob("*.npy")):
        if time.time() - draft.stat().st_mtime > ABANDONED:
            draft.unlink(missing_ok=True)
