"""Decide whether two images with one file name show the same radiograph: re-encoded, resized, or cropped."""

import numpy as np
from PIL import Image

from fastcxr.data.imaging.read import fit_square

SAME = 0.98  # correlation. Re-encoded copies: above .995; crops of 56 radiographs: above .986; other radiographs: .976
SIDE = 64  # pixels of the shorter side at which images are compared
CENTRE = 0.6  # share of each side that a crop is assumed to retain
SCALES = np.geomspace(CENTRE, 1 / CENTRE, 23)  # size of the centre in the other image, relative to its own
FLAT = 5  # gray values: below this standard deviation nothing is compared


def is_same_image(one: np.ndarray, other: np.ndarray, *, cropped: bool = False) -> bool:
    """Whether two gray images agree as a whole or, with `cropped`, one of them with a part of the other."""
    squares = [fit_square(image, SIDE).astype(float).ravel() for image in (one, other)]
    if all(square.std() > 0 for square in squares) and np.corrcoef(*squares)[0, 1] > SAME:
        return True
    if not cropped:
        return False
    small = [_shrink(image) for image in (one, other)]
    return max(_match_centre(*small), _match_centre(*reversed(small))) > SAME


def _shrink(image: np.ndarray) -> Image.Image:
    scale = SIDE / min(image.shape)
    height, width = (min(round(side * scale), 8 * SIDE) for side in image.shape)
    return Image.fromarray(image).resize((width, height), Image.Resampling.BOX)


def _match_centre(one: Image.Image, other: Image.Image) -> float:
    """Return the highest correlation of the centre of one image, at any scale, with any place of the other."""
    width, height = (round(side * (1 - CENTRE) / 2) for side in one.size)
    centre, whole = one.crop((width, height, one.width - width, one.height - height)), np.asarray(other, float)
    sizes = [(round(centre.width * scale), round(centre.height * scale)) for scale in SCALES]
    fitting = [size for size in sizes if size[0] <= other.width and size[1] <= other.height]
    parts = (centre.resize(size, Image.Resampling.BILINEAR) for size in fitting)
    return max((_correlate(np.asarray(part, float), whole) for part in parts), default=0.0)


def _correlate(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the highest Pearson correlation of `part` with a window of `whole` (normalized cross-correlation)."""
    from scipy.signal import fftconvolve  # it loads scipy.optimize and scipy.stats, which prediction does not need

    if part.std() < FLAT:
        return 0.0
    centred, ones = (part - part.mean())[::-1, ::-1], np.ones_like(part)
    product = fftconvolve(whole, centred, mode="valid")
    total, squares = (fftconvolve(values, ones, mode="valid") for values in (whole, whole**2))
    variance = squares - total**2 / part.size
    textured = variance > part.size * FLAT**2
    scores = product[textured] / np.sqrt(variance[textured] * (centred**2).sum())
    return float(scores.max()) if scores.size else 0.0
