"""Decide whether two images with one file name show the same radiograph: re-encoded, resized, or cropped."""

import numpy as np
from PIL import Image

from fastcxr.data.imaging.read import fit_square

# correlation; measured: re-encoded images above .995, crops of 56 radiographs above .986, different radiographs .976
MIN_CORRELATION = 0.98
SIDE_PIXELS = 64  # shorter side of the compared images
CENTRE = 0.6  # fraction of each side that a crop is assumed to retain
SCALES = np.geomspace(CENTRE, 1 / CENTRE, 23)  # size of the centre in the other image, relative to its own
MIN_STD = 5  # standard deviation [gray values] of a comparable area


def is_same_image(one: np.ndarray, other: np.ndarray, *, cropped: bool = False) -> bool:
    """Return whether two gray images are equal or, with `cropped`, one of them equals a part of the other."""
    squares = np.stack([fit_square(image, SIDE_PIXELS).astype(float).ravel() for image in (one, other)])
    if (squares.std(axis=1) > 0).all() and np.corrcoef(squares)[0, 1] > MIN_CORRELATION:
        return True
    if not cropped:
        return False
    small = [_shrink(image) for image in (one, other)]
    return max(_match_centre(*small), _match_centre(*reversed(small))) > MIN_CORRELATION


def _shrink(image: np.ndarray) -> Image.Image:
    scale = SIDE_PIXELS / min(image.shape)
    height, width = (min(round(side * scale), 8 * SIDE_PIXELS) for side in image.shape)
    return Image.fromarray(image).resize((width, height), Image.Resampling.BOX)


def _match_centre(one: Image.Image, other: Image.Image) -> float:
    """Return the highest correlation of the centre of one image, at any scale, with any area of the other."""
    width, height = (round(side * (1 - CENTRE) / 2) for side in one.size)
    centre, whole = one.crop((width, height, one.width - width, one.height - height)), np.asarray(other, float)
    sizes = [(round(centre.width * scale), round(centre.height * scale)) for scale in SCALES]
    fitting = [size for size in sizes if size[0] <= other.width and size[1] <= other.height]
    parts = (centre.resize(size, Image.Resampling.BILINEAR) for size in fitting)
    return max((_correlate(np.asarray(part, float), whole) for part in parts), default=0.0)


def _correlate(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the highest Pearson correlation of `part` with a window of `whole` (normalized cross-correlation)."""
    from scipy.signal import fftconvolve  # slow import, not needed for prediction

    if part.std() < MIN_STD:
        return 0.0
    centred, ones = (part - part.mean())[::-1, ::-1], np.ones_like(part)
    product = fftconvolve(whole, centred, mode="valid")
    total, squares = (fftconvolve(values, ones, mode="valid") for values in (whole, whole**2))
    variance = squares - total**2 / part.size
    textured = variance > part.size * MIN_STD**2
    scores = product[textured] / np.sqrt(variance[textured] * (centred**2).sum())
    return float(scores.max()) if scores.size else 0.0
