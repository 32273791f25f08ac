"""The files of a cohort and a size come in; their squares, each decoded once on this machine, go out.

Squares are kept by content, size and reader in the user's cache folder, for all runs: see `fastcxr.data.cache`.
FASTCXR_CACHE_LIMIT says how many GB may be kept there (20); with 0, or where the folder cannot be used, a temporary
one takes its place until the process ends.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from fastcxr.data.cache.image_file import Shelf, Slots
from fastcxr.data.cache.index import Look, look, name_state, read_square
from fastcxr.data.cache.quota import (
    SHARE_OF_PICTURES,
    Cache,
    CannotStoreError,
    DamagedStoreError,
    find_limit,
    make_room,
    name_shelf,
    own_cache,
    passing_cache,
    remove,
)
from fastcxr.data.imaging.read import examine_images
from fastcxr.data.imaging.sniff import Remarks, count_warnings
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Bar, Progress

log = logging.getLogger("fastcxr")

BATCH_BYTES = 1 << 24  # of squares that become visible at once: what a killed process loses, and memory takes
CHUNK = 256  # squares in memory at once
AHEAD = 4  # files a thread that are read before their turn to be stored


@dataclass(frozen=True, eq=False)
class Pictures:
    """The squares of one cohort at one size: row i belongs to files[i]."""

    files: tuple[str, ...] = field(repr=False)
    size: int
    slots: Slots | None = field(repr=False)  # None: nothing could be stored
    places: np.ndarray = field(repr=False)  # slot and checksum of each file, shape (n, 2); zeros: not stored
    depths: tuple[int | None, ...] = field(default=(), repr=False)  # bits of each image whose file states none
    remarks: Mapping[int, Remarks] = field(default_factory=dict, repr=False)  # on the images of these rows

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The squares of these rows, in this order; uint8, shape (n, size, size).

        A square that is not as it was stored is decoded again from its file. Raises ImageError where that fails.
        """
        rows = np.asarray(rows).reshape(-1)
        if rows.dtype.kind not in "iu" and len(rows):
            raise TypeError(f"rows are whole numbers, not {rows.dtype}")  # True would be row 1
        rows = rows.astype(np.int64)
        squares = np.empty((len(rows), self.size, self.size), np.uint8)
        places = self.places[rows]
        good = self.slots.copy(places, squares) if self.slots else np.zeros(len(rows), bool)
        bad = np.flatnonzero(~good)
        if len(bad):
            self._decode(rows[bad], bad, squares)
        return squares

    def tell_warnings(self, *, again: bool = True) -> None:
        """Log what decoding warned of, one line a kind with the number of images; see `count_warnings`."""
        count_warnings(((self.files[row], remarks) for row, remarks in sorted(self.remarks.items())), again=again)

    def name_contents(self) -> list[str]:
        """A checksum of each square, by which the same picture is known again in other data of the same size."""
        names = []
        for start in range(0, len(self.files), CHUNK):
            squares = self.read(range(start, min(start + CHUNK, len(self.files))))
            names += [hashlib.sha256(square.tobytes()).hexdigest()[:32] for square in squares]
        return names

    def _decode(self, rows: np.ndarray, numbers: np.ndarray, squares: np.ndarray) -> None:
        with ThreadPoolExecutor(min(len(rows), count_cpus())) as pool:
            files, sizes = [self.files[row] for row in rows], [self.size] * len(rows)
            depths = [self.depths[row] if self.depths else None for row in rows]
            decoded = pool.map(read_square, files, sizes, depths)
            for row, number, square in zip(rows, numbers, decoded, strict=True):
                squares[number] = square
                slot, crc = self.places[row].tolist()
                if slot:
                    self.slots.repair(slot, crc, square)
        damaged = np.count_nonzero(self.places[rows, 0])
        if damaged:
            log.warning("%s kept pictures were damaged on the disk, and are decoded again", f"{damaged:,}")


def open_pictures(
    files: Sequence[str],
    size: int,
    progress: Progress | None = None,
    bad: list[ImageError] | None = None,
    depths: Sequence[int | None] | None = None,
) -> Pictures:
    """The pictures of these files, as squares of `size` pixels: what no run has decoded yet is decoded now.

    `bad` takes the errors of all files that cannot be read; without it the first one is raised. `depths`: bits of each
    image, where it is deeper than 8 bits and its file states none.
    """
    files = tuple(str(file) for file in files)
    images = Images(files, tuple([None] * len(files) if depths is None else depths))
    try:
        return _open_in(own_cache(), images, size, progress, bad)
    except CannotStoreError as error:
        level = logging.WARNING if find_limit() else logging.INFO
        log.log(level, "pictures are not kept for the next run: %s", error)
    try:
        return _open_in(passing_cache(), images, size, progress, bad)
    except CannotStoreError as error:
        log.warning("every image is decoded each time it is used, which is slow: no temporary file (%s)", error)
    found = examine_images(files, images.depths, progress)
    for error in (one for one in found if isinstance(one, ImageError)):
        if bad is None:
            raise error
        bad.append(error)
    remarks = {row: one for row, one in enumerate(found) if isinstance(one, Remarks) and one != Remarks()}
    return Pictures(files, size, None, np.zeros((len(files), 2), np.int64), images.depths, remarks)


@dataclass(frozen=True)
class Images:
    """Files, and the bit depth of each where it states none."""

    files: tuple[str, ...]
    depths: tuple[int | None, ...]

    def take(self, rows: Iterable[int]) -> "Images":
        """Return those of these rows."""
        rows = list(rows)
        return Images(tuple(self.files[row] for row in rows), tuple(self.depths[row] for row in rows))


def _open_in(cache: Cache, images: Images, size: int, progress: Progress | None, bad: list | None) -> Pictures:
    folder, fits = cache.pictures / name_shelf(size), partial(make_room, limit=SHARE_OF_PICTURES * cache.limit)
    for _ in range(2):
        try:
            with Shelf(folder, size) as shelf:
                places = _fill(shelf, images, fits, progress, bad)
                if places is not None:
                    remarks = _find_remarks(shelf, places)
                    return Pictures(images.files, size, Slots(folder, size), places, images.depths, remarks)
        except DamagedStoreError as error:
            log.warning("the pictures of %s px that were kept cannot be used (%s): decoding again", size, error)
        if not remove(folder):
            break
    raise CannotStoreError("what would have to be removed first is in use")


def _find_remarks(shelf: Shelf, places: np.ndarray) -> dict[int, Remarks]:
    of_slot = shelf.find_remarks()
    return {row: of_slot[slot] for row, slot in enumerate(places[:, 0].tolist()) if slot in of_slot}


def _fill(
    shelf: Shelf, images: Images, fits: Callable, progress: Progress | None, bad: list | None
) -> np.ndarray | None:
    """The places of all files, after those that had none were decoded; None if the shelf must be emptied before."""
    if bad is not None:
        bad.clear()  # of an attempt that ended early
    places = shelf.find(map(name_state, images.files, images.depths))
    missing = np.flatnonzero(places[:, 0] == 0)
    if not fits(shelf.folder, len(missing) * shelf.size**2, len(places) * shelf.size**2):
        return None
    if len(missing):
        with (progress or Progress()).bar(len(missing), "reading images") as bar:
            places[missing] = _decode_into(shelf, images.take(missing), bar, bad)
    return places


def _decode_into(shelf: Shelf, images: Images, bar: Bar, bad: list | None) -> np.ndarray:
    """Slots and checksums of these files, shape (n, 2); zeros for those whose error went into `bad`."""
    places, batch = [], max(1, BATCH_BYTES // shelf.size**2)
    with closing(_look_ahead(shelf, images, bar, strict=bad is None)) as looks:
        while found := list(islice(looks, batch)):
            places += _add(shelf, found, bad)
    return np.array(places, np.int64)


def _add(shelf: Shelf, found: list[Look | ImageError], bad: list | None) -> list[tuple[int, int]]:
    added = iter(shelf.add([look for look in found if isinstance(look, Look)]))
    if bad is not None:
        bad += [error for error in found if isinstance(error, ImageError)]
    return [next(added) if isinstance(look, Look) else (0, 0) for look in found]


def _look_ahead(shelf: Shelf, images: Images, bar: Bar, *, strict: bool) -> Iterator[Look | ImageError]:
    """What each file holds, in order, read by all cores while the caller stores; memory stays bounded."""
    cores = count_cpus()
    with ThreadPoolExecutor(cores) as pool:
        waiting: deque[Future] = deque()
        try:
            for file, depth in zip(images.files, images.depths, strict=True):
                waiting.append(pool.submit(look, file, shelf.size, shelf.is_known, depth))
                if len(waiting) > AHEAD * cores:
                    yield _settle(waiting.popleft(), strict)
                    bar.advance()
            while waiting:
                yield _settle(waiting.popleft(), strict)
                bar.advance()
        finally:  # after a bad image the rest need not be read
            for future in waiting:
                future.cancel()


def _settle(future: Future, strict: bool) -> Look | ImageError:
    try:
        return future.result()
    except ImageError as error:
        if strict:
            raise
        # a fresh one: tracebacks of this one and its cause would keep the decoded pixels alive
        return ImageError(error.what, error.fix, path=error.path, code=error.code)
