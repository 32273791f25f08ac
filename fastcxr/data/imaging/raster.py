"""An open PNG, JPEG, TIFF or BMP file comes in; its 8-bit gray picture, or an error that names the file, goes out."""

import re
import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

# importing a plugin is what teaches Pillow the format; the four are all that it may use
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError  # noqa: F401
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
MAX_CHANNEL_DISTANCE = 20  # mean distance of the channels, of 255; radiographs saved in colour stay under 6
MAX_TRANSPARENT_FRACTION = 0.01  # share of a picture that transparency may take away
# everything that Pillow raises for a bad file; whatever else comes is a bug and must be seen
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,  # from TIFF directories alone
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
# everything that a damaged directory makes Pillow or the look at its values raise
TIFF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)


def read_raster(file: BinaryIO, path: str, head: bytes, depth: int | None = None) -> np.ndarray:
    """The first and only frame as uint8, shape (height, width).

    `depth`: bits of an image deeper than 8 bits whose file states no depth.
    """
    kind = detect_format(head)
    if not head:
        raise ImageError("empty file (0 bytes)", "Copy or download it again", path=path, code="E101")
    if kind not in RASTER_FORMATS:
        raise make_content_error(path, head)
    try:
        return _decode(file, path, kind, depth)
    except ImageError:
        raise
    except PILLOW_ERRORS as error:
        raise _explain_error(error, file, path, head) from error


def _decode(file: BinaryIO, path: str, kind: str, depth: int | None) -> np.ndarray:
    try:
        image = Image.open(file, formats=RASTER_FORMATS)
    except UnidentifiedImageError:
        uncompressed = read_uncompressed_gray(file, path) if kind == "TIFF" else None
        if uncompressed is None:
            raise
        values, tags = uncompressed
        if values.dtype.kind == "f":
            gray = floats_to_gray(_require_finite(values, path))
        else:
            gray = _from_counts(values, path, find_stated_depth(tags), depth)
        return _apply_orientation(255 - gray if tags[PHOTOMETRIC] == 0 else gray, tags.get(ORIENTATION))
    _validate_header(image, path)
    gray = _to_gray(image, file, path, depth)
    # Pillow has turned a TIFF by itself
    return gray if image.format == "TIFF" else _apply_orientation(gray, image.getexif().get(ORIENTATION))


def _validate_header(image: Image.Image, path: str) -> None:
    validate_size(path, *image.size)
    # a phone's JPEG may carry a second, smaller picture, which every viewer ignores
    frames = 1 if isinstance(image, JpegImagePlugin.JpegImageFile) else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageError(f"{frames} frames in one file", "Split it, one radiograph a file", path=path, code="E108")


def _to_gray(image: Image.Image, file: BinaryIO, path: str, depth: int | None) -> np.ndarray:
    raw_mode = str(image.tile[0].args) if image.tile else ""  # how pixels lie in the file; gone once they are loaded
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    photometric, signed = tags.get(PHOTOMETRIC), tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    image.load()
    _reject_transparent(image, path)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        # Pillow has no unsigned 32-bit mode: the upper half of one comes out negative
        values = values.view(np.uint32) if tags and values.dtype == np.int32 and not signed else values
        stated = _read_significant_bits(file) if image.format == "PNG" else find_stated_depth(tags)
        if stated and image.format == "PNG" and find_peak(values) >= 2**stated:
            stated = 16  # as the standard asks, its writer has scaled the significant bits to all 16
        gray = _from_counts(values, path, stated, depth)
    elif image.mode == "F":
        gray = floats_to_gray(_require_finite(np.asarray(image), path))
    else:
        gray = from_colour(image, path, raw_mode)
        # Pillow takes signed bytes for unsigned ones: their upper half is the lower one
        return integers_to_gray(gray.view(np.int8)) if tags and signed and image.mode == "L" else gray
    # Pillow turns 8-bit TIFFs positive that count white as zero, and leaves deeper ones negative
    return 255 - gray if photometric == 0 else gray


def _from_counts(values: np.ndarray, path: str, stated: int | None, given: int | None) -> np.ndarray:
    """Integers of more than 8 bits by the depth that the file states, else the one given, else that of their peak."""
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
        warn_once("W212", path, f"values above the {given} bits that its source has; they become white")
    return integers_to_gray(values, depth)


def _read_significant_bits(file: BinaryIO) -> int | None:
    """The number in the sBIT chunk of a gray PNG; None where there is none, or it makes no sense."""
    file.seek(8)
    while len(start := file.read(8)) == 8 and start[4:] != b"IDAT":
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"sBIT":
            bits = int.from_bytes(file.read(1), "big")
            return bits if 8 <= bits <= 16 else None
        file.seek(length + 4, 1)  # the checksum too
    return None


def from_colour(image: Image.Image, path: str, layout: str = "") -> np.ndarray:
    """Return the luma of an 8-bit image; warn of one that is coloured. `layout` names 16-bit samples as Pillow does."""
    if image.mode == "1":
        warn_once("W202", path, "a picture of black and white only: its gray levels are lost")
    gray = np.asarray(image if image.mode == "L" else image.convert("L"))
    if image.mode == "RGB" and np.ptp(np.asarray(image)[::8, ::8], axis=-1).mean() > MAX_CHANNEL_DISTANCE:
        warn_once("W203", path, "a picture in colour: a screenshot or a photograph?")
    # of 16-bit colour Pillow keeps the upper byte, which of a 10- to 14-bit picture is next to nothing
    if ";16" in layout and find_peak(gray) < 64:
        raise ImageError(
            "16-bit colour that uses only the lowest part of its range",
            "Save it as 16-bit gray",
            path=path,
            code="E114",
        )
    return gray


def _require_finite(values: np.ndarray, path: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ImageError(
            "holds numbers that are not finite (NaN or infinity)",
            "Write it again without them",
            path=path,
            code="E106",
        )
    return values


def _reject_transparent(image: Image.Image, path: str) -> None:
    transparent_fraction = _measure_transparency(image)
    if transparent_fraction > MAX_TRANSPARENT_FRACTION:
        raise ImageError(
            f"transparent pixels hide {transparent_fraction:.0%} of the picture",
            "Save it without transparency (flattened)",
            path=path,
            code="E107",
        )


def _measure_transparency(image: Image.Image) -> float:
    """The share of the picture that transparency takes away, 0 for an opaque one."""
    key = image.info.get("transparency")
    if image.getbands()[-1] in ("A", "a"):
        alpha = np.asarray(image.getchannel(len(image.getbands()) - 1))
    elif key is None:
        return 0.0
    elif isinstance(key, int) and image.mode != "P":  # one gray level is declared transparent
        return float((np.asarray(image) == key).mean())
    else:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return float(1 - alpha.mean() / 255)


def _apply_orientation(image: np.ndarray, orientation: int | None) -> np.ndarray:
    """As the EXIF orientation says."""
    transforms = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.T,
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].T,
        8: np.rot90,
    }
    return transforms.get(orientation, lambda p: p)(image)


def _explain_error(error: Exception, file: BinaryIO, path: str, head: bytes) -> ImageError:
    """What a decoder's exception means for the person whose file it is."""
    kind = detect_format(head)
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\d{9,}", str(error))  # Pillow counts them in its message and nowhere else
        size = f"{int(pixels[0]) / 1e6:.0f} MP" if pixels else "a picture of unknown size"
        problem, fix, code = f"{size}, over the limit of {MAX_PIXELS // 1_000_000} MP", "Save it smaller", "E109"
    elif isinstance(error, MemoryError):
        problem, fix, code = "does not fit into memory", "Save it smaller", "E109"
    elif kind == "BMP" and isinstance(error, UnidentifiedImageError) and detect_foreign_content(head):
        return make_content_error(path, head)  # two letters are a weak sign: a text may begin with BM
    elif _is_truncated(error, file, kind):
        problem, fix, code = "truncated: the file ends before its picture does", "Copy or download it again", "E103"
    elif kind == "TIFF" and (variant := describe_samples(file)):
        problem, fix, code = (
            f"unsupported TIFF with {variant}",
            "Save it as 16-bit gray TIFF or PNG",
            "E105",
        )
    else:
        problem, fix, code = f"corrupt {kind} data", "Copy or download it again, or export it afresh", "E104"
    return ImageError(problem, fix, path=path, code=code)


def _is_truncated(error: Exception, file: BinaryIO, kind: str) -> bool:
    """Is a file that could not be decoded cut off, rather than damaged?"""
    if "truncated" in str(error).lower():
        return True
    size = file.seek(0, 2)
    file.seek(max(0, size - 4096))
    tail = file.read()
    if kind == "PNG":
        return b"IEND" not in tail
    if kind == "JPEG":
        return b"\xff\xd9" not in tail
    if kind == "BMP":
        file.seek(2)
        return int.from_bytes(file.read(4), "little") > size
    return find_data_end(file) > size


def read_tiff_tags(file: BinaryIO) -> dict:
    """The first directory; under "next" where a second one begins, under "end" where the file should reach at least."""
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


def find_data_end(file: BinaryIO) -> int:
    """The byte at which the last strip or tile should end; 0 when the file does not say."""
    tags = read_tiff_tags(file)
    try:
        starts, lengths = (
            tags.get(STRIP_OFFSETS) or tags.get(TILE_OFFSETS) or (),
            tags.get(STRIP_BYTES) or tags.get(TILE_BYTES) or (),
        )
        return max((start + length for start, length in zip(starts, lengths, strict=False)), default=tags.get("end", 0))
    except TIFF_ERRORS:
        return 0


def describe_samples(file: BinaryIO) -> str:
    """What kind of numbers the file holds, in words; empty when it does not say."""
    tags = read_tiff_tags(file)
    try:
        return f"{int(tags[BITS_PER_SAMPLE][0])}-bit {SAMPLE_FORMAT_NAMES[tags.get(SAMPLE_FORMAT, (1,))[0]]}"
    except TIFF_ERRORS:
        return ""


def find_stated_depth(tags: Mapping) -> int | None:
    """Return the bit depth that the tags state; None where they name no more than the size of a stored number.

    MaxSampleValue states a depth where it is the full range of one. Any other value is that of a single image, and
    that of all 16 bits is the default, which writers give for every image.
    """
    try:
        bits = int(np.ravel(tags[BITS_PER_SAMPLE])[0])
        stated = int(np.ravel(tags[MAX_SAMPLE_VALUE])[0]).bit_length() if MAX_SAMPLE_VALUE in tags else bits
        is_full_range = MAX_SAMPLE_VALUE not in tags or int(np.ravel(tags[MAX_SAMPLE_VALUE])[0]) == 2**stated - 1
    except TIFF_ERRORS:
        return None
    if is_full_range and 8 <= stated < 16:
        return stated
    return bits if 8 < bits < 16 else None


def read_uncompressed_gray(file: BinaryIO, path: str) -> tuple[np.ndarray, dict] | None:
    """Return the values and tags of an uncompressed gray TIFF with 8, 16 or 32 bits per sample, else None.

    Pillow opens no 16-bit floats, and several integer types only with black as zero or in little-endian order.
    """
    tags = read_tiff_tags(file)
    try:
        dtype = np.dtype(f"{tags['order']}{'uif'[tags.get(SAMPLE_FORMAT, (1,))[0] - 1]}{tags[BITS_PER_SAMPLE][0] // 8}")
        is_uncompressed_gray = (
            tags.get(COMPRESSION, 1) == 1 and tags.get(SAMPLES_PER_PIXEL, 1) == 1 and tags[PHOTOMETRIC] in (0, 1)
        )
        if not is_uncompressed_gray or tags["next"] or dtype.itemsize > 4:
            return None
        width, height = int(tags[WIDTH]), int(tags[HEIGHT])
        strips = list(zip(tags[STRIP_OFFSETS], tags[STRIP_BYTES], strict=True))
    except TIFF_ERRORS:
        return None
    validate_size(path, width, height)
    data = b"".join(_read_strip(file, start, min(length, width * height * dtype.itemsize)) for start, length in strips)
    if len(data) < width * height * dtype.itemsize:
        raise OSError("truncated strips")
    return np.frombuffer(data, dtype, width * height).reshape(height, width), tags


def _read_strip(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)
