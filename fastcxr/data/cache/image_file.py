"""The file with all cached images of one size, one slot per image, which is memory-mapped for reading.

Each image is compared with the checksum in the index when it is read. Therefore writes need no particular order, and
an incomplete or damaged image is decoded again.
"""

import mmap
import os
import weakref
import zlib
from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np

from fastcxr.data.cache.index import IMAGES_FILE, INDEX_FILE, DecodedFile, ImageIndex
from fastcxr.data.cache.quota import CannotStoreError, acquire_shared_lock, convert_storage_errors
from fastcxr.data.imaging.sniff import Remarks


class ImageStoreWriter:
    """An image cache that is open for writing. Every method may raise CannotStoreError."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with convert_storage_errors(), ExitStack() as exit_stack:
            exit_stack.enter_context(acquire_shared_lock(folder))
            self.file = exit_stack.enter_context(open(folder / IMAGES_FILE, "r+b", buffering=0, opener=_open_or_create))
            self.index = exit_stack.enter_context(closing(ImageIndex(folder / INDEX_FILE)))
            self.index.delete_truncated(lambda: os.fstat(self.file.fileno()).st_size // size**2)
            self.exit_stack = exit_stack.pop_all()

    def __enter__(self) -> "ImageStoreWriter":
        return self

    def __exit__(self, *_) -> None:
        self.exit_stack.close()

    def find_locations(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Return slot and checksum of each file signature, shape (n, 2); zeros if it is unknown."""
        with convert_storage_errors():
            return self.index.find_locations(signatures)

    def find_remarks(self) -> dict[int, Remarks]:
        """Return the remarks on images by slot, without images that have none."""
        with convert_storage_errors():
            return self.index.find_remarks()

    def is_known(self, content_hash: bytes) -> bool:
        """Return whether an image with this content hash is cached."""
        with convert_storage_errors():
            return self.index.is_known(content_hash)

    def add(self, decoded_files: list[DecodedFile]) -> list[tuple[int, int]]:
        """Store decoded files, and return slot and checksum of each."""
        with convert_storage_errors():
            return self.index.add(decoded_files, partial(_write_image, self.file))


class MappedImages:
    """A memory-mapped image cache; only images that are copied from it use memory."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        with convert_storage_errors():
            self.lock_file = acquire_shared_lock(folder)
            weakref.finalize(self, self.lock_file.close)
            with (folder / IMAGES_FILE).open("rb") as file:
                self.n_slots = os.fstat(file.fileno()).st_size // size**2
                length = self.n_slots * size**2  # an empty file cannot be mapped
                self.buffer = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) if length else None
        self.images = np.frombuffer(self.buffer or b"", np.uint8).reshape(self.n_slots, size, size)

    def __reduce__(self):  # a spawned worker maps the file again instead of receiving its bytes
        return MappedImages, (self.folder, self.size)

    def copy_images(self, locations: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the images at `locations`, shape (n, 2), to `out`, shape (n, size, size); return which are undamaged."""
        is_intact = np.zeros(len(locations), bool)
        for position, (slot, crc) in enumerate(locations.tolist()):
            if 0 < slot < self.n_slots:
                out[position] = self.images[slot]
                is_intact[position] = zlib.crc32(out[position].data) == crc
        if self.buffer and hasattr(mmap, "MADV_DONTNEED"):
            # pages that were read count as memory of this process; released pages stay in the cache of the system
            self.buffer.madvise(mmap.MADV_DONTNEED)
        return is_intact

    def repair(self, slot: int, crc: int, image: np.ndarray) -> None:
        """Write an image to its slot again, or delete the slot if its checksum differs because the file has changed."""
        try:
            with convert_storage_errors():
                if zlib.crc32(image.data) == crc:
                    with (self.folder / IMAGES_FILE).open("r+b", buffering=0) as file:
                        _write_image(file, slot, image)
                else:
                    with closing(ImageIndex(self.folder / INDEX_FILE)) as index:
                        index.delete(slot)
        except CannotStoreError:  # the next reader finds the damage and decodes the file again
            pass


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_image(file, slot: int, image: np.ndarray) -> None:
    remaining = np.ascontiguousarray(image).data.cast("B")
    file.seek(slot * len(remaining))
    while remaining:  # an unbuffered write may be partial, for example on a full disk
        remaining = remaining[file.write(remaining) :]
