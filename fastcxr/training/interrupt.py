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
GRACE = 9.0  # seconds that a batch and its state may take


class Stopped(KeyboardInterrupt):  # what catches every Exception must not catch this
    """Somebody wanted this to end: exit code 128 and the signal."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _Wish:
    """What signals have said so far."""

    def __init__(self):
        self.number: int | None = None
        self.is_finishing = False


_wish = _Wish()


@contextmanager
def stoppable(say: Callable[[str], None], way_on: str) -> Iterator[None]:
    """In this block SIGTERM and SIGINT are wishes; a second one, or a batch beyond GRACE, ends the process.

    say: shows one line. way_on: the command that goes on afterwards. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def leave() -> None:
        say(f"left in the middle of a batch; the last state is intact. Go on with: {way_on}")
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(128 + _wish.number)

    def hear(number: int, frame) -> None:
        if os.getpid() != owner:  # a loader's worker inherits this; the one that trains decides
            return
        if _wish.number is not None:
            leave()
        _wish.number = number
        timer.start()
        if not _wish.is_finishing:
            raise Stopped(number)

    timer = threading.Timer(GRACE, leave)
    timer.daemon = True
    before = {number: signal.signal(number, hear) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        timer.cancel()
        _wish.number = None


@contextmanager
def finishing() -> Iterator[None]:
    """In this block a first wish interrupts nothing: `stop_if_wanted` is asked where it is safe."""
    _wish.is_finishing = True
    try:
        yield
    finally:
        _wish.is_finishing = False


def is_wanted() -> bool:
    """Whether somebody wants this to stop."""
    return _wish.number is not None


def stop() -> None:
    """Stop now. Raises Stopped."""
    raise Stopped(_wish.number)
