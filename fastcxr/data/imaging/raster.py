"""Decode PNG, JPEG, TIFF and BMP files as 8-bit gray images."""

import re
import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

# the import of a plugin registers its format; Pillow uses no other formats
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError  # noqa: F401
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fastcxr.data.imaging.intensity import (
    MAX_PIXELS,
    PEAK_PERCENTILE,
    find_depth,
    find_peak,
    floats_to_gray,
    has_depth,
    integers_to_gray,
    validate_size,
)
from fastcxr.data.imaging.sniff import detect_foreign_content, detect_format, make_content_error, record_peak, warn_once
from fastcxr.errors import ImageError

RASTER_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
MAX_CHANNEL_DISTANCE = 20  # mean range of the channels, in gray levels; radiographs saved in colour stay below 6
MAX_TRANSPARENT_FRACTION = 0.01  # accepted fraction of an image that transparency hides
# the exceptions that Pillow raises for a damaged file; any other exception is a bug and is not caught
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,  # from TIFF directories
    OverflowError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    Image.DecompressionBombError,
)
WIDTH, HEIGHT, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL, STRIP_BYTES, SAMPLE_FORMAT = 273, 274, 277, 279, 339
TILE_OFFSETS, TILE_BYTES = 324, 325
MAX_SAMPLE_VALUE = 281
SAMPLE_FORMAT_NAMES = {1: "unsigned integers", 2: "signed integers", 3: "floats"}
# the exceptions for a damaged directory, from Pillow or from reading its values
TIFF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)


def read_raster(file: BinaryIO, path: str, head: bytes, depth: int | None = None) -> np.ndarray:
    """Return the only frame as uint8, shape (height, width). Raises ImageError.

    Args:
        file: The open file.
        path: Its name, for errors and warnings.
        head: Its first bytes.
        depth: Bits per pixel of an image with more than 8 bits whose file states no depth.
    """
    file_format = detect_format(head)
    if not head:
        raise ImageError("empty file (0 bytes)", "Copy or download it again", path=path, code="E101")
    if file_format not in RASTER_FORMATS:
        raise make_content_error(path, head)
    try:
        return _decode(file, path, file_format, depth)
    except ImageError:
        raise
    except PILLOW_ERRORS as error:
        raise _convert_error(error, file, path, head, file_format) from error


def _decode(file: BinaryIO, path: str, file_format: str, depth: int | None) -> np.ndarray:
    try:
        image = Image.open(file, formats=RASTER_FORMATS)
    except UnidentifiedImageError:
        uncompressed = _read_uncompressed_gray(file, path) if file_format == "TIFF" else None
        if uncompressed is None:
            raise
        values, tags = uncompressed
        gray = values_to_gray(values, path, _find_stated_depth(tags), depth)
        return _apply_orientation(255 - gray if tags[PHOTOMETRIC] == 0 else gray, tags.get(ORIENTATION))
    validate_size(path, *image.size)
    # the JPEG of a phone may contain a second, smaller image, which viewers ignore
    frames = 1 if isinstance(image, JpegImagePlugin.JpegImageFile) else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{frames} frames in one file", "Save one radiograph per file", path=path, code="E108")
    gray = _image_to_gray(image, file, path, depth)
    # Pillow applies the orientation of a TIFF when it loads the pixels
    return gray if image.format == "TIFF" else _apply_orientation(gray, image.getexif().get(ORIENTATION))


def _image_to_gray(image: ImageFile, file: BinaryIO, path: str, depth: int | None) -> np.ndarray:
    raw_mode = str(image.tile[0].args) if image.tile else ""  # pixel layout of the file; load() deletes it
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    photometric, signed = tags.get(PHOTOMETRIC), tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    image.load()
    reject_transparent(image, path)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        # Pillow has no unsigned 32-bit mode: the upper half of the range becomes negative
        values = values.view(np.uint32) if tags and values.dtype == np.int32 and not signed else values
        stated = _read_significant_bits(file) if image.format == "PNG" else _find_stated_depth(tags)
        if stated and image.format == "PNG" and find_peak(values) >= 2**stated:
            stated = 16  # the writer has scaled the significant bits to 16, as the PNG standard requires
        gray = values_to_gray(values, path, stated, depth)
    elif image.mode == "F":
        gray = values_to_gray(np.asarray(image), path, None, None)
    else:
        gray = from_colour(image, path, raw_mode)
        # Pillow reads signed bytes as unsigned ones
        return integers_to_gray(gray.view(np.int8)) if tags and signed and image.mode == "L" else gray
    # Pillow inverts 8-bit TIFFs with white as zero, but not deeper ones
    return 255 - gray if photometric == 0 else gray


def values_to_gray(values: np.ndarray, path: str, stated: int | None, given: int | None) -> np.ndarray:
    """Convert floats, or integers with the depth stated by the file, else the given depth, else that of their peak."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            problem, fix = "contains NaN or infinite values", "Write it again without them"
            raise ImageError(problem, fix, path=path, code="E106")
        return floats_to_gray(values)
    if values.dtype.itemsize == 1 or not has_depth(values):
        return integers_to_gray(values)
    peak = find_peak(values)
    if stated and peak < 2**stated:
        return integers_to_gray(values, stated)
    record_peak(peak)
    depth = given or find_depth(peak)
    if not given:
        rule = f"{depth} bits, the smallest of 8, 10, 12, 14 and 16 that holds {PEAK_PERCENTILE} % of its pixels"
        warn_once("W211", path, f"the file states no bit depth; read with {rule}")
    elif peak >= 2**given:
        warn_once("W212", path, f"values exceed the {given} bits of the source; they become white")
    return integers_to_gray(values, depth)


def _read_significant_bits(file: BinaryIO) -> int | None:
    """Return the number in the sBIT chunk of a gray PNG, or None if it is missing or invalid."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] != b"IDAT":
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"sBIT":
            bits = int.from_bytes(file.read(1), "big")
            return bits if 8 <= bits <= 16 else None
        file.seek(length + 4, 1)  # 4 bytes of checksum
    return None


def from_colour(image: Image.Image, path: str, layout: str = "") -> np.ndarray:
    """Return the luma of an 8-bit image. `layout`: the raw mode of Pillow, which contains ";16" for 16-bit samples."""
    if image.mode == "1":
        warn_once("W202", path, "only black and white pixels; the gray levels are lost")
    gray = np.asarray(image if image.mode == "L" else image.convert("L"))
    if image.mode == "RGB" and np.ptp(np.asarray(image)[::8, ::8], axis=-1).mean() > MAX_CHANNEL_DISTANCE:
        warn_once("W203", path, "an image in colour: check that it is not a screenshot or a photograph")
    # Pillow keeps the upper byte of 16-bit colour, which is nearly empty for values of 10 to 14 bits
    if ";16" in layout and find_peak(gray) < 64:
        problem, fix = "16-bit colour that uses only the lowest part of its range", "Save it as 16-bit gray"
        raise ImageError(problem, fix, path=path, code="E114")
    return gray


def reject_transparent(image: Image.Image, path: str) -> None:
    """Raise ImageError for an image of which transparency hides more than 1 %."""
    fraction = _measure_transparency(image)
    if fraction > MAX_TRANSPARENT_FRACTION:
        problem, fix = (
            f"transparent pixels hide {fraction:.0%} of the image",
            "Save it without transparency (flattened)",
        )
        raise ImageError(problem, fix, path=path, code="E107")


def _measure_transparency(image: Image.Image) -> float:
    """Return the fraction of the image that transparency hides, 0 for an opaque image."""
    key = image.info.get("transparency")
    if image.getbands()[-1] in ("A", "a"):
        alpha = np.asarray(image.getchannel(len(image.getbands()) - 1))
    elif key is None:
        return 0.0
    elif isinstance(key, int) and image.mode != "P":  # the transparent gray level
        return float((np.asarray(image) == key).mean())
    else:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return float(1 - alpha.mean() / 255)


def _apply_orientation(image: np.ndarray, orientation: int | None) -> np.ndarray:
    """Rotate and flip an image according to its EXIF orientation."""
    transforms = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.T,
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].T,
        8: np.rot90,
    }
    return transforms[orientation](image) if orientation in transforms else image


def _convert_error(error: Exception, file: BinaryIO, path: str, head: bytes, file_format: str) -> ImageError:
    """Return the ImageError for an exception of a decoder."""
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d{9,}", str(error))  # only the message of Pillow contains the number of pixels
        size = f"{int(pixels[0]) / 1e6:.0f} MP" if pixels else "an image of unknown size"
        problem, fix, code = f"{size}, over the limit of {MAX_PIXELS // 1_000_000} MP", "Save it smaller", "E109"
    elif isinstance(error, MemoryError):
        problem, fix, code = "does not fit into memory", "Save it smaller", "E109"
    elif file_format == "BMP" and isinstance(error, UnidentifiedImageError) and detect_foreign_content(head):
        return make_content_error(path, head)  # the two bytes of the signature are not specific: a text may start so
    elif _is_truncated(error, file, file_format):
        problem, fix, code = "truncated: the file ends before the image data", "Copy or download it again", "E103"
    elif file_format == "TIFF" and (samples := _describe_samples(file)):
        problem, fix, code = f"unsupported TIFF with {samples}", "Save it as 16-bit gray TIFF or PNG", "E105"
    else:
        problem, fix, code = f"corrupt {file_format} data", "Copy, download or export it again", "E104"
    return ImageError(problem, fix, path=path, code=code)


def _is_truncated(error: Exception, file: BinaryIO, file_format: str) -> bool:
    """Return whether a file that cannot be decoded is truncated, not otherwise damaged."""
    if "truncated" in str(error).lower():
        return True
    size = file.seek(0, 2)
    file.seek(max(0, size - 4096))
    tail = file.read()
    if file_format == "PNG":
        return b"IEND" not in tail
    if file_format == "JPEG":
        return b"\xff\xd9" not in tail
    if file_format == "BMP":
        file.seek(2)
        return int.from_bytes(file.read(4), "little") > size
    return _find_data_end(file) > size


def _read_tiff_tags(file: BinaryIO) -> dict:
    """Return the tags of the first directory, empty if it is damaged.

    Further keys: "next", the offset of the second directory; "order", the byte order; "end", the minimum file size if
    the directory is missing.
    """
    file.seek(0)
    try:
        header = file.read(8)
        directory = ImageFileDirectory_v2(header)
        start = directory.next
        if start >= file.seek(0, 2):
            return {"end": start + 1}
        file.seek(start)
        directory.load(file)
        return {**directory, "next": directory.next, "order": "<" if header[:1] == b"I" else ">"}
    except TIFF_ERRORS:
        return {}


def _find_data_end(file: BinaryIO) -> int:
    """Return the offset of the end of the last strip or tile, or 0 if it is unknown."""
    tags = _read_tiff_tags(file)
    try:
        starts = tags.get(STRIP_OFFSETS) or tags.get(TILE_OFFSETS) or ()
        lengths = tags.get(STRIP_BYTES) or tags.get(TILE_BYTES) or ()
        return max((start + length for start, length in zip(starts, lengths, strict=False)), default=tags.get("end", 0))
    except TIFF_ERRORS:
        return 0


def _describe_samples(file: BinaryIO) -> str:
    """Return the sample format, for example "64-bit floats", or an empty string if it is unknown."""
    tags = _read_tiff_tags(file)
    try:
        return f"{int(tags[BITS_PER_SAMPLE][0])}-bit {SAMPLE_FORMAT_NAMES[tags.get(SAMPLE_FORMAT, (1,))[0]]}"
    except TIFF_ERRORS:
        return ""


def _find_stated_depth(tags: Mapping) -> int | None:
    """Return the bit depth that the tags state, or None if they state only the size of a stored number.

    MaxSampleValue states a depth if it is the full range of that depth. Other values describe a single image, and the
    full range of 16 bits is the default that writers store for every image.
    """
    try:
        bits = int(np.ravel(tags[BITS_PER_SAMPLE])[0])
        largest = int(np.ravel(tags[MAX_SAMPLE_VALUE])[0]) if MAX_SAMPLE_VALUE in tags else None
    except TIFF_ERRORS:
        return None
    stated = bits if largest is None else largest.bit_length()
    if 8 <= stated < 16 and largest in (None, 2**stated - 1):
        return stated
    return bits if 8 < bits < 16 else None


def _read_uncompressed_gray(file: BinaryIO, path: str) -> tuple[np.ndarray, dict] | None:
    """Return the values and tags of an uncompressed gray TIFF with up to 32 bits per sample, or None for other TIFFs.

    Pillow cannot open 16-bit floats, signed or 32-bit integers with white as zero, and some big-endian integers.
    """
    tags = _read_tiff_tags(file)
    try:
        dtype = np.dtype(f"{tags['order']}{'uif'[tags.get(SAMPLE_FORMAT, (1,))[0] - 1]}{tags[BITS_PER_SAMPLE][0] // 8}")
        is_uncompressed_gray = (
            tags.get(COMPRESSION, 1) == 1 and tags.get(SAMPLES_PER_PIXEL, 1) == 1 and tags[PHOTOMETRIC] in (0, 1)
        )
        if not is_uncompressed_gray or tags["next"] or tags[BITS_PER_SAMPLE][0] not in (8, 16, 32):
            return None
        width, height = int(tags[WIDTH]), int(tags[HEIGHT])
        strips = list(zip(tags[STRIP_OFFSETS], tags[STRIP_BYTES], strict=True))
    except TIFF_ERRORS:
        return None
    validate_size(path, width, height)
    n_bytes, data = width * height * dtype.itemsize, bytearray()
    for start, length in strips:
        file.seek(start)
        data += file.read(min(length, n_bytes))
    if len(data) < n_bytes:
        raise OSError("truncated strips")
    return np.frombuffer(data, dtype, width * height).reshape(height, width), tags
