"""A folder that several processes may use, and any may remove: whoever uses it holds it, and what is held stays."""

import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None

LOCK = "lock"  # held by everyone who uses the folder; its time is that of the last use
GONE = ".gone-"


class CannotStoreError(Exception):
    """Pictures cannot be kept in this place; the text says why."""


class DamagedStoreError(CannotStoreError):
    """What is kept in this place cannot be used, and may be removed."""


@contextmanager
def storing() -> Iterator[None]:
    """Whatever the disk or the index says against it, in this block, becomes a CannotStoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked for too long, read-only, full
        raise CannotStoreError(str(error)) from error
    except sqlite3.Error as error:
        raise DamagedStoreError(str(error)) from error
    except OSError as error:
        raise CannotStoreError(error.strerror or str(error)) from error


def hold(folder: Path) -> BinaryIO:
    """Make the folder if need be, and keep it from being removed for as long as the file that comes back is open."""
    while True:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # pictures of patients: for their owner alone
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:  # removed between the two lines
            continue
        _lock(file, "LOCK_SH")
        if _is_still(folder, file):
            os.utime(folder / LOCK)
            return file
        file.close()


def remove(folder: Path) -> bool:
    """Remove a folder that nobody holds; False for one that is in use."""
    gone = folder.with_name(f"{GONE}{uuid.uuid4().hex}")
    try:
        if fcntl is None:
            folder.rename(gone)
        else:
            with (folder / LOCK).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(gone)  # in one step: nobody sees half of it
    except OSError:  # in use, or in a place where locks do not work
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def sweep(parent: Path) -> None:
    """Finish what a process that was killed while removing left behind."""
    for gone in parent.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)


def measure(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    statuses = [path.stat() for path in folder.glob("*") if path.is_file()]
    # blocks are told in units of 512 bytes everywhere; Windows does not tell them
    return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in statuses)


def _lock(file: BinaryIO, kind: str) -> None:
    try:
        if fcntl:
            fcntl.flock(file, getattr(fcntl, kind))
    except OSError:  # some network disks have no locks; there `remove` never succeeds
        pass


def _is_still(folder: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False
