"""Tasks for workers: they import no torch, so that a worker starts within a fraction of a second."""

import atexit
import logging
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from fastcxr.errors import DataError

log = logging.getLogger("fastcxr")


def add(a: int, b: int) -> int:
    return a + b


def warn(text: str) -> str:
    log.warning("%s", text)
    log.info("not a warning")
    return text


def fail(problem: str) -> None:
    raise DataError(problem, "Correct it", code="E313")


def fail_with_bug() -> None:
    raise ZeroDivisionError("a bug")


def describe_process() -> dict[str, object]:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in names} | {"pid": os.getpid(), "torch": "torch" in sys.modules}


def kill_first(folder: Path) -> int:
    """Kill the process of the first call; return the number of calls."""
    number = len(list(folder.glob("call-*"))) + 1
    (folder / f"call-{number}").touch()
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def make_folder_removed_at_exit(parent: Path) -> int:
    """Create a folder, as the temporary cache does; return the number of folders in the parent."""
    folder = parent / f"fastcxr-{os.getpid()}"
    folder.mkdir()
    atexit.register(folder.rmdir)
    return len(list(parent.iterdir()))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def touch(path: Path) -> str:
    path.touch()
    return path.name


def wait_for_stop(started: Path) -> None:
    """Run until an interrupt: KeyboardInterrupt, as the progress bars of a piece raise it."""
    started.touch()
    while not stopped:
        time.sleep(0.01)
    raise KeyboardInterrupt("stopped by a test")


stopped: list[bool] = []


@contextmanager
def stop_when(is_due):
    """Set `stopped` once the condition is true."""
    from threading import Event, Thread

    done = Event()

    def watch():
        while not done.wait(0.01):
            if is_due():
                stopped.append(True)
                return

    thread = Thread(target=watch, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()


@contextmanager
def ignore_stop(is_due):
    yield
