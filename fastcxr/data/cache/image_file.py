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

from fastcxr.data.cache.index import IMAGES_FILE, INDEX_FILE, DecodedFile, ImageIndex
from fastcxr.data.cache.quota import CannotStoreError, acquire_shared_lock, convert_storage_errors
from fastcxr.data.imaging.sniff import Remarks


class ImageStoreWriter:
    """A shelf that is being filled. Every method may raise CannotStoreError."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with convert_storage_errors(), ExitStack() as exit_stack:
            exit_stack.enter_context(acquire_shared_lock(folder))
            self.file = exit_stack.enter_context(open(folder / IMAGES_FILE, "r+b", buffering=0, opener=_open_or_create))
            self.index = exit_stack.enter_context(closing(ImageIndex(folder / INDEX_FILE)))
            self.index.delete_truncated(self._count_slots)
            self.exit_stack = exit_stack.pop_all()

    def __enter__(self) -> "ImageStoreWriter":
        return self

    def __exit__(self, *_) -> None:
        self.exit_stack.close()

    def find_locations(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Slot and checksum of each state, shape (n, 2); zeros where it is not known."""
        with convert_storage_errors():
            return self.index.find_locations(signatures)

    def find_remarks(self) -> dict[int, Remarks]:
        """What was remarked on squares when they were decoded, by slot; only those on which something was."""
        with convert_storage_errors():
            return self.index.find_remarks()

    def is_known(self, content_hash: bytes) -> bool:
        """Whether a content has a square."""
        with convert_storage_errors():
            return self.index.is_known(content_hash)

    def add(self, decoded_files: list[DecodedFile]) -> list[tuple[int, int]]:
        """Slot and checksum of each look, now stored."""
        with convert_storage_errors():
            return self.index.add(decoded_files, self._write_slot)

    def _write_slot(self, slot: int, image: np.ndarray) -> None:
        _write_image(self.file, slot, image)

    def _count_slots(self) -> int:
        return os.fstat(self.file.fileno()).st_size // self.size**2


class MappedImages:
    """A mapped shelf: no picture is in memory but those that are copied out of it."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with convert_storage_errors():
            self.lock_file = acquire_shared_lock(folder)
            weakref.finalize(self, self.lock_file.close)
            with (folder / IMAGES_FILE).open("rb") as file:
                self.n_slots = os.fstat(file.fileno()).st_size // size**2
                length = self.n_slots * size**2  # an empty file cannot be mapped
                self.buffer = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) if length else b""
        self.images = np.frombuffer(self.buffer, np.uint8).reshape(self.n_slots, size, size)

    def __reduce__(self):  # a worker that was not forked maps the file anew, instead of getting all its bytes
        return MappedImages, (self.folder, self.size)

    def copy_images(self, locations: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Fill `out`, shape (n, size, size), from slots and checksums, shape (n, 2); true where it is as stored."""
        is_intact = np.zeros(len(locations), bool)
        for position, (slot, crc) in enumerate(locations.tolist()):
            if 0 < slot < self.n_slots:
                out[position] = self.images[slot]
                is_intact[position] = zlib.crc32(out[position]) == crc
        if self.buffer and hasattr(mmap, "MADV_DONTNEED"):
            # pages that were read count as this process's memory: let go, they stay in the system's cache
            self.buffer.madvise(mmap.MADV_DONTNEED)
        return is_intact

    def repair(self, slot: int, crc: int, image: np.ndarray) -> None:
        """Put a square back into its slot; if it is another than was stored, its file has changed: forget the slot."""
        try:
            with convert_storage_errors():
                if zlib.crc32(image) == crc:
                    with (self.folder / IMAGES_FILE).open("r+b", buffering=0) as file:
                        _write_image(file, slot, image)
                else:
                    with closing(ImageIndex(self.folder / INDEX_FILE)) as index:
                        index.delete(slot)
        except CannotStoreError:  # it is found again, and decoded again, by whoever comes next
            pass


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_image(file, slot: int, image: np.ndarray) -> None:
    remaining = memoryview(np.ascontiguousarray(image)).cast("B")
    file.seek(slot * len(remaining))
    while remaining:  # an unbuffered write may take less than it was given, as on a disk that fills up
        remaining = remaining[file.write(remaining) :]
