"""Numbers of any depth come in; the 8-bit gray picture that they mean goes out."""

import math

import numpy as np

from fastcxr.errors import ImageError

MAX_PIXELS = 64_000_000  # the largest detectors give 20 megapixels; a few kilobytes of PNG can claim thousands
MIN_SIDE_PIXELS = 64  # below it lungs are no longer readable
MAX_ASPECT_RATIO = 4  # tightly cropped chests of children reach 3.2; a longer strip is a banner or a spine

# what detectors and archives store; a 12-bit picture in a 16-bit file would be nearly black if taken as 16-bit
DEPTHS = (8, 10, 12, 14, 16)
FULL_RANGES = tuple(2**bits - 1 for bits in DEPTHS)

# defective pixels and burned-in markers cover less than 2 % of an image, and may have any value; of a radiograph more
# than 2 % lie above a quarter of its range, so that the next smaller usual depth would not hold them
PEAK_PERCENTILE = 98
MAX_SAMPLED = 250_000  # pixels, evenly spread, that the percentile is taken of


def validate_size(path: str, width: int, height: int) -> None:
    """Refuse what is too large to decode safely, or no shape of a radiograph."""
    if width * height > MAX_PIXELS:
        megapixels, limit = width * height / 1e6, MAX_PIXELS // 1_000_000
        raise ImageError(
            f"{width} x {height} pixels are {megapixels:.0f} MP, over the limit of {limit} MP",
            "Save it smaller; 2,000 pixels a side are plenty",
            path=path,
            code="E109",
        )
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ImageError(
            f"{width} x {height} pixels are too small, the shorter side needs {MIN_SIDE_PIXELS}",
            "Use the original radiograph, not a thumbnail",
            path=path,
            code="E110",
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{width} x {height} pixels, one side over {MAX_ASPECT_RATIO} times the other, are no chest radiograph",
            "Use the whole radiograph, or leave this file out",
            path=path,
            code="E110",
        )


def find_full_range(largest: int) -> int:
    """The highest value of the smallest usual bit depth that holds `largest`."""
    return next(full for full in FULL_RANGES if largest <= full)


def find_peak(values: np.ndarray) -> int:
    """Return the value that 98 % of the pixels do not exceed, shape (height, width): the largest one, robustly."""
    step = max(1, math.isqrt(values.size // MAX_SAMPLED))
    return int(np.percentile(values[::step, ::step], PEAK_PERCENTILE, method="inverted_cdf"))


def find_depth(peak: int) -> int:
    """Return the smallest usual bit depth that holds `peak`."""
    return DEPTHS[FULL_RANGES.index(find_full_range(peak))]


def has_depth(values: np.ndarray) -> bool:
    """Return whether integers are counts of a usual bit depth, neither negative nor larger than 16 bits hold."""
    return int(values.min()) >= 0 and find_peak(values) <= FULL_RANGES[-1]


def integers_to_gray(values: np.ndarray, depth: int | None = None) -> np.ndarray:
    """Return counts of a detector as gray levels: the full range of `depth` bits becomes 0..255.

    What exceeds it is white. Without a depth the peak decides. Negative or larger integers: min..max becomes 0..255.
    """
    if not has_depth(values):
        return rescale_to_uint8(values, int(values.min()), int(values.max()))
    full = 2 ** (depth or find_depth(find_peak(values))) - 1
    levels = np.arange(full + 1, dtype=np.uint32)
    return apply_lookup_table(values, ((levels * 255 + full // 2) // full).astype(np.uint8))


def floats_to_gray(values: np.ndarray) -> np.ndarray:
    """Shares of 0..1 times 255; 0..255 as they are; anything else min..max. Only finite numbers."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return rescale_to_uint8(values, 0, 1)
    return rescale_to_uint8(values, 0, 255) if low >= 0 and high <= 255 else rescale_to_uint8(values, low, high)


def rescale_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` becomes 0 and `high` 255; what lies outside is cut off; all black when they are equal."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    fraction = (values.astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(fraction.clip(0, 1) * 255).astype(np.uint8)


def apply_lookup_table(values: np.ndarray, table: np.ndarray, first: int = 0) -> np.ndarray:
    """Each value replaced by its entry, where `table` starts at `first`; values outside take the nearest entry."""
    image = np.empty(values.shape, table.dtype)
    for row in range(0, len(values), 64):  # numpy widens an index to 64 bits: by strips, memory stays small
        index = values[row : row + 64].astype(np.int64) - first
        image[row : row + 64] = table[index.clip(0, len(table) - 1)]
    return image
