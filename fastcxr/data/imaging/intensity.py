"""Conversion of integers and floats of any bit depth to 8-bit gray levels, and the limits of image sizes."""

import math

import numpy as np

from fastcxr.errors import ImageError

MAX_PIXELS = 64_000_000  # the largest detectors have 20 megapixels; a PNG of a few kilobytes can state thousands
MIN_SIDE_PIXELS = 64  # lungs are not readable in smaller images
MAX_ASPECT_RATIO = 4  # tightly cropped chests of children reach 3.2; longer images are banners or spines

# usual depths of detectors and archives; a 12-bit image in a 16-bit file would be nearly black if read as 16-bit
DEPTHS = (8, 10, 12, 14, 16)
FULL_RANGES = tuple(2**bits - 1 for bits in DEPTHS)

# defective pixels and burned-in markers have any value and cover less than 2 % of an image; more than 2 % of the pixels
# of a radiograph exceed a quarter of its range, that is, the range of the next smaller usual depth
PEAK_PERCENTILE = 98
MAX_SAMPLED = 250_000  # evenly spaced pixels used for the percentile


def validate_size(path: str, width: int, height: int) -> None:
    """Raise ImageError for an image that is too large to decode safely, too small or too elongated."""
    size, shorter = f"{width} x {height} pixels", min(width, height)
    if width * height > MAX_PIXELS:
        problem = f"{size} are {width * height / 1e6:.0f} MP, over the limit of {MAX_PIXELS // 1_000_000} MP"
        raise ImageError(problem, "Save it smaller, for example with 2,000 pixels per side", path=path, code="E109")
    if shorter < MIN_SIDE_PIXELS:
        problem = f"{size} are too small, expected at least {MIN_SIDE_PIXELS} on the shorter side"
        raise ImageError(problem, "Use the original radiograph, not a thumbnail", path=path, code="E110")
    if max(width, height) > MAX_ASPECT_RATIO * shorter:
        problem = f"{size} are too elongated, expected an aspect ratio of at most {MAX_ASPECT_RATIO}"
        raise ImageError(problem, "Use the whole radiograph, or leave this file out", path=path, code="E110")


def find_full_range(largest: int) -> int:
    """Return the highest value of the smallest usual bit depth that can store `largest`."""
    return next(full for full in FULL_RANGES if largest <= full)


def find_peak(values: np.ndarray) -> int:
    """Return the 98th percentile of an image of shape (height, width), a robust maximum."""
    step = max(1, math.isqrt(values.size // MAX_SAMPLED))
    return int(np.percentile(values[::step, ::step], PEAK_PERCENTILE, method="inverted_cdf"))


def find_depth(peak: int) -> int:
    """Return the smallest usual bit depth that can store `peak`."""
    return DEPTHS[FULL_RANGES.index(find_full_range(peak))]


def has_depth(values: np.ndarray) -> bool:
    """Return whether integers fit a usual bit depth: none is negative, and the peak fits into 16 bits."""
    return int(values.min()) >= 0 and find_peak(values) <= FULL_RANGES[-1]


def integers_to_gray(values: np.ndarray, depth: int | None = None) -> np.ndarray:
    """Return integers as gray levels: the full range of `depth` bits is scaled to 0..255, larger values are clipped.

    Without `depth` the peak determines it. Integers without a usual depth are scaled from min..max to 0..255.
    """
    if not has_depth(values):
        return rescale_to_uint8(values, int(values.min()), int(values.max()))
    full = 2 ** (depth or find_depth(find_peak(values))) - 1
    levels = np.arange(full + 1, dtype=np.uint32)
    return apply_lookup_table(values, ((levels * 255 + full // 2) // full).astype(np.uint8))


def floats_to_gray(values: np.ndarray) -> np.ndarray:
    """Return finite floats as gray levels: 0..1 times 255, 0..255 unchanged, any other range scaled from min..max."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return rescale_to_uint8(values, 0, 1)
    return rescale_to_uint8(values, 0, 255) if low >= 0 and high <= 255 else rescale_to_uint8(values, low, high)


def rescale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale low..high to 0..255 and clip values outside; all pixels are black if `high` does not exceed `low`."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    fraction = (values.astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(fraction.clip(0, 1) * 255).astype(np.uint8)


def apply_lookup_table(values: np.ndarray, table: np.ndarray, first: int = 0) -> np.ndarray:
    """Replace each value by its entry in `table`, which starts at `first`; values outside take the nearest entry."""
    image = np.empty(values.shape, table.dtype)
    for row in range(0, len(values), 64):  # numpy converts an index to 64 bits; strips limit the memory
        index = values[row : row + 64].astype(np.int64) - first
        image[row : row + 64] = table[index.clip(0, len(table) - 1)]
    return image
