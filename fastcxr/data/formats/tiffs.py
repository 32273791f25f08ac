"""An open TIFF file comes in; its directory, and the numbers that Pillow does not know how to read, go out."""

import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fastcxr.data.formats.gray import check_size

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, ORIENTATION, SAMPLES, STRIP_BYTES, SAMPLE_FORMAT = 273, 274, 277, 279, 339
TILES, TILE_BYTES = 324, 325
MAX_SAMPLE_VALUE = 281
KINDS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}

# everything that a damaged directory makes Pillow or the look at its values raise
DAMAGED = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)


def read_tags(file: BinaryIO) -> dict:
    """The first directory; under "next" where a second one begins, under "end" where the file should reach at least."""
    file.seek(0)
    try:
        mark = file.read(8)
        directory = ImageFileDirectory_v2(mark)
        start = directory.next
        if start >= file.seek(0, 2):
            return {"end": start + 1}
        file.seek(start)
        directory.load(file)
        return {**directory, "next": directory.next, "order": "<" if mark[:1] == b"I" else ">"}
    except DAMAGED:
        return {}


def find_end(file: BinaryIO) -> int:
    """The byte at which the last strip or tile should end; 0 when the file does not say."""
    tags = read_tags(file)
    try:
        starts, lengths = tags.get(STRIPS) or tags.get(TILES) or (), tags.get(STRIP_BYTES) or tags.get(TILE_BYTES) or ()
        return max((start + length for start, length in zip(starts, lengths, strict=False)), default=tags.get("end", 0))
    except DAMAGED:
        return 0


def name_variant(file: BinaryIO) -> str:
    """What kind of numbers the file holds, in words; empty when it does not say."""
    tags = read_tags(file)
    try:
        return f"{int(tags[BITS][0])}-bit {KINDS[tags.get(SAMPLE_FORMAT, (1,))[0]]}"
    except DAMAGED:
        return ""


def find_stated_depth(tags: Mapping) -> int | None:
    """Return the bit depth that the tags state; None where they name no more than the size of a stored number.

    MaxSampleValue states a depth where it is the full range of one. Any other value is that of a single image, and
    that of all 16 bits is the default, which writers give for every image.
    """
    try:
        bits = int(np.ravel(tags[BITS])[0])
        stated = int(np.ravel(tags[MAX_SAMPLE_VALUE])[0]).bit_length() if MAX_SAMPLE_VALUE in tags else bits
        is_full_range = MAX_SAMPLE_VALUE not in tags or int(np.ravel(tags[MAX_SAMPLE_VALUE])[0]) == 2**stated - 1
    except DAMAGED:
        return None
    if is_full_range and 8 <= stated < 16:
        return stated
    return bits if 8 < bits < 16 else None


def read_plain_numbers(file: BinaryIO, path: str) -> tuple[np.ndarray, dict] | None:
    """Uncompressed gray numbers of any type (64-bit floats, say) and the tags; None for every other TIFF."""
    tags = read_tags(file)
    try:
        dtype = np.dtype(f"{tags['order']}{'uif'[tags.get(SAMPLE_FORMAT, (1,))[0] - 1]}{tags[BITS][0] // 8}")
        plain = tags.get(COMPRESSION, 1) == 1 and tags.get(SAMPLES, 1) == 1 and tags[PHOTOMETRIC] in (0, 1)
        if not plain or tags["next"] or tags[BITS][0] % 8:
            return None
        width, height = int(tags[WIDTH]), int(tags[HEIGHT])
        places = list(zip(tags[STRIPS], tags[STRIP_BYTES], strict=True))
    except DAMAGED:
        return None
    check_size(path, width, height)
    data = b"".join(_read_strip(file, start, min(length, width * height * dtype.itemsize)) for start, length in places)
    if len(data) < width * height * dtype.itemsize:
        raise OSError("truncated strips")
    return np.frombuffer(data, dtype, width * height).reshape(height, width), tags


def _read_strip(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)
