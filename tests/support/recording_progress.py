"""Recording of the progress bars of a call, and of its peak memory."""

import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager

from fastcxr.progress.base import Progress


class Counted(Progress):
    """Progress that records the total, the text and every step of each bar in `seen`."""

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
    """Return the peak of memory allocated by Python and NumPy during a call [bytes]."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
