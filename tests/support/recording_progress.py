"""Count what a call does: the steps of its progress bars, and the memory that it takes."""

import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager

from fastcxr.progress.base import Progress


class Counted(Progress):
    """Keeps the total and words of each bar, and every step of it, in `seen`."""

    def __init__(self):
        self.seen = []

    @contextmanager
    def bar(self, total, text):
        self.seen.append((total, text))
        yield self

    def advance(self, steps=1):
        self.seen.append(steps)

    @property
    def texts(self):
        return [item[1] for item in self.seen if isinstance(item, tuple)]


def peak_memory(call: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy had allocated at once during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
