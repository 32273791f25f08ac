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
from fastcxr.data.imaging.sniff import Remarks, collecting, open_file
from fastcxr.data.readers.hdf5 import read_reference
from fastcxr.errors import ImageError

SQUARES, INDEX = "squares", "index.sqlite"
WAIT = 120.0  # seconds for another process, which writes for less than one at a time
SCHEMA = (
    # AUTOINCREMENT: the number of a square that was forgotten must not become another's, whom a reader would overwrite
    "CREATE TABLE IF NOT EXISTS squares "
    "(slot INTEGER PRIMARY KEY AUTOINCREMENT, content BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, "
    "warnings TEXT NOT NULL, peak INTEGER)",  # a JSON object, and NULL, where nothing was remarked
    "CREATE TABLE IF NOT EXISTS files (state BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",
)
NOWHERE = (0, 0)  # slots begin with 1
SETTLED = (
    2.0  # seconds: file systems tell times this coarsely, so a younger file may change once more and look the same
)
ATTEMPTS = 3


@dataclass(frozen=True)
class Look:
    """What was found in a file."""

    state: bytes | None  # None: the file is too young to be known again by its times
    content: bytes
    square: np.ndarray | None  # None: the content was known
    remarks: Remarks = field(default_factory=Remarks)  # on the square, while it was decoded


class Index:
    """An open index, for any number of threads; every method may raise sqlite3.Error."""

    def __init__(self, path: Path):
        self.base = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        self.turn = threading.Lock()
        try:
            with self.turn, self.base:
                self.base.execute("BEGIN IMMEDIATE")
                for table in SCHEMA:
                    self.base.execute(table)
        except sqlite3.Error:
            self.base.close()
            raise

    def close(self) -> None:
        """Let the file go."""
        self.base.close()

    def find(self, states: Iterable[bytes | None]) -> np.ndarray:
        """Slot and checksum of each state, shape (n, 2); zeros where it is not known."""
        with self.turn, self.base:
            self.base.execute("BEGIN")
            self.base.execute("CREATE TEMP TABLE asked (number INTEGER PRIMARY KEY, state BLOB)")
            self.base.executemany("INSERT INTO asked VALUES (?, ?)", enumerate(states))
            rows = self.base.execute(
                "SELECT ifnull(slot, 0), ifnull(crc, 0) FROM asked LEFT JOIN files USING (state) "
                "LEFT JOIN squares USING (content) ORDER BY number"
            )
            places = np.fromiter((number for row in rows for number in row), np.int64).reshape(-1, 2)
            self.base.execute("DROP TABLE asked")
        return places

    def find_remarks(self) -> dict[int, Remarks]:
        """What was remarked on squares when they were decoded, by slot; only those on which something was."""
        with self.turn:
            remarked = "warnings != '{}' OR peak IS NOT NULL"
            rows = self.base.execute(f"SELECT slot, warnings, peak FROM squares WHERE {remarked}").fetchall()
        return {slot: Remarks(json.loads(warnings), peak) for slot, warnings, peak in rows}

    def is_known(self, content: bytes) -> bool:
        """Whether a content has a square."""
        with self.turn:
            return self._place(content) is not None

    def add(self, looks: list[Look], write: Callable[[int, np.ndarray], None]) -> list[tuple[int, int]]:
        """Slot and checksum of each; `write` gets those that have none yet. All of it happens or nothing."""
        with self.turn, self.base:
            self.base.execute("BEGIN IMMEDIATE")  # from here on no other process gives slots away
            return [self._add(look, write) for look in looks]

    def _add(self, look: Look, write: Callable[[int, np.ndarray], None]) -> tuple[int, int]:
        place = self._place(look.content)
        if place is None and look.square is None:
            return NOWHERE  # known when it was looked at, and forgotten since
        if place is None:
            crc = zlib.crc32(look.square)
            row = look.content, crc, json.dumps(look.remarks.warnings), look.remarks.peak
            insert = "INSERT INTO squares (content, crc, warnings, peak) VALUES (?, ?, ?, ?)"
            slot = self.base.execute(insert, row).lastrowid
            write(slot, look.square)
            place = slot, crc
        if look.state:
            self.base.execute("INSERT OR REPLACE INTO files VALUES (?, ?)", (look.state, look.content))
        return place

    def _place(self, content: bytes) -> tuple[int, int] | None:
        return self.base.execute("SELECT slot, crc FROM squares WHERE content = ?", (content,)).fetchone()

    def forget(self, slot: int) -> None:
        """The square in this slot is not to be trusted."""
        self.base.execute("DELETE FROM squares WHERE slot = ?", (slot,))

    def forget_cut(self, count: Callable[[], int]) -> None:
        """Forget squares whose bytes are gone, because somebody cut the file; `count` says how many slots it holds."""
        # in this order: what is in the index has its bytes already, however many others are being added
        last = self.base.execute("SELECT ifnull(max(slot), 0) FROM squares").fetchone()[0]
        there = count()
        if last >= there:
            self.base.execute("DELETE FROM squares WHERE slot BETWEEN ? AND ?", (there, last))


def name_state(file: str, depth: int | None = None) -> bytes | None:
    """A name that changes whenever the file is written to, of the file at a bit depth; None for one not there."""
    packed = read_reference(file)
    try:
        return _name_status(file, os.stat(packed[0] if packed else file), depth)
    except (OSError, ValueError):
        return None


def look(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None = None) -> Look:
    """Read a file, and decode it unless its content is known at this bit depth. Raises ImageError."""
    packed = read_reference(file)
    for _ in range(ATTEMPTS):
        if packed:
            found = _look_packed(file, packed[0], size, is_known, depth)
        else:
            found = _look_plain(file, size, is_known, depth)
        if found:
            return found
    what, fix = "changes while it is read", "Wait until it is written, and start again"
    raise ImageError(what, fix, path=file, code="E115")


def read_square(file: str, size: int, depth: int | None = None) -> np.ndarray:
    """The square of a file, decoded now. Raises ImageError."""
    with collecting():  # what is remarked is kept beside the square that this one replaces
        return fit_square(read_image(file, depth), size)


def _look_plain(file: str, size: int, is_known: Callable[[bytes], bool], depth: int | None) -> Look | None:
    """None for a file that was written to in the meantime: its square may be of another content than its checksum."""
    with open_file(file) as opened, collecting() as remarks:
        status = os.fstat(opened.fileno())
        content = _name_content(opened, file, depth)
        if is_known(content):
            square = None
        else:
            opened.seek(0)
            square = fit_square(read_open_image(opened, file, depth), size)
            if not _is_settled(status):
                opened.raw.seek(0)  # raw: decoders move the file behind the buffer's back
                if _name_content(opened.raw, file, depth) != content:
                    return None
        same = _name_status(file, os.fstat(opened.fileno()), depth) == _name_status(file, status, depth)
    if not same and square is not None:
        return None
    state = _name_status(file, status, depth) if same and _is_settled(status) else None
    return Look(state, content, square, remarks)


def _look_packed(file: str, container: str, size: int, is_known: Callable[[bytes], bool], depth: int | None) -> Look:
    before = name_state(file, depth)  # its pixels were made 8-bit when it was packed, and are of no further depth
    picture = read_image(file)
    content = hashlib.sha256(f"packed {picture.shape} ".encode() + picture.tobytes()).digest()
    square = None if is_known(content) else fit_square(picture, size)
    lasting = before == name_state(file, depth) and _is_settled(os.stat(container))
    return Look(before if lasting else None, content, square)


def _name_content(file: BinaryIO, name: str, depth: int | None) -> bytes:
    try:
        digest = hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise ImageError(what, "Check the disk, or copy it again", path=name, code="E113") from error
    # the suffix too, for a name may decide: a PNG called .dcm is refused, and a bare header is DICOM in .dcm alone
    return hashlib.sha256(digest + os.fsencode(Path(name).suffix.lower()) + _name_depth(depth)).digest()


def _name_depth(depth: int | None) -> bytes:
    return f"\0{depth} bit".encode() if depth else b""


def _name_status(file: str, status: os.stat_result, depth: int | None) -> bytes:
    # the time of change too: a copy may keep the time of writing of what it replaces
    times = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    named = os.fsencode(os.path.abspath(file)) + f"\0{times}".encode() + _name_depth(depth)
    return hashlib.blake2b(named, digest_size=16).digest()


def _is_settled(status: os.stat_result) -> bool:
    return time.time() - max(status.st_mtime, status.st_ctime) > SETTLED
