"""Index of an image cache (SQLite): the slot and checksum of each image, by file signature and content hash.

The index contains a slot only after its bytes were written, and never assigns a slot number twice.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from fastcxr.data.imaging.read import fit_square, read_image, read_open_image
from fastcxr.data.imaging.sniff import Remarks, collect_remarks, open_file
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import ImageError

INDEX_FILE = "index.sqlite"
LOOKUP_ROWS = 20_000  # file signatures or slots of one query
LOCK_TIMEOUT_SECONDS = 120.0  # another process holds the lock for less than one second at a time
SCHEMA = (
    # AUTOINCREMENT: a deleted number is not used again, because a reader may still repair its slot
    "CREATE TABLE IF NOT EXISTS images "
    "(slot INTEGER PRIMARY KEY AUTOINCREMENT, content_hash BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, "
    "warnings TEXT NOT NULL, peak INTEGER)",  # "{}" and NULL without remarks
    "CREATE TABLE IF NOT EXISTS files (signature BLOB PRIMARY KEY, content_hash BLOB NOT NULL) WITHOUT ROWID",
)
NO_LOCATION = (0, 0)  # slots start at 1
MIN_FILE_AGE_SECONDS = 2.0  # resolution of file times: a younger file may change again without a new time
MAX_READ_ATTEMPTS = 3


@dataclass(frozen=True)
class DecodedFile:
    """Content of one image file."""

    signature: bytes | None  # None: the file is too young to be identified by its times
    content_hash: bytes
    image: np.ndarray | None  # None: an image with this hash is cached
    remarks: Remarks = field(default_factory=Remarks)


class ImageIndex:
    """An open, thread-safe index. Every method may raise sqlite3.Error."""

    def __init__(self, path: Path):
        self.connection = sqlite3.connect(
            path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self.lock = threading.Lock()
        try:
            with self.lock, self.connection:
                self.connection.execute("BEGIN IMMEDIATE")
                for table in SCHEMA:
                    self.connection.execute(table)
            self.first_version = self._read_version()
        except sqlite3.Error:
            self.connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.connection.close()

    def find_locations(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Return slot and checksum of each file signature, shape (n, 2); zeros if it is unknown."""
        query = (
            "SELECT ifnull(slot, 0), ifnull(crc, 0) FROM requested LEFT JOIN files ON signature = key "
            "LEFT JOIN images USING (content_hash) ORDER BY number"
        )
        found = [np.array(rows, np.int64) for rows in self._look_up(signatures, query)]
        return np.concatenate([np.zeros((0, 2), np.int64), *found])

    def find_remarks(self, slots: np.ndarray) -> dict[int, Remarks]:
        """Return the remarks on the images of these slots by position, without images that have none.

        Images with equal remarks share one object.
        """
        query = (
            "SELECT number, warnings, peak FROM requested JOIN images ON slot = key "
            "WHERE warnings != '{}' OR peak IS NOT NULL ORDER BY number"
        )

        @cache
        def make_remarks(warnings: str, peak: int | None) -> Remarks:
            return Remarks(json.loads(warnings), peak)

        found = self._look_up(slots.tolist(), query)
        return {number: make_remarks(warnings, peak) for rows in found for number, warnings, peak in rows}

    def _look_up(self, keys: Iterable[bytes | int | None], query: str) -> Iterator[list[tuple]]:
        """Yield the rows of a query on the table `requested`, which numbers the keys from 0, for LOOKUP_ROWS keys."""
        numbered = enumerate(keys)
        with self.lock:
            self.connection.execute("CREATE TEMP TABLE requested (number INTEGER PRIMARY KEY, key)")
            try:
                while chunk := list(islice(numbered, LOOKUP_ROWS)):
                    with self.connection:
                        self.connection.execute("BEGIN")
                        self.connection.executemany("INSERT INTO requested VALUES (?, ?)", chunk)
                        rows = self.connection.execute(query).fetchall()
                        self.connection.execute("DELETE FROM requested")
                    yield rows
            finally:
                self.connection.execute("DROP TABLE requested")

    def has_changed(self) -> bool:
        """Return whether another connection has changed the index since it was opened here."""
        with self.lock:
            return self._read_version() != self.first_version

    def _read_version(self) -> int:
        return self.connection.execute("PRAGMA data_version").fetchone()[0]

    def is_known(self, content_hash: bytes) -> bool:
        """Return whether an image with this content hash is in the index."""
        with self.lock:
            return self._find_location(content_hash) is not None

    def add(
        self, decoded_files: list[DecodedFile], write_image: Callable[[int, np.ndarray], None]
    ) -> list[tuple[int, int]]:
        """Add all decoded files or none, and return slot and checksum of each; `write_image` stores new images."""
        with self.lock, self.connection:
            self.connection.execute(
                "BEGIN IMMEDIATE"
            )  # no other process assigns slots until the end of the transaction
            return [self._add_image(decoded, write_image) for decoded in decoded_files]

    def _add_image(self, decoded: DecodedFile, write_image: Callable[[int, np.ndarray], None]) -> tuple[int, int]:
        location = self._find_location(decoded.content_hash)
        if location is None:
            if decoded.image is None:
                return NO_LOCATION  # another process has deleted it since is_known
            crc = zlib.crc32(decoded.image.data)
            row = decoded.content_hash, crc, json.dumps(decoded.remarks.warnings), decoded.remarks.peak
            insert = "INSERT INTO images (content_hash, crc, warnings, peak) VALUES (?, ?, ?, ?)"
            slot = cast(int, self.connection.execute(insert, row).lastrowid)
            write_image(slot, decoded.image)
            location = slot, crc
        if decoded.signature:
            row = decoded.signature, decoded.content_hash
            self.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", row)
        return location

    def _find_location(self, content_hash: bytes) -> tuple[int, int] | None:
        query = "SELECT slot, crc FROM images WHERE content_hash = ?"
        return self.connection.execute(query, (content_hash,)).fetchone()

    def delete(self, slot: int) -> None:
        """Delete a damaged image from the index."""
        self.connection.execute("DELETE FROM images WHERE slot = ?", (slot,))

    def delete_truncated(self, slots_per_file: int, count_slots: Callable[[int], int]) -> None:
        """Delete the images beyond the end of a truncated or missing file; `count_slots(number)`: slots of a file."""
        # the index is read first: another process may add images, and stores their bytes before their index rows
        last = self.connection.execute("SELECT ifnull(max(slot), 0) FROM images").fetchone()[0]
        for number, first in enumerate(range(0, last + 1, slots_per_file)):
            first_missing, end = first + count_slots(number), min(first + slots_per_file, last + 1)
            if first_missing < end:
                range_ = first_missing, end - 1
                self.connection.execute("DELETE FROM images WHERE slot BETWEEN ? AND ?", range_)


def file_signature(file: str, depth: int | None = None) -> bytes | None:
    """Return a hash of path, times, size and bit depth that changes with every write; None for a missing file."""
    reference = parse_reference(file)
    try:
        return _hash_status(file, os.stat(reference[0] if reference else file), depth)
    except (OSError, ValueError):
        return None


def decode(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None = None) -> DecodedFile:
    """Read a file, and decode it unless its content hash is known at this bit depth. Raises ImageError."""
    reference = parse_reference(file)
    if reference:
        return _decode_packed(file, reference[0], size, is_known, depth)
    for _ in range(MAX_READ_ATTEMPTS):
        if decoded := _decode_file(file, size, is_known, depth):
            return decoded
    problem, fix = "the file changes while it is read", "Wait until it is written, and start again"
    raise ImageError(problem, fix, path=file, code="E115")


def read_fitted_image(file: str, size: int, depth: int | None = None) -> np.ndarray:
    """Decode a file, and return its image, shape (size, size). Raises ImageError."""
    with collect_remarks():  # the cache stores the remarks of the first decoding
        return fit_square(read_image(file, depth), size)


def _decode_file(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None) -> DecodedFile | None:
    """Return the decoded file, or None if it was written to meanwhile: image and hash may then differ."""
    with open_file(file) as stream, collect_remarks() as remarks:
        status = os.fstat(stream.fileno())
        content_hash = _hash_content(stream, file, depth)
        if is_known(content_hash):
            image = None
        else:
            stream.seek(0)
            image = fit_square(read_open_image(stream, file, depth), size)
            if not _is_old_enough(status):
                raw = cast(FileIO, stream.raw)  # decoders move the position of the file without that of the buffer
                raw.seek(0)
                if _hash_content(raw, file, depth) != content_hash:
                    return None
        is_unchanged = _hash_status(file, os.fstat(stream.fileno()), depth) == _hash_status(file, status, depth)
    if not is_unchanged and image is not None:
        return None
    signature = _hash_status(file, status, depth) if is_unchanged and _is_old_enough(status) else None
    return DecodedFile(signature, content_hash, image, remarks)


def _decode_packed(
    file: str, container: str, size: int, is_known: Callable[[bytes], bool], depth: int | None
) -> DecodedFile:
    signature = file_signature(file, depth)
    image = read_image(file)  # packed pixels have 8 bits, therefore without depth
    content_hash = hashlib.sha256(f"packed {image.shape} ".encode() + image.tobytes()).digest()
    fitted = None if is_known(content_hash) else fit_square(image, size)
    is_stable = signature == file_signature(file, depth) and _is_old_enough(os.stat(container))
    return DecodedFile(signature if is_stable else None, content_hash, fitted)


def _hash_content(file: BufferedReader | FileIO, name: str, depth: int | None) -> bytes:
    try:
        digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ImageError(problem, "Check the disk, or copy it again", path=name, code="E113") from error
    # with the suffix, which may decide: a PNG named .dcm is refused, and a DICOM without signature needs the suffix
    return hashlib.sha256(digest + os.fsencode(Path(name).suffix.lower()) + _encode_depth(depth)).digest()


def _encode_depth(depth: int | None) -> bytes:
    return f"\0{depth} bit".encode() if depth else b""


def _hash_status(file: str, status: os.stat_result, depth: int | None) -> bytes:
    # with ctime, because a copied file may keep the mtime of the file that it replaces
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    named = os.fsencode(os.path.abspath(file)) + f"\0{times}".encode() + _encode_depth(depth)
    return hashlib.blake2b(named, digest_size=16).digest()


def _is_old_enough(status: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime, status.st_ctime) > MIN_FILE_AGE_SECONDS
