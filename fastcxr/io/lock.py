"""Exclusive lock of an output folder: one process writes into it, other processes get a BusyError.

The owner holds a lock of the operating system on the file `.lock` of the folder (flock, on Windows LockFileEx), which
ends with its process, even if the process is killed. The file is removed on release.
POSIX: the file is removed while it is locked. A process that has locked a removed file tries again.
Windows: an open file cannot be removed, so it is closed first. The removal fails if another process has opened the file
since; that one then owns the folder and removes the file.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastcxr.errors import BusyError, OutputError

log = logging.getLogger("fastcxr")
LOCK_FILE_NAME = ".lock"
ATTEMPTS, PAUSE_SECONDS = 5, 0.02  # `is_locked` of another process holds the lock for a moment
OWNER_OFFSET, OWNER_BYTES = 1, 20  # Windows locks the first byte against reading too
_open_lock_files: set[int] = set()  # descriptors of the locks that this process holds


def _close_in_child() -> None:
    """Close the locks in a forked data loader worker, which may end seconds after the training process."""
    for descriptor in _open_lock_files:
        os.close(descriptor)
    _open_lock_files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def directory_lock(folder: Path) -> Iterator[None]:
    """Lock the folder for the length of the block.

    Raises BusyError, with the process id of the owner, if another process owns it, OutputError if it cannot be written.
    """
    descriptor = _acquire_lock(folder)
    _open_lock_files.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _open_lock_files:  # not in a forked child, which closed its copy
            _open_lock_files.discard(descriptor)
            _release(descriptor, folder / LOCK_FILE_NAME)


def is_locked(folder: Path) -> bool:
    """Return whether a running process owns the folder."""
    try:
        descriptor = os.open(folder / LOCK_FILE_NAME, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:  # the file of another user, or one being removed
        return True
    try:
        return not _lock(descriptor)
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)


def reject_locked(folder: Path) -> None:
    """Raise BusyError if a running process owns the folder."""
    if is_locked(folder):
        raise _make_busy_error(folder)


def _make_busy_error(folder: Path) -> BusyError:
    fix = "Wait until it ends, or choose another `folder`"
    return BusyError(f"{_read_owner(folder)} is writing into this folder", fix, path=folder)


def _acquire_lock(folder: Path) -> int:
    """Lock the lock file, write the id of this process into it and return its descriptor."""
    while True:
        descriptor = _open_file(folder)
        try:
            if not _lock(descriptor):
                raise _make_busy_error(folder)
        except BusyError:
            os.close(descriptor)
            raise
        except OSError as error:  # some network file systems have no locks
            text = "%s has no locks (%s): make sure that no other process writes into it"
            log.warning(text, folder.name, error.strerror)
        if _is_current(descriptor, folder / LOCK_FILE_NAME):
            _write_owner(descriptor)
            return descriptor
        os.close(descriptor)  # the previous owner removed it after it was opened


def _open_file(folder: Path) -> int:
    try:
        return os.open(folder / LOCK_FILE_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        problem = f"this folder cannot be written to ({error.strerror})"
        raise OutputError(problem, "Choose another `folder`", path=folder) from error


def _lock(descriptor: int) -> bool:
    """Try to lock an open file; return whether that worked. Raises OSError for a file system without locks."""
    from filelock import lock_descriptor  # loads asyncio: imported only if needed

    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS if attempt else 0)
        if lock_descriptor(descriptor, blocking=False):
            return True
    return False


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one in the folder now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path) -> None:
    try:
        if _is_current(descriptor, path):
            path.unlink(missing_ok=True)
    except PermissionError:  # Windows: the file is open
        os.close(descriptor)
        _remove_closed(path)
    else:
        os.close(descriptor)


def _remove_closed(path: Path) -> None:
    for attempt in range(ATTEMPTS):  # `is_locked` of another process may have it open for a moment
        time.sleep(PAUSE_SECONDS if attempt else 0)
        with suppress(PermissionError):  # the next owner has it open
            path.unlink(missing_ok=True)
            return


def _write_owner(descriptor: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"{'':{OWNER_OFFSET}}{os.getpid():<{OWNER_BYTES}}".encode())


def _read_owner(folder: Path) -> str:
    try:
        descriptor = os.open(folder / LOCK_FILE_NAME, os.O_RDONLY)
    except OSError:  # removed in the meantime
        return "another process"
    try:
        os.lseek(descriptor, OWNER_OFFSET, os.SEEK_SET)
        process_id = os.read(descriptor, OWNER_BYTES).decode(errors="replace").strip()
    finally:
        os.close(descriptor)
    return f"process {process_id}" if process_id else "another process"
