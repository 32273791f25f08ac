"""A folder that one process writes into: others are told to wait. The kernel frees it, however the process ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastcxr.errors import BusyError

try:
    import fcntl
except ImportError:  # Windows has none; there nobody is told
    fcntl = None

log = logging.getLogger("fastcxr")
LOCK = ".lock"
_open: set = set()  # the lock files of this process


def _let_go() -> None:
    """A loader's process must not hold what the one that trains holds: it outlives that one by seconds."""
    for file in _open:
        file.close()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for the length of the block. Raises BusyError, with its process, where another one does."""
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        _take(file, folder)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _open.add(file)
        try:
            yield
        finally:
            _open.discard(file)
            (folder / LOCK).unlink(missing_ok=True)


def is_held(folder: Path) -> bool:
    """Whether a process that still runs holds the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            _take(file, folder)
        except BusyError:
            return True
    return False


def _take(file, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        process = file.read() or "another"
        fix = "Wait until it ends, or choose another --out"
        raise BusyError(f"process {process} is writing into this folder", fix, path=folder) from error
    except OSError as error:  # some network disks have no locks
        text = "%s has no locks (%s): see that no other process writes into it"
        log.warning(text, folder.name, error.strerror)
