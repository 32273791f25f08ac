"""A process that decodes blocks of files into an image cache.

It is a new interpreter and no copy of this process, which may use a GPU and threads, and it does not import the script
of the user. Both processes exchange pickles through pipes. It ends with the pipe, also if this process is killed.
"""

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastcxr.data.cache.blocks import BlockTask, FilledBlock
from fastcxr.data.cache.image_file import ImageStoreWriter
from fastcxr.data.cache.quota import CannotStoreError
from fastcxr.errors import ImageError

START = "import sys; sys.path[:] = {path!r}; from fastcxr.data.cache.decoding_process import main; main()"
ADVANCE_FILES = 32  # decoded files between two messages on the progress


class ProcessEndedError(Exception):
    """The process has ended without an answer, for example because the system killed it."""


class DecodingProcess:
    """A process that decodes blocks, one at a time."""

    def __init__(self, folder: Path, size: int):
        """Start the process for the image cache of this size in `folder`."""
        command = [sys.executable, "-c", START.format(path=sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.first_message = folder, size
        self.is_started = False

    def run(self, task: BlockTask, advance: Callable[[int], None]) -> FilledBlock | None:
        """Run a task in the process, see BlockTask.run. Raises its error, or ProcessEndedError."""
        try:
            if not self.is_started:
                self._send(self.first_message)
                self.is_started = True
            self._send(task)
            while True:
                match self._receive():
                    case int(steps):
                        advance(steps)
                    case Exception() as error:
                        raise error
                    case answer:
                        return answer
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise ProcessEndedError from error

    def end(self) -> None:
        """End the process; a block that it has not finished is lost."""
        self.process.terminate()
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            with suppress(OSError):  # a task that was not received
                pipe.close()
        self.process.wait()

    def _send(self, message: Any) -> None:
        assert self.process.stdin
        pickle.dump(message, self.process.stdin)
        self.process.stdin.flush()

    def _receive(self) -> Any:
        assert self.process.stdout
        return pickle.load(self.process.stdout)  # noqa: S301  of the process that this one started


def can_start_processes() -> bool:
    """Return whether this interpreter can be started again; one inside another program cannot."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def main() -> None:
    """Answer the tasks of the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # decoders that print do not disturb the answers
    serve(requests, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Run the tasks of a stream of pickles until it ends, and write their results or errors."""

    def send(answer: Any) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    writer: ImageStoreWriter | None = None
    try:
        folder, size = pickle.load(requests)  # noqa: S301  of the process that started this one
        while True:
            task: BlockTask = pickle.load(requests)  # noqa: S301
            n_done = 0

            def advance(steps: int) -> None:
                nonlocal n_done
                n_done += steps
                if n_done >= ADVANCE_FILES:
                    send(n_done)
                    n_done = 0

            try:
                writer = writer or ImageStoreWriter(folder, size)
                answer = task.run(writer, advance)
            except (ImageError, CannotStoreError) as error:
                answer = error
            send(n_done)
            send(answer)
    except (EOFError, BrokenPipeError):
        pass
    finally:
        if writer:
            writer.exit_stack.close()
