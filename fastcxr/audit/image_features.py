"""Every image is read once, and what the checks of pixels and files need of it is kept: little, for many images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from fastcxr.data.imaging.read import read_image
from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, open_file
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Progress

THUMBNAIL_PIXELS, HASH_FREQUENCIES = 64, 16
N_HISTOGRAM_BINS = 32
ROWS = 1024  # images whose intermediate results are in memory at once
MAX_BORDER_RANGE = 8  # gray values that a border may vary by, as a JPEG's does


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What was seen of n images, row by row.

    small: (n, 64, 64) gray bytes, the whole image squeezed; trimmed: the same without an even border.
    histogram: (n, 32) shares. facts: a table of kind, mode, width, height and bytes of the file, how coarse its JPEG is
    (the worse, the higher) and the maker in its DICOM header; blank where it has none.
    """

    thumbnails: np.ndarray
    trimmed_thumbnails: np.ndarray
    histogram: np.ndarray
    metadata: pd.DataFrame

    def select_rows(self, rows: np.ndarray) -> "ImageFeatures":
        """What was seen of some of the images."""
        metadata = self.metadata.iloc[rows].reset_index(drop=True)
        thumbnails = self.thumbnails[rows], self.trimmed_thumbnails[rows]
        return ImageFeatures(*thumbnails, self.histogram[rows], metadata)


def extract_features(files: list[str], progress: Progress, depths: list[int | None] | None = None) -> ImageFeatures:
    """Read the files with all processors, at these bit depths. Raises ImageError for one that cannot be read."""
    thumbnails, trimmed_thumbnails = (
        np.empty((len(files), THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), np.uint8) for _ in range(2)
    )
    histogram, metadata, depths = np.empty((len(files), N_HISTOGRAM_BINS)), [], depths or [None] * len(files)
    with ThreadPoolExecutor(count_cpus()) as pool, progress.bar(len(files), "looking at images") as bar:
        for start in range(0, len(files), ROWS):
            batch = slice(start, start + ROWS)
            for row, image_features in enumerate(pool.map(_extract_image_features, files[batch], depths[batch]), start):
                thumbnails[row], trimmed_thumbnails[row], histogram[row] = image_features[:3]
                metadata.append(image_features[3])
                bar.advance()
    return ImageFeatures(thumbnails, trimmed_thumbnails, histogram, _make_metadata_table(metadata))


def _make_metadata_table(metadata: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(metadata)
    return table.assign(**{name: pd.to_numeric(table[name]) for name in ("bytes", "coarseness")})


def _extract_image_features(path: str, depth: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    image = read_image(path, depth)
    histogram = np.bincount(image.ravel() // (256 // N_HISTOGRAM_BINS), minlength=N_HISTOGRAM_BINS) / image.size
    height, width = image.shape
    metadata = {"width": width, "height": height} | _read_file_metadata(path)
    return _make_thumbnail(image), _make_thumbnail(trim_borders(image)), histogram, metadata


def _make_thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX))


def trim_borders(image: np.ndarray) -> np.ndarray:
    """The image without rows and columns at its edges that hold nothing, as padding leaves them."""
    occupied = [np.flatnonzero(np.ptp(image, axis=axis) > MAX_BORDER_RANGE) for axis in (1, 0)]
    if not all(len(places) for places in occupied):
        return image
    rows, columns = (slice(places[0], places[-1] + 1) for places in occupied)
    return np.ascontiguousarray(image[rows, columns])


def _read_file_metadata(path: str) -> dict:
    metadata = dict.fromkeys(("mode", "bytes", "coarseness", "maker"))
    if parse_reference(path):
        return metadata | {"kind": "packed"}
    with open_file(path) as file:
        kind = detect_format(file.read(HEAD_BYTES)) or "DICOM"
    metadata |= {"kind": kind, "bytes": Path(path).stat().st_size}
    return metadata | (_read_manufacturer(path) if kind == "DICOM" else _read_image_header(path))


def _read_manufacturer(path: str) -> dict:
    from fastcxr.data.imaging.dicom import read_tags  # pydicom takes its time, and most cohorts have no DICOM

    manufacturer = read_tags(path, ["Manufacturer"])["Manufacturer"]
    return {"maker": manufacturer and manufacturer.casefold()}


def _read_image_header(path: str) -> dict:
    """The colour mode that read_image makes gray, and of a JPEG the sum of its luminance quantisation table."""
    with Image.open(path) as image:
        table = getattr(image, "quantization", {}).get(0)
        return {"mode": image.mode, "coarseness": table and sum(table)}


def compute_perceptual_hashes(
    thumbnails: np.ndarray, turn: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """A perceptual hash of each picture, (n, 256), of plus and minus one: low frequencies against their median.

    `turn`: applied to some pictures at a time before they are hashed.
    """
    hashes = np.empty((len(thumbnails), HASH_FREQUENCIES**2), np.int8)
    for start in range(0, len(thumbnails), ROWS):
        coefficients = dctn(turn(thumbnails[start : start + ROWS]).astype(float), axes=(1, 2))[
            :, :HASH_FREQUENCIES, :HASH_FREQUENCIES
        ]
        coefficients = coefficients.reshape(len(coefficients), -1)
        hashes[start : start + ROWS] = np.where(coefficients > np.median(coefficients, axis=1, keepdims=True), 1, -1)
    return hashes
