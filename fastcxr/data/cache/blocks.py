"""Decode and store the files of one block, which a process claims with a lock.

The lock of a killed process ends with it, and another process claims the block. On a file system without locks each
process decodes every block; the index stores each image once.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fastcxr.data.cache.image_file import ImageStoreWriter
from fastcxr.data.cache.index import NO_LOCATION, DecodedFile, decode, file_signature
from fastcxr.data.cache.quota import convert_storage_errors, lock_now
from fastcxr.data.imaging.read import copy_error
from fastcxr.errors import ImageError
from fastcxr.io.threads import map_ahead

WRITE_BATCH_BYTES = 1 << 24  # images stored in one transaction: a killed process loses at most one batch
FILES_AHEAD_PER_THREAD = 4  # decoded files per thread that wait to be stored
CLAIM_PREFIX = "claim-"


@dataclass(frozen=True, eq=False)
class ImageList:
    """Files, and the bits per pixel of each image whose file states none."""

    files: tuple[str, ...]
    depths: tuple[int | None, ...]

    def find_signatures(self) -> Iterator[bytes | None]:
        """Yield the signature of each file."""
        return map(file_signature, self.files, self.depths)

    def compute_hash(self) -> str:
        """Return a name of these files that is the same in all processes."""
        digest = hashlib.blake2b(repr(self.depths).encode(), digest_size=16)
        for file in self.files:
            digest.update(os.fsencode(os.path.abspath(file)) + b"\0")
        return digest.hexdigest()

    def select(self, rows: Sequence[int] | np.ndarray) -> "ImageList":
        """Return the files of these rows."""
        return ImageList(tuple(self.files[row] for row in rows), tuple(self.depths[row] for row in rows))


@dataclass(frozen=True, eq=False)
class FilledBlock:
    """Slot and checksum of each file, shape (n, 2), zeros for an unreadable one, and the errors of these by row."""

    locations: np.ndarray
    errors: dict[int, ImageError]


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """The files of a block that were missing in the cache.

    Attributes:
        name: name of the claim, the same in all processes.
        images: the files.
        strict: whether the first ImageError is raised.
        n_threads: threads that decode.
    """

    name: str
    images: ImageList
    strict: bool
    n_threads: int

    def run(self, writer: ImageStoreWriter, advance: Callable[[int], None]) -> FilledBlock | None:
        """Decode the files that no other process has stored meanwhile; None if another process has claimed the block.

        `advance`: is called with the number of further files that are done.
        """
        with claim(writer.folder, self.name) as is_claimed:
            if not is_claimed:
                return None
            locations = np.zeros((len(self.images.files), 2), np.int64)
            if writer.has_changed():
                locations = writer.find_locations(self.images.find_signatures())
                advance(int(np.count_nonzero(locations[:, 0])))
            missing = np.flatnonzero(locations[:, 0] == 0)
            found = self._decode_and_store(writer, self.images.select(missing), advance)
            locations[missing] = found.locations
            return FilledBlock(locations, {int(missing[row]): error for row, error in found.errors.items()})

    def _decode_and_store(
        self, writer: ImageStoreWriter, images: ImageList, advance: Callable[[int], None]
    ) -> FilledBlock:
        locations, errors, batch_size = [], {}, max(1, WRITE_BATCH_BYTES // writer.size**2)
        with closing(self._decode_ahead(writer, images, advance)) as decoded_files:
            while batch := list(islice(decoded_files, batch_size)):
                stored = iter(writer.add([one for one in batch if isinstance(one, DecodedFile)]))
                for one in batch:
                    if isinstance(one, ImageError):
                        errors[len(locations)] = one
                    locations.append(next(stored) if isinstance(one, DecodedFile) else NO_LOCATION)
        return FilledBlock(np.array(locations, np.int64).reshape(-1, 2), errors)

    def _decode_ahead(
        self, writer: ImageStoreWriter, images: ImageList, advance: Callable[[int], None]
    ) -> Generator[DecodedFile | ImageError, None, None]:
        """Yield the decoded files in order; threads decode a limited number of files ahead of the caller."""

        def decode_or_fail(row: int) -> DecodedFile | ImageError:
            try:
                return decode(images.files[row], writer.size, writer.is_known, images.depths[row])
            except ImageError as error:
                return copy_error(error)

        n_ahead, rows = FILES_AHEAD_PER_THREAD * self.n_threads, range(len(images.files))
        with closing(map_ahead(decode_or_fail, rows, n_threads=self.n_threads, n_ahead=n_ahead)) as decoded:
            for one in decoded:
                if self.strict and isinstance(one, ImageError):
                    raise one
                yield one
                advance(1)


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Claim a block in this context; yield False if another process has claimed it."""
    path = folder / (CLAIM_PREFIX + name)
    with convert_storage_errors():
        file = lock_now(path)
    try:
        yield file is not None
    finally:
        if file is not None:
            with suppress(OSError):  # Windows does not remove an open file
                path.unlink()
            file.close()
