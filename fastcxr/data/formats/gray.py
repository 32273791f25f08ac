"""Numbers of any depth come in; the 8-bit gray picture that they mean goes out."""

import numpy as np

from fastcxr.errors import ImageError

MOST_PIXELS = 64_000_000  # the largest detectors give 20 megapixels; a few kilobytes of PNG can claim thousands
SHORTEST_SIDE = 64  # below it lungs are no longer readable
LONGEST_ASPECT = 4  # tightly cropped chests of children reach 3.2; a longer strip is a banner or a spine

# what detectors and archives store; a 12-bit picture in a 16-bit file would be nearly black if taken as 16-bit
FULL_RANGES = tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))


def check_size(path: str, width: int, height: int) -> None:
    """Refuse what is too large to decode safely, or no shape of a radiograph."""
    if width * height > MOST_PIXELS:
        megapixels, limit = width * height / 1e6, MOST_PIXELS // 1_000_000
        raise ImageError(
            f"{width} x {height} pixels are {megapixels:.0f} MP, over the limit of {limit} MP",
            "Save it smaller; 2,000 pixels a side are plenty",
            path=path,
            code="E109",
        )
    if min(width, height) < SHORTEST_SIDE:
        raise ImageError(
            f"{width} x {height} pixels are too small, the shorter side needs {SHORTEST_SIDE}",
            "Use the original radiograph, not a thumbnail",
            path=path,
            code="E110",
        )
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        raise ImageError(
            f"{width} x {height} pixels, one side over {LONGEST_ASPECT} times the other, are no chest radiograph",
            "Use the whole radiograph, or leave this file out",
            path=path,
            code="E110",
        )


def find_full_range(largest: int) -> int:
    """The highest value of the smallest usual bit depth that holds `largest`."""
    return next(full for full in FULL_RANGES if largest <= full)


def from_integers(values: np.ndarray) -> np.ndarray:
    """Counts of a detector: the full range of their depth becomes 0..255; larger or negative ones min..max."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > FULL_RANGES[-1]:
        return stretch(values, low, high)
    full = find_full_range(high)
    levels = np.arange(high + 1, dtype=np.uint32)
    return look_up(values, ((levels * 255 + full // 2) // full).astype(np.uint8))


def from_floats(values: np.ndarray) -> np.ndarray:
    """Shares of 0..1 times 255; 0..255 as they are; anything else min..max. Only finite numbers."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        return stretch(values, 0, 1)
    return stretch(values, 0, 255) if low >= 0 and high <= 255 else stretch(values, low, high)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` becomes 0 and `high` 255; what lies outside is cut off; all black when they are equal."""
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    share = (values.astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def look_up(values: np.ndarray, table: np.ndarray, first: int = 0) -> np.ndarray:
    """Each value replaced by its entry, where `table` starts at `first`; values outside take the nearest entry."""
    picture = np.empty(values.shape, table.dtype)
    for row in range(0, len(values), 64):  # numpy widens an index to 64 bits: by strips, memory stays small
        index = values[row : row + 64].astype(np.int64) - first
        picture[row : row + 64] = table[index.clip(0, len(table) - 1)]
    return picture
