"""Features and metadata that the audit checks need, extracted in one pass over the images."""

from collections.abc import Callable, Sequence
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
ROWS = 1024  # images with intermediate results in memory at once
MAX_BORDER_RANGE = 8  # gray-value range of a uniform border, which JPEG compression makes noisy


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of n images.

    Attributes:
        thumbnails: Gray bytes of the whole image, resized without its aspect ratio, shape (n, 64, 64).
        trimmed_thumbnails: The same without uniform borders.
        histogram: Fractions of pixels, shape (n, 32).
        metadata: File format (kind), mode, width, height, bytes, JPEG quantisation (coarseness, higher for stronger
            compression) and DICOM manufacturer (maker) of each file, missing if the file has none.
    """

    thumbnails: np.ndarray
    trimmed_thumbnails: np.ndarray
    histogram: np.ndarray
    metadata: pd.DataFrame

    def select_rows(self, rows: np.ndarray) -> "ImageFeatures":
        """Return the features of these rows."""
        metadata = self.metadata.iloc[rows].reset_index(drop=True)
        thumbnails = self.thumbnails[rows], self.trimmed_thumbnails[rows]
        return ImageFeatures(*thumbnails, self.histogram[rows], metadata)


def extract_features(files: list[str], progress: Progress, depths: Sequence[int | None] | None = None) -> ImageFeatures:
    """Read the files on all processors, with these bit depths. Raise ImageError for an unreadable file."""
    thumbnails = np.empty((len(files), THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), np.uint8)
    trimmed_thumbnails, histogram = np.empty_like(thumbnails), np.empty((len(files), N_HISTOGRAM_BINS))
    metadata, depths = [], depths or [None] * len(files)
    with ThreadPoolExecutor(count_cpus()) as pool, progress.bar(len(files), "extracting image features") as bar:
        for start in range(0, len(files), ROWS):
            batch = slice(start, start + ROWS)
            for row, image_features in enumerate(pool.map(_extract_image_features, files[batch], depths[batch]), start):
                thumbnails[row], trimmed_thumbnails[row], histogram[row] = image_features[:3]
                metadata.append(image_features[3])
                bar.advance()
    table = pd.DataFrame(metadata)
    table = table.assign(**{name: pd.to_numeric(table[name]) for name in ("bytes", "coarseness")})
    return ImageFeatures(thumbnails, trimmed_thumbnails, histogram, table)


def _extract_image_features(path: str, depth: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    image = read_image(path, depth)
    histogram = np.bincount(image.ravel() // (256 // N_HISTOGRAM_BINS), minlength=N_HISTOGRAM_BINS) / image.size
    height, width = image.shape
    metadata = {"width": width, "height": height} | _read_file_metadata(path)
    return _make_thumbnail(image), _make_thumbnail(trim_borders(image)), histogram, metadata


def _make_thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.BOX))


def trim_borders(image: np.ndarray) -> np.ndarray:
    """Return the image without uniform rows and columns at its edges, such as padding."""
    occupied = [np.flatnonzero(np.ptp(image, axis=axis) > MAX_BORDER_RANGE) for axis in (1, 0)]
    if not all(len(indices) for indices in occupied):
        return image
    rows, columns = (slice(indices[0], indices[-1] + 1) for indices in occupied)
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
    from fastcxr.data.imaging.dicom import read_tags  # pydicom is slow to import

    manufacturer = read_tags(path, ["Manufacturer"])["Manufacturer"]
    return {"maker": manufacturer and manufacturer.casefold()}


def _read_image_header(path: str) -> dict:
    """Return the original colour mode, and the sum of the luminance quantisation table of a JPEG."""
    with Image.open(path) as image:
        table = getattr(image, "quantization", {}).get(0)
        return {"mode": image.mode, "coarseness": table and sum(table)}


def compute_perceptual_hashes(
    thumbnails: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """Return perceptual hashes, booleans of shape (n, 256): whether low DCT frequencies are above their median.

    `transform` is applied to batches of thumbnails before hashing.
    """
    hashes = np.empty((len(thumbnails), HASH_FREQUENCIES**2), bool)
    for start in range(0, len(thumbnails), ROWS):
        coefficients = np.asarray(dctn(transform(thumbnails[start : start + ROWS]).astype(float), axes=(1, 2)))
        coefficients = coefficients[:, :HASH_FREQUENCIES, :HASH_FREQUENCIES].reshape(len(coefficients), -1)
        hashes[start : start + ROWS] = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return hashes
