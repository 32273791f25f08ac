"""A manifest comes in; two plain tables go out: the gray values of each class, and what its files are.

A histogram is of one image: the share of its pixels in each of 64 bins of the 256 gray values that read_image gives.
Black margins count as what they are, black. A class is the mean over its images, each weighing the same.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.index import file_signature
from fastcxr.data.imaging.read import read_image
from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, open_file
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.io.cpus import count_cpus

if TYPE_CHECKING:
    from fastcxr.progress.base import Progress

N_BINS = 64
MAX_CLASS_IMAGES = (
    200  # images of a class: the mean of more is the same to the eye, and a large cohort would take minutes
)
SPREAD_QUANTILES = (0.1, 0.9)  # the spread: eight of ten images lie in it
FILE_COLUMNS = ("kind", "width", "height")
HISTOGRAM_COLUMNS = ("label", "bin", "mean", "low", "high", "images")


def measure_images(
    manifest: pd.DataFrame, *, max_images: int = MAX_CLASS_IMAGES, progress: "Progress | None" = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Histograms and files of at most `most` images of each class, chosen evenly over the patients in train.

    Histograms, a row a class and bin: label, bin, mean, low, high (shares of the pixels), images (measured). Files, a
    row for each kind and size in a class: label, kind, width, height, images. Raises ImageError for an unreadable one.
    """
    sample = sample_per_class(manifest, max_images)
    measurements = _measure_files(sample["file"].tolist(), read_depths(sample) or [None] * len(sample), progress)
    labels = sample["label"].to_numpy()
    histogram_rows = np.array([look["shares"] for look in measurements]).reshape(len(measurements), N_BINS)
    histograms = [_summarize_class(label, histogram_rows[labels == label]) for label in sorted(set(labels))]
    files = pd.DataFrame({"label": labels} | {name: [look[name] for look in measurements] for name in FILE_COLUMNS})
    files = files.groupby(["label", *FILE_COLUMNS], sort=True).size().rename("images").reset_index()
    return pd.concat(histograms, ignore_index=True) if histograms else pd.DataFrame(columns=[*HISTOGRAM_COLUMNS]), files


def compute_histogram(image: np.ndarray) -> np.ndarray:
    """The share of the pixels in each bin, shape (64,); the shares sum to one. `image`: uint8, any shape."""
    counts = np.bincount(image.ravel() // (256 // N_BINS), minlength=N_BINS)
    return counts / counts.sum()


def _measure_files(files: list[str], depths: list[int | None], progress: "Progress | None") -> list[dict[str, Any]]:
    progress_bar = progress.bar(len(files), "measuring images") if progress else nullcontext()
    measurements = []
    with ThreadPoolExecutor(count_cpus()) as pool, progress_bar as bar:
        for measurement in pool.map(_measure_file, files, map(file_signature, files), depths):
            measurements.append(measurement)
            if bar:
                bar.advance()
    return measurements


@lru_cache(maxsize=8192)  # the folds of a run look at the same files; one that was written to has another state
def _measure_file(path: str, signature: bytes | None, depth: int | None) -> dict[str, Any]:
    image = read_image(path, depth)
    height, width = image.shape
    return {"shares": compute_histogram(image), "kind": _read_file_kind(path), "width": width, "height": height}


def _read_file_kind(path: str) -> str:
    if parse_reference(path):
        return "packed"
    with open_file(path) as file:
        return detect_format(file.read(HEAD_BYTES)) or "DICOM"  # read_image took it, and only DICOM may lack its mark


def _summarize_class(label: str, histogram_rows: np.ndarray) -> pd.DataFrame:
    low, high = np.quantile(histogram_rows, SPREAD_QUANTILES, axis=0)
    columns = (label, np.arange(N_BINS), histogram_rows.mean(axis=0), low, high, len(histogram_rows))
    return pd.DataFrame(dict(zip(HISTOGRAM_COLUMNS, columns, strict=True)))


def sample_per_class(manifest: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows of each class, spread evenly over its patients, one a patient as far as they reach.

    Training images when there are any: the test images stay unseen for as long as possible.
    """
    train = manifest[manifest["split"] == "train"]
    samples = []
    for label, all_rows in manifest.groupby("label", sort=True):
        rows = train[train["label"] == label]
        rows = (rows if len(rows) else all_rows).sort_values(["source", "path"], kind="stable")
        # the first image of every patient, then the second of those who have one, ...
        rows = rows.assign(turn=rows.groupby("patient").cumcount())
        first = rows[rows["turn"] == 0]
        pool = first if len(first) >= count else rows.sort_values("turn", kind="stable").head(count)
        positions = np.unique(np.linspace(0, len(pool) - 1, num=min(count, len(pool))).round().astype(int))
        samples.append(pool.iloc[positions].drop(columns="turn"))
    return pd.concat(samples).reset_index(drop=True) if samples else manifest.iloc[:0]
