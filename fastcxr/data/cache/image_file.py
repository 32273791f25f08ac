"""A folder with the squares of one size: looks at files come in and become slots of one file, which is mapped to read.

Bytes are never trusted: whoever reads a square compares it with the checksum that the index has kept. So nothing
needs to be flushed to the disk in any order, and a torn or damaged square is decoded again.
"""

import mmap
import os
import weakref
import zlib
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from fastcxr.data.cache.index import INDEX, SQUARES, Index, Look
from fastcxr.data.cache.quota import CannotStoreError, hold, storing
from fastcxr.data.imaging.sniff import Remarks


class Shelf:
    """A shelf that is being filled. Every method may raise CannotStoreError."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with storing(), ExitStack() as opened:
            opened.enter_context(hold(folder))
            self.file = opened.enter_context(open(folder / SQUARES, "r+b", buffering=0, opener=_open_or_make))
            self.index = opened.enter_context(closing(Index(folder / INDEX)))
            self.index.forget_cut(self._count)
            self.opened = opened.pop_all()

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(self, *_) -> None:
        self.opened.close()

    def find(self, states: Iterable[bytes | None]) -> np.ndarray:
        """Slot and checksum of each state, shape (n, 2); zeros where it is not known."""
        with storing():
            return self.index.find(states)

    def find_remarks(self) -> dict[int, Remarks]:
        """What was remarked on squares when they were decoded, by slot; only those on which something was."""
        with storing():
            return self.index.find_remarks()

    def is_known(self, content: bytes) -> bool:
        """Whether a content has a square."""
        with storing():
            return self.index.is_known(content)

    def add(self, looks: list[Look]) -> list[tuple[int, int]]:
        """Slot and checksum of each look, now stored."""
        with storing():
            return self.index.add(looks, self._write)

    def _write(self, slot: int, square: np.ndarray) -> None:
        _write_square(self.file, slot, square)

    def _count(self) -> int:
        return os.fstat(self.file.fileno()).st_size // self.size**2


class Slots:
    """A mapped shelf: no picture is in memory but those that are copied out of it."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with storing():
            self.held = hold(folder)
            weakref.finalize(self, self.held.close)
            with (folder / SQUARES).open("rb") as file:
                self.count = os.fstat(file.fileno()).st_size // size**2
                length = self.count * size**2  # an empty file cannot be mapped
                self.map = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) if length else b""
        self.squares = np.frombuffer(self.map, np.uint8).reshape(self.count, size, size)

    def __reduce__(self):  # a worker that was not forked maps the file anew, instead of getting all its bytes
        return Slots, (self.folder, self.size)

    def copy(self, places: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Fill `out`, shape (n, size, size), from slots and checksums, shape (n, 2); true where it is as stored."""
        good = np.zeros(len(places), bool)
        for number, (slot, crc) in enumerate(places.tolist()):
            if 0 < slot < self.count:
                out[number] = self.squares[slot]
                good[number] = zlib.crc32(out[number]) == crc
        if self.map and hasattr(mmap, "MADV_DONTNEED"):
            # pages that were read count as this process's memory: let go, they stay in the system's cache
            self.map.madvise(mmap.MADV_DONTNEED)
        return good

    def repair(self, slot: int, crc: int, square: np.ndarray) -> None:
        """Put a square back into its slot; if it is another than was stored, its file has changed: forget the slot."""
        try:
            with storing():
                if zlib.crc32(square) == crc:
                    with (self.folder / SQUARES).open("r+b", buffering=0) as file:
                        _write_square(file, slot, square)
                else:
                    with closing(Index(self.folder / INDEX)) as index:
                        index.forget(slot)
        except CannotStoreError:  # it is found again, and decoded again, by whoever comes next
            pass


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_square(file, slot: int, square: np.ndarray) -> None:
    rest = memoryview(np.ascontiguousarray(square)).cast("B")
    file.seek(slot * len(rest))
    while rest:  # an unbuffered write may take less than it was given, as on a disk that fills up
        rest = rest[file.write(rest) :]
