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
from fastcxr.data.imaging.sniff import HEAD, find_kind, open_file
from fastcxr.data.readers.hdf5 import read_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Progress

SIDE, HASHED = 64, 16
BINS = 32
ROWS = 1024  # images whose intermediate results are in memory at once
EVEN = 8  # gray values that a border may vary by, as a JPEG's does


@dataclass(frozen=True, eq=False)
class Looks:
    """What was seen of n images, row by row.

    small: (n, 64, 64) gray bytes, the whole image squeezed; trimmed: the same without an even border.
    histogram: (n, 32) shares. facts: a table of kind, mode, width, height and bytes of the file, how coarse its JPEG is
    (the worse, the higher) and the maker in its DICOM header; blank where it has none.
    """

    small: np.ndarray
    trimmed: np.ndarray
    histogram: np.ndarray
    facts: pd.DataFrame

    def take(self, rows: np.ndarray) -> "Looks":
        """What was seen of some of the images."""
        facts = self.facts.iloc[rows].reset_index(drop=True)
        pictures = self.small[rows], self.trimmed[rows]
        return Looks(*pictures, self.histogram[rows], facts)


def look_at(files: list[str], progress: Progress, depths: list[int | None] | None = None) -> Looks:
    """Read the files with all processors, at these bit depths. Raises ImageError for one that cannot be read."""
    small, trimmed = (np.empty((len(files), SIDE, SIDE), np.uint8) for _ in range(2))
    histogram, facts, depths = np.empty((len(files), BINS)), [], depths or [None] * len(files)
    with ThreadPoolExecutor(count_cpus()) as pool, progress.bar(len(files), "looking at images") as bar:
        for start in range(0, len(files), ROWS):
            batch = slice(start, start + ROWS)
            for row, look in enumerate(pool.map(_look, files[batch], depths[batch]), start):
                small[row], trimmed[row], histogram[row] = look[:3]
                facts.append(look[3])
                bar.advance()
    return Looks(small, trimmed, histogram, _tabulate(facts))


def _tabulate(facts: list[dict]) -> pd.DataFrame:
    table = pd.DataFrame(facts)
    return table.assign(**{name: pd.to_numeric(table[name]) for name in ("bytes", "coarseness")})


def _look(path: str, depth: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    image = read_image(path, depth)
    histogram = np.bincount(image.ravel() // (256 // BINS), minlength=BINS) / image.size
    height, width = image.shape
    facts = {"width": width, "height": height} | _read_facts(path)
    return _squeeze(image), _squeeze(trim(image)), histogram, facts


def _squeeze(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))


def trim(image: np.ndarray) -> np.ndarray:
    """The image without rows and columns at its edges that hold nothing, as padding leaves them."""
    kept = [np.flatnonzero(np.ptp(image, axis=axis) > EVEN) for axis in (1, 0)]
    if not all(len(places) for places in kept):
        return image
    rows, columns = (slice(places[0], places[-1] + 1) for places in kept)
    return np.ascontiguousarray(image[rows, columns])


def _read_facts(path: str) -> dict:
    facts = dict.fromkeys(("mode", "bytes", "coarseness", "maker"))
    if read_reference(path):
        return facts | {"kind": "packed"}
    with open_file(path) as file:
        kind = find_kind(file.read(HEAD)) or "DICOM"
    facts |= {"kind": kind, "bytes": Path(path).stat().st_size}
    return facts | (_read_maker(path) if kind == "DICOM" else _read_header(path))


def _read_maker(path: str) -> dict:
    from fastcxr.data.imaging.dicom import read_tags  # pydicom takes its time, and most cohorts have no DICOM

    maker = read_tags(path, ["Manufacturer"])["Manufacturer"]
    return {"maker": maker and maker.casefold()}


def _read_header(path: str) -> dict:
    """The colour mode that read_image makes gray, and of a JPEG the sum of its luminance quantisation table."""
    with Image.open(path) as picture:
        table = getattr(picture, "quantization", {}).get(0)
        return {"mode": picture.mode, "coarseness": table and sum(table)}


def hash_looks(small: np.ndarray, turn: Callable[[np.ndarray], np.ndarray] = np.asarray) -> np.ndarray:
    """A perceptual hash of each picture, (n, 256), of plus and minus one: low frequencies against their median.

    `turn`: applied to some pictures at a time before they are hashed.
    """
    hashes = np.empty((len(small), HASHED**2), np.int8)
    for start in range(0, len(small), ROWS):
        waves = dctn(turn(small[start : start + ROWS]).astype(float), axes=(1, 2))[:, :HASHED, :HASHED]
        waves = waves.reshape(len(waves), -1)
        hashes[start : start + ROWS] = np.where(waves > np.median(waves, axis=1, keepdims=True), 1, -1)
    return hashes
