"""A wish to stop, from a signal: a batch that is under way ends first, so that the state can be kept.

Python runs signal handlers in the main thread between two of its own steps. While `finishing` nothing is interrupted;
whoever trains asks `wanted` after each batch. Otherwise the wish is an exception at once.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 9.0  # seconds that a batch and its state may take


class Interrupted(KeyboardInterrupt):  # what catches every Exception must not catch this
    """Somebody wanted this to end: exit code 128 and the signal."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.exit_code = 128 + signal_number


class _InterruptState:
    """What signals have said so far."""

    def __init__(self):
        self.signal_number: int | None = None
        self.is_deferred = False


_state = _InterruptState()


@contextmanager
def handle_signals(show_line: Callable[[str], None], resume_command: str) -> Iterator[None]:
    """In this block SIGTERM and SIGINT are wishes; a second one, or a batch beyond GRACE, ends the process.

    say: shows one line. way_on: the command that goes on afterwards. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner_pid = os.getpid()

    def leave() -> None:
        show_line(f"left in the middle of a batch; the last state is intact. Go on with: {resume_command}")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + _state.signal_number)

    def hear(signal_number: int, frame) -> None:
        if os.getpid() != owner_pid:  # a loader's worker inherits this; the one that trains decides
            return
        if _state.signal_number is not None:
            leave()
        _state.signal_number = signal_number
        timer.start()
        if not _state.is_deferred:
            raise Interrupted(signal_number)

    timer = threading.Timer(GRACE_SECONDS, leave)
    timer.daemon = True
    previous_handlers = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    finally:
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)
        timer.cancel()
        _state.signal_number = None


@contextmanager
def defer_interrupts() -> Iterator[None]:
    """Defer a first signal in this block: the caller checks `interrupt_requested` where it is safe to stop."""
    _state.is_deferred = True
    try:
        yield
    finally:
        _state.is_deferred = False


def interrupt_requested() -> bool:
    """Whether somebody wants this to stop."""
    return _state.signal_number is not None


def raise_interrupted() -> None:
    """Stop now. Raises Stopped."""
    raise Interrupted(_state.signal_number)
