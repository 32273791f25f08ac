"""A file comes in; a name for its present state, a name for its content, and its square, go out.

A state (path, times, length) that was seen before spares reading the file; a content that was seen before spares
decoding it. Both names are checksums, so that no path and nothing of a patient is written anywhere.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastcxr.data.formats.files import Remarks, collecting, open_file
from fastcxr.data.hdf5 import read_reference
from fastcxr.data.images import fit_square, read_image, read_open_image
from fastcxr.errors import ImageError

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
