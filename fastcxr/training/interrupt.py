"""Stop on SIGTERM and SIGINT: at once, or after the current batch and its checkpoint if the interrupt is deferred."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastcxr.progress.base import Bar, Progress

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 9.0  # seconds for the current batch and its checkpoint
POLL_SECONDS = 0.5


class Interrupted(KeyboardInterrupt):  # KeyboardInterrupt: `except Exception` must not catch it
    """Termination by a signal; the exit code is 128 plus the signal number."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


@dataclass
class _InterruptState:
    signal_number: int = 0  # 0: no signal yet
    is_deferred: bool = False


_state = _InterruptState()


@contextmanager
def handle_signals(
    show_line: Callable[[str], None], resume_command: str, *, is_repeated: bool = False
) -> Iterator[None]:
    """Raise Interrupted on a first SIGTERM or SIGINT in this block, unless it is deferred.

    A second signal, or no end of the batch within GRACE_SECONDS, ends the process and shows `resume_command`.
    Outside the main thread signals are not handled. `is_repeated`: whether a second signal is that of torchrun, which
    ends all processes after the first one has ended, and is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner_pid = os.getpid()

    def terminate() -> None:
        show_line(f"terminated mid-batch; the last checkpoint is intact. Resume with: {resume_command}")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + _state.signal_number)

    def handle(signal_number: int, frame) -> None:
        if os.getpid() != owner_pid:  # data loading workers inherit the handler; only the main process decides
            return
        if _state.signal_number and not is_repeated:
            terminate()
        if _state.signal_number:
            return
        _state.signal_number = signal_number
        timer.start()
        if not _state.is_deferred:
            raise Interrupted(signal_number)

    timer = threading.Timer(GRACE_SECONDS, terminate)
    timer.daemon = True
    previous_handlers = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)
        timer.cancel()
        _state.signal_number = 0


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer a first signal in this block: the caller checks `get_signal_number` where it is safe to stop."""
    _state.is_deferred = True
    try:
        yield
    finally:
        _state.is_deferred = False


def get_signal_number() -> int:
    """Return the number of the signal that arrived, or 0."""
    return _state.signal_number


@contextmanager
def interrupt_when(is_due: Callable[[], bool]) -> Iterator[None]:
    """Request an interrupt in this block, as a signal does, once the condition is true; a thread asks for it.

    For tasks of workers that receive no signals.
    """
    is_done, is_requested = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_done.wait(POLL_SECONDS):
            if is_due():
                is_requested.set()
                _state.signal_number = signal.SIGTERM
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        if is_requested.is_set():
            _state.signal_number = 0  # the worker may run another task


class InterruptibleProgress(Progress):
    """Silent progress whose bars raise Interrupted after a request, except where the interrupt is deferred."""

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Yield a bar that shows nothing."""
        yield _InterruptibleBar()


class _InterruptibleBar(Bar):
    def advance(self, steps: int = 1) -> None:
        if _state.signal_number and not _state.is_deferred:
            raise Interrupted(_state.signal_number)
