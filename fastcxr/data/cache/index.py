"""Names of states and contents come in; the slot of each square, and the checksum that it was stored with, go out.

A slot is seen here only after its bytes were written, and its number is never given twice.
"""

import json
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fastcxr.data.cache.contents import Look
from fastcxr.data.formats.files import Remarks

WAIT = 120.0  # seconds for another process, which writes for less than one at a time
SCHEMA = (
    # AUTOINCREMENT: the number of a square that was forgotten must not become another's, whom a reader would overwrite
    "CREATE TABLE IF NOT EXISTS squares "
    "(slot INTEGER PRIMARY KEY AUTOINCREMENT, content BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, "
    "warnings TEXT NOT NULL, peak INTEGER)",  # a JSON object, and NULL, where nothing was remarked
    "CREATE TABLE IF NOT EXISTS files (state BLOB PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",
)
NOWHERE = (0, 0)  # slots begin with 1


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
