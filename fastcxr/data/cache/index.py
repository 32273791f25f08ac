"""Names of states and contents come in; the slot of each square, and the checksum that it was stored with, go out.

A slot is seen here only after its bytes were written, and its number is never given twice.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastcxr.data.imaging.read import fit_square, read_image, read_open_image
from fastcxr.data.imaging.sniff import Remarks, collect_remarks, open_file
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import ImageError

IMAGES_FILE, INDEX_FILE = "images", "index.sqlite"
LOCK_TIMEOUT_SECONDS = 120.0  # seconds for another process, which writes for less than one at a time
SCHEMA = (
    # AUTOINCREMENT: the number of a square that was forgotten must not become another's, whom a reader would overwrite
    "CREATE TABLE IF NOT EXISTS images "
    "(slot INTEGER PRIMARY KEY AUTOINCREMENT, content_hash BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, "
    "warnings TEXT NOT NULL, peak INTEGER)",  # a JSON object, and NULL, where nothing was remarked
    "CREATE TABLE IF NOT EXISTS files (signature BLOB PRIMARY KEY, content_hash BLOB NOT NULL) WITHOUT ROWID",
)
NO_LOCATION = (0, 0)  # slots begin with 1
MIN_FILE_AGE_SECONDS = (
    2.0  # seconds: file systems tell times this coarsely, so a younger file may change once more and look the same
)
MAX_READ_ATTEMPTS = 3


@dataclass(frozen=True)
class DecodedFile:
    """What was found in a file."""

    signature: bytes | None  # None: the file is too young to be known again by its times
    content_hash: bytes
    image: np.ndarray | None  # None: the content was known
    remarks: Remarks = field(default_factory=Remarks)  # on the square, while it was decoded


class ImageIndex:
    """An open index, for any number of threads; every method may raise sqlite3.Error."""

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
        except sqlite3.Error:
            self.connection.close()
            raise

    def close(self) -> None:
        """Let the file go."""
        self.connection.close()

    def find_locations(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Slot and checksum of each state, shape (n, 2); zeros where it is not known."""
        with self.lock, self.connection:
            self.connection.execute("BEGIN")
            self.connection.execute("CREATE TEMP TABLE asked (number INTEGER PRIMARY KEY, signature BLOB)")
            self.connection.executemany("INSERT INTO asked VALUES (?, ?)", enumerate(signatures))
            rows = self.connection.execute(
                "SELECT ifnull(slot, 0), ifnull(crc, 0) FROM asked LEFT JOIN files USING (signature) "
                "LEFT JOIN images USING (content_hash) ORDER BY number"
            )
            locations = np.fromiter((number for row in rows for number in row), np.int64).reshape(-1, 2)
            self.connection.execute("DROP TABLE asked")
        return locations

    def find_remarks(self) -> dict[int, Remarks]:
        """What was remarked on squares when they were decoded, by slot; only those on which something was."""
        with self.lock:
            remarked = "warnings != '{}' OR peak IS NOT NULL"
            rows = self.connection.execute(f"SELECT slot, warnings, peak FROM images WHERE {remarked}").fetchall()
        return {slot: Remarks(json.loads(warnings), peak) for slot, warnings, peak in rows}

    def is_known(self, content_hash: bytes) -> bool:
        """Whether a content has a square."""
        with self.lock:
            return self._find_location(content_hash) is not None

    def add(
        self, decoded_files: list[DecodedFile], write_image: Callable[[int, np.ndarray], None]
    ) -> list[tuple[int, int]]:
        """Slot and checksum of each; `write` gets those that have none yet. All of it happens or nothing."""
        with self.lock, self.connection:
            self.connection.execute("BEGIN IMMEDIATE")  # from here on no other process gives slots away
            return [self._add_image(look, write_image) for look in decoded_files]

    def _add_image(self, decoded: DecodedFile, write_image: Callable[[int, np.ndarray], None]) -> tuple[int, int]:
        location = self._find_location(decoded.content_hash)
        if location is None and decoded.image is None:
            return NO_LOCATION  # known when it was looked at, and forgotten since
        if location is None:
            crc = zlib.crc32(decoded.image)
            row = decoded.content_hash, crc, json.dumps(decoded.remarks.warnings), decoded.remarks.peak
            insert = "INSERT INTO images (content_hash, crc, warnings, peak) VALUES (?, ?, ?, ?)"
            slot = self.connection.execute(insert, row).lastrowid
            write_image(slot, decoded.image)
            location = slot, crc
        if decoded.signature:
            self.connection.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?)", (decoded.signature, decoded.content_hash)
            )
        return location

    def _find_location(self, content_hash: bytes) -> tuple[int, int] | None:
        return self.connection.execute(
            "SELECT slot, crc FROM images WHERE content_hash = ?", (content_hash,)
        ).fetchone()

    def delete(self, slot: int) -> None:
        """The square in this slot is not to be trusted."""
        self.connection.execute("DELETE FROM images WHERE slot = ?", (slot,))

    def delete_truncated(self, count_slots: Callable[[], int]) -> None:
        """Forget squares whose bytes are gone, because somebody cut the file; `count` says how many slots it holds."""
        # in this order: what is in the index has its bytes already, however many others are being added
        last = self.connection.execute("SELECT ifnull(max(slot), 0) FROM images").fetchone()[0]
        n_slots = count_slots()
        if last >= n_slots:
            self.connection.execute("DELETE FROM images WHERE slot BETWEEN ? AND ?", (n_slots, last))


def file_signature(file: str, depth: int | None = None) -> bytes | None:
    """A name that changes whenever the file is written to, of the file at a bit depth; None for one not there."""
    reference = parse_reference(file)
    try:
        return _hash_status(file, os.stat(reference[0] if reference else file), depth)
    except (OSError, ValueError):
        return None


def decode(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None = None) -> DecodedFile:
    """Read a file, and decode it unless its content is known at this bit depth. Raises ImageError."""
    reference = parse_reference(file)
    for _ in range(MAX_READ_ATTEMPTS):
        if reference:
            decoded = _decode_packed(file, reference[0], size, is_known, depth)
        else:
            decoded = _decode_file(file, size, is_known, depth)
        if decoded:
            return decoded
    problem, fix = "changes while it is read", "Wait until it is written, and start again"
    raise ImageError(problem, fix, path=file, code="E115")


def read_fitted_image(file: str, size: int, depth: int | None = None) -> np.ndarray:
    """The square of a file, decoded now. Raises ImageError."""
    with collect_remarks():  # what is remarked is kept beside the square that this one replaces
        return fit_square(read_image(file, depth), size)


def _decode_file(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None) -> DecodedFile | None:
    """None for a file that was written to in the meantime: its square may be of another content than its checksum."""
    with open_file(file) as stream, collect_remarks() as remarks:
        status = os.fstat(stream.fileno())
        content_hash = _hash_content(stream, file, depth)
        if is_known(content_hash):
            image = None
        else:
            stream.seek(0)
            image = fit_square(read_open_image(stream, file, depth), size)
            if not _is_old_enough(status):
                stream.raw.seek(0)  # raw: decoders move the file behind the buffer's back
                if _hash_content(stream.raw, file, depth) != content_hash:
                    return None
        is_unchanged = _hash_status(file, os.fstat(stream.fileno()), depth) == _hash_status(file, status, depth)
    if not is_unchanged and image is not None:
        return None
    state = _hash_status(file, status, depth) if is_unchanged and _is_old_enough(status) else None
    return DecodedFile(state, content_hash, image, remarks)


def _decode_packed(
    file: str, container: str, size: int, is_known: Callable[[bytes], bool], depth: int | None
) -> DecodedFile:
    signature = file_signature(
        file, depth
    )  # its pixels were made 8-bit when it was packed, and are of no further depth
    image = read_image(file)
    content_hash = hashlib.sha256(f"packed {image.shape} ".encode() + image.tobytes()).digest()
    fitted = None if is_known(content_hash) else fit_square(image, size)
    is_stable = signature == file_signature(file, depth) and _is_old_enough(os.stat(container))
    return DecodedFile(signature if is_stable else None, content_hash, fitted)


def _hash_content(file: BinaryIO, name: str, depth: int | None) -> bytes:
    try:
        digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ImageError(problem, "Check the disk, or copy it again", path=name, code="E113") from error
    # the suffix too, for a name may decide: a PNG called .dcm is refused, and a bare header is DICOM in .dcm alone
    return hashlib.sha256(digest + os.fsencode(Path(name).suffix.lower()) + _name_depth(depth)).digest()


def _name_depth(depth: int | None) -> bytes:
    return f"\0{depth} bit".encode() if depth else b""


def _hash_status(file: str, status: os.stat_result, depth: int | None) -> bytes:
    # the time of change too: a copy may keep the time of writing of what it replaces
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    named = os.fsencode(os.path.abspath(file)) + f"\0{times}".encode() + _name_depth(depth)
    return hashlib.blake2b(named, digest_size=16).digest()


def _is_old_enough(status: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime, status.st_ctime) > MIN_FILE_AGE_SECONDS
