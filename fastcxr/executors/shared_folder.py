"""A token file in the run folder: it shows that a worker sees the folder, and stops running tasks.

The process that submits tasks writes the file, changes its last word so that no further task starts, and removes it so
that running tasks stop. A file works with every executor; signals reach processes of this computer only.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastcxr.errors import OutputError, PackageError
from fastcxr.io.files import atomic_write
from fastcxr.version import VERSION

TOKEN_FILE_NAME = ".pieces"
OPEN, CLOSED = "open", "closed"
ATTEMPTS, PAUSE_SECONDS = 5, 0.2  # a network file system shows a new file after a moment
# takes a condition; in its block a task is interrupted, after a checkpoint, once the condition is true
InterruptWhen = Callable[[Callable[[], bool]], AbstractContextManager[None]]
submitter_is_gone = threading.Event()  # set in a worker whose submitting process has ended


@dataclass(frozen=True)
class Token:
    """The token file of one call, as a worker sees it."""

    path: Path
    value: str
    directory: str  # the working directory, which relative paths start at
    interrupt_when: InterruptWhen
    version: str = VERSION

    def read(self) -> str:
        """Return OPEN or CLOSED, empty if the file is removed or of a later call."""
        try:
            value, _, state = self.path.read_text(encoding="ascii").partition(" ")
        except OSError:
            return ""
        return state if value == self.value else ""

    def is_removed(self) -> bool:
        """Return whether running tasks must stop."""
        return submitter_is_gone.is_set() or not self.read()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Check version and folder of this worker, then run the block in the working directory of the caller.

        Raises PackageError for another version of fastcxr, OutputError if the worker does not see the token.
        """
        if self.version != VERSION:
            problem = f"the worker has fastcxr {VERSION}, the process that submits the pieces has {self.version}"
            raise PackageError(problem, "Install the same version on all computers", code="E613")
        state = self._wait_for_file()
        if state != OPEN or not Path(self.directory).is_dir():
            problem = "the worker does not see the files of this folder, or the run was stopped"
            fix = "Choose a `folder` on a file system that all workers share, under the same path"
            raise OutputError(problem, fix, path=self.path.parent, code="E612")
        previous = os.getcwd()
        try:
            os.chdir(self.directory)
            with self.interrupt_when(self.is_removed):
                yield
        finally:
            os.chdir(previous)

    def _wait_for_file(self) -> str:
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_SECONDS if attempt else 0)
            if state := self.read():
                return state
        return ""


class SharedFolder:
    """The folder that all tasks of a call write into. In its block it holds the token file."""

    def __init__(self, folder: Path, interrupt_when: InterruptWhen):
        path = folder.resolve() / TOKEN_FILE_NAME
        self.token = Token(path, secrets.token_hex(8), os.getcwd(), interrupt_when)

    def __enter__(self) -> "SharedFolder":
        self._write(OPEN)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def close(self) -> None:
        """Let no further task start; running ones go on."""
        self._write(CLOSED)

    def stop(self) -> None:
        """Interrupt the running tasks, and let no further one start."""
        if self.token.read():  # not the file of a later call
            self.token.path.unlink(missing_ok=True)

    def _write(self, state: str) -> None:
        atomic_write(self.token.path, f"{self.token.value} {state}")
