"""The files with all cached images of one size, one slot per image, which are memory-mapped for reading.

The file images-0000 has the first slots, images-0001 the next ones, and so on: a file has at most MAX_FILE_BYTES, and
no image is in two files. A damaged file therefore affects only its images. Each image is compared with the checksum in
the index when it is read. Therefore writes need no particular order, and an incomplete or damaged image is decoded
again.
"""

import mmap
import os
import threading
import weakref
import zlib
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastcxr.data.cache.index import INDEX_FILE, DecodedFile, ImageIndex
from fastcxr.data.cache.quota import CannotStoreError, acquire_shared_lock, convert_storage_errors
from fastcxr.data.imaging.sniff import Remarks

MAX_FILE_BYTES = 1 << 30  # of one file; another value needs another IMAGE_CACHE_FORMAT


class ImageStoreWriter:
    """An image cache that is open for writing. Every method may raise CannotStoreError."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size, self.files = folder, size, dict[int, BinaryIO]()
        with convert_storage_errors(), ExitStack() as exit_stack:
            exit_stack.enter_context(acquire_shared_lock(folder))
            self.index = exit_stack.enter_context(closing(ImageIndex(folder / INDEX_FILE)))
            self.index.delete_truncated(count_file_slots(size), lambda number: count_stored_slots(folder, number, size))
            self.exit_stack = exit_stack.pop_all()

    def __enter__(self) -> "ImageStoreWriter":
        return self

    def __exit__(self, *_) -> None:
        self.exit_stack.close()

    def find_locations(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Return slot and checksum of each file signature, shape (n, 2); zeros if it is unknown."""
        with convert_storage_errors():
            return self.index.find_locations(signatures)

    def find_remarks(self, slots: np.ndarray) -> dict[int, Remarks]:
        """Return the remarks on the images of these slots by position, without images that have none."""
        with convert_storage_errors():
            return self.index.find_remarks(slots)

    def has_changed(self) -> bool:
        """Return whether another process has changed the index since it was opened here."""
        with convert_storage_errors():
            return self.index.has_changed()

    def is_known(self, content_hash: bytes) -> bool:
        """Return whether an image with this content hash is cached."""
        with convert_storage_errors():
            return self.index.is_known(content_hash)

    def add(self, decoded_files: list[DecodedFile]) -> list[tuple[int, int]]:
        """Store decoded files, and return slot and checksum of each."""
        with convert_storage_errors():
            return self.index.add(decoded_files, self._write)

    def _write(self, slot: int, image: np.ndarray) -> None:
        number, position = divmod(slot, count_file_slots(self.size))
        if number not in self.files:
            path = self.folder / name_image_file(number)
            file = open(path, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115  the exit stack closes it
            self.files[number] = self.exit_stack.enter_context(file)
        _write_image(self.files[number], position, image)


class MappedImages:
    """A memory-mapped image cache; each file is mapped when the first of its images is read.

    Only images that are copied from it use memory.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.maps: dict[int, tuple[np.ndarray, mmap.mmap | None]] = {}  # images and buffer of each file
        self.map_lock = threading.Lock()
        with convert_storage_errors():
            self.lock_file = acquire_shared_lock(folder)
            weakref.finalize(self, self.lock_file.close)

    def __reduce__(self):  # a spawned worker maps the files again instead of receiving their bytes
        return MappedImages, (self.folder, self.size)

    def copy_images(self, locations: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the images at `locations`, shape (n, 2), to `out`, shape (n, size, size); return which are undamaged."""
        is_intact = np.zeros(len(locations), bool)
        numbers, places = np.divmod(locations[:, 0], count_file_slots(self.size))
        for number in np.unique(numbers).tolist():
            images, buffer = self._map_file(number)
            positions = np.flatnonzero(numbers == number)
            _read_ahead(buffer, places[positions], self.size**2)
            for position in positions.tolist():
                slot, place = int(locations[position, 0]), int(places[position])
                if slot > 0 and place < len(images):
                    out[position] = images[place]
                    is_intact[position] = zlib.crc32(out[position].data) == locations[position, 1]
            if buffer and hasattr(mmap, "MADV_DONTNEED"):
                # pages that were read count as memory of this process; released pages stay in the cache of the system
                buffer.madvise(mmap.MADV_DONTNEED)
        return is_intact

    def repair(self, slot: int, crc: int, image: np.ndarray) -> None:
        """Write an image to its slot again, or delete the slot if its checksum differs because the file has changed."""
        number, place = divmod(slot, count_file_slots(self.size))
        try:
            with convert_storage_errors():
                if zlib.crc32(image.data) == crc:
                    with (self.folder / name_image_file(number)).open("r+b", buffering=0) as file:
                        _write_image(file, place, image)
                else:
                    with closing(ImageIndex(self.folder / INDEX_FILE)) as index:
                        index.delete(slot)
        except CannotStoreError:  # the next reader finds the damage and decodes the file again
            pass

    def _map_file(self, number: int) -> tuple[np.ndarray, mmap.mmap | None]:
        """Return the images of a file, and its buffer; no images for a file that is missing."""
        with self.map_lock:
            if number not in self.maps:
                self.maps[number] = _map_images(self.folder / name_image_file(number), self.size)
            return self.maps[number]


def name_image_file(number: int) -> str:
    """Return the name of a file of images."""
    return f"images-{number:04d}"


def count_file_slots(size: int) -> int:
    """Return the number of images of this size in one file."""
    return max(1, MAX_FILE_BYTES // size**2)


def count_stored_slots(folder: Path, number: int, size: int) -> int:
    """Return the number of slots in a file, which has fewer than count_file_slots if it is truncated or the last."""
    try:
        return (folder / name_image_file(number)).stat().st_size // size**2
    except FileNotFoundError:
        return 0


def _map_images(path: Path, size: int) -> tuple[np.ndarray, mmap.mmap | None]:
    try:
        with path.open("rb") as file:
            n_slots = os.fstat(file.fileno()).st_size // size**2
            length = n_slots * size**2  # an empty file cannot be mapped
            buffer = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) if length else None
    except OSError:  # missing or unreadable: its images are decoded again
        n_slots, buffer = 0, None
    return np.frombuffer(buffer or b"", np.uint8).reshape(n_slots, size, size), buffer


def _read_ahead(buffer: mmap.mmap | None, places: np.ndarray, n_bytes: int) -> None:
    """Request the pages of images of `n_bytes` each: a disk reads them at once, not one image after the other."""
    if buffer is None or len(places) < 2 or not hasattr(mmap, "MADV_WILLNEED"):
        return
    for place in places.tolist():
        start = place * n_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        if 0 <= start < len(buffer):
            buffer.madvise(mmap.MADV_WILLNEED, start, min((place + 1) * n_bytes, len(buffer)) - start)


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o600)


def _write_image(file, place: int, image: np.ndarray) -> None:
    remaining = np.ascontiguousarray(image).data.cast("B")
    file.seek(place * len(remaining))
    while remaining:  # an unbuffered write may be partial, for example on a full disk
        remaining = remaining[file.write(remaining) :]
