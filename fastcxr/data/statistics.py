"""Measure the gray values and file properties of the images of each class, or of the most frequent findings.

The histogram of an image is the fraction of its pixels in each of 64 bins of the 256 gray values of `read_image`,
including black margins. The histogram of a class is the mean over its images, which have equal weights.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.index import file_signature
from fastcxr.data.findings import explode_labels, list_shown_labels
from fastcxr.data.imaging.read import read_image
from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, open_file
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Progress

N_BINS = 64
MAX_CLASS_IMAGES = 200  # measured per class: more images do not visibly change the mean, but take minutes
SPREAD_QUANTILES = (0.1, 0.9)  # limits of the plotted range of histograms
FILE_COLUMNS = ("kind", "width", "height")
HISTOGRAM_COLUMNS = ("label", "bin", "mean", "low", "high", "images")


def measure_images(
    manifest: pd.DataFrame, *, max_images: int = MAX_CLASS_IMAGES, progress: Progress | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return gray-value histograms and file properties of at most `max_images` of each class, preferably from train.

    Returns:
        Histograms, a row per class and bin: label, bin, mean, low, high (fractions of the pixels), images (measured).
        Files, a row per class, file type and size: label, kind, width, height, images.

    Raises:
        ImageError: a sampled image is unreadable.
    """
    sample = sample_per_class(manifest, max_images)
    files, depths = sample["file"].tolist(), read_depths(sample) or [None] * len(sample)
    measurements = []
    with ThreadPoolExecutor(count_cpus()) as pool, (progress or Progress()).bar(len(files), "measuring images") as bar:
        for measurement in pool.map(_measure_file, files, map(file_signature, files), depths):
            measurements.append(measurement)
            bar.advance()
    labels = sample["label"].to_numpy()
    histogram_rows = np.array([one["shares"] for one in measurements]).reshape(len(measurements), N_BINS)
    histograms = [_summarize_class(label, histogram_rows[labels == label]) for label in sorted(set(labels))]
    file_rows = pd.DataFrame({"label": labels} | {name: [one[name] for one in measurements] for name in FILE_COLUMNS})
    file_counts = file_rows.groupby(["label", *FILE_COLUMNS], sort=True).size().rename("images").reset_index()
    empty = pd.DataFrame(columns=[*HISTOGRAM_COLUMNS])
    return pd.concat(histograms, ignore_index=True) if histograms else empty, file_counts


def compute_histogram(image: np.ndarray) -> np.ndarray:
    """Return the fraction of the pixels of a uint8 image in each bin, shape (64,)."""
    counts = np.bincount(image.ravel() // (256 // N_BINS), minlength=N_BINS)
    return counts / counts.sum()


@lru_cache(maxsize=8192)  # all folds measure the same files; the signature changes with the file
def _measure_file(path: str, signature: bytes | None, depth: int | None) -> dict[str, Any]:
    image = read_image(path, depth)
    height, width = image.shape
    return {"shares": compute_histogram(image), "kind": _read_file_kind(path), "width": width, "height": height}


def _read_file_kind(path: str) -> str:
    if parse_reference(path):
        return "packed"
    with open_file(path) as file:
        return detect_format(file.read(HEAD_BYTES)) or "DICOM"  # only DICOM is readable without a signature


def _summarize_class(label: str, histogram_rows: np.ndarray) -> pd.DataFrame:
    low, high = np.quantile(histogram_rows, SPREAD_QUANTILES, axis=0)
    columns = (label, np.arange(N_BINS), histogram_rows.mean(axis=0), low, high, len(histogram_rows))
    return pd.DataFrame(dict(zip(HISTOGRAM_COLUMNS, columns, strict=True)))


def sample_patients(manifest: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return `count` random rows in their order, of as many different patients as possible; all if there are fewer."""
    shuffled = manifest.sample(frac=1, random_state=seed)
    rank = shuffled.groupby("patient").cumcount()  # of an image among those of its patient
    return manifest.loc[rank.sort_values(kind="stable").index[:count].sort_values()]


def sample_per_class(manifest: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return `count` rows of each class, spread evenly over its patients, with different patients if possible.

    Training images are preferred, because test images must not influence any decision. With several labels per image,
    an image belongs to each of its findings, and has a row for each of those that are shown.
    """
    manifest = explode_labels(manifest, list_shown_labels(manifest))
    train = manifest[manifest["split"] == "train"]
    samples = []
    for label, all_rows in manifest.groupby("label", sort=True):
        rows = train[train["label"] == label]
        rows = (rows if len(rows) else all_rows).sort_values(["source", "path"], kind="stable")
        rank = rows.groupby("patient").cumcount()  # of an image among those of its patient
        first = rows[rank == 0]
        pool = first if len(first) >= count else rows.iloc[np.argsort(rank.to_numpy(), kind="stable")].head(count)
        positions = np.unique(np.linspace(0, len(pool) - 1, num=min(count, len(pool))).round().astype(int))
        samples.append(pool.iloc[positions])
    return pd.concat(samples).reset_index(drop=True) if samples else manifest.iloc[:0]
