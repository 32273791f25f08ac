"""A Progress that remembers what it was told, for tests of all rooms."""

from contextlib import contextmanager

from fastcxr.progress import Progress


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
