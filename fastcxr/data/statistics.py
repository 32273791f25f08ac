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
from fastcxr.data.cache.index import name_state
from fastcxr.data.imaging.read import read_image
from fastcxr.data.imaging.sniff import HEAD, find_kind, open_file
from fastcxr.data.readers.hdf5 import read_reference
from fastcxr.io.cpus import count_cpus

if TYPE_CHECKING:
    from fastcxr.progress.base import Progress

BINS = 64
MOST = 200  # images of a class: the mean of more is the same to the eye, and a large cohort would take minutes
WITHIN = (0.1, 0.9)  # the spread: eight of ten images lie in it
FACTS = ("kind", "width", "height")
HISTOGRAM = ("label", "bin", "mean", "low", "high", "images")


def measure_images(
    manifest: pd.DataFrame, *, most: int = MOST, progress: "Progress | None" = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Histograms and files of at most `most` images of each class, chosen evenly over the patients in train.

    Histograms, a row a class and bin: label, bin, mean, low, high (shares of the pixels), images (measured). Files, a
    row for each kind and size in a class: label, kind, width, height, images. Raises ImageError for an unreadable one.
    """
    chosen = samples_of_each_class(manifest, most)
    seen = _look_at(chosen["file"].tolist(), read_depths(chosen) or [None] * len(chosen), progress)
    labels = chosen["label"].to_numpy()
    shares = np.array([look["shares"] for look in seen]).reshape(len(seen), BINS)
    histograms = [_summarize(label, shares[labels == label]) for label in sorted(set(labels))]
    files = pd.DataFrame({"label": labels} | {name: [look[name] for look in seen] for name in FACTS})
    files = files.groupby(["label", *FACTS], sort=True).size().rename("images").reset_index()
    return pd.concat(histograms, ignore_index=True) if histograms else pd.DataFrame(columns=[*HISTOGRAM]), files


def histogram_of(image: np.ndarray) -> np.ndarray:
    """The share of the pixels in each bin, shape (64,); the shares sum to one. `image`: uint8, any shape."""
    counts = np.bincount(image.ravel() // (256 // BINS), minlength=BINS)
    return counts / counts.sum()


def _look_at(files: list[str], depths: list[int | None], progress: "Progress | None") -> list[dict[str, Any]]:
    watched = progress.bar(len(files), "measuring images") if progress else nullcontext()
    looks = []
    with ThreadPoolExecutor(count_cpus()) as pool, watched as bar:
        for look in pool.map(_look, files, map(name_state, files), depths):
            looks.append(look)
            if bar:
                bar.advance()
    return looks


@lru_cache(maxsize=8192)  # the folds of a run look at the same files; one that was written to has another state
def _look(path: str, state: bytes | None, depth: int | None) -> dict[str, Any]:
    image = read_image(path, depth)
    height, width = image.shape
    return {"shares": histogram_of(image), "kind": _name_kind(path), "width": width, "height": height}


def _name_kind(path: str) -> str:
    if read_reference(path):
        return "packed"
    with open_file(path) as file:
        return find_kind(file.read(HEAD)) or "DICOM"  # read_image took it, and only DICOM may lack its mark


def _summarize(label: str, shares: np.ndarray) -> pd.DataFrame:
    low, high = np.quantile(shares, WITHIN, axis=0)
    columns = (label, np.arange(BINS), shares.mean(axis=0), low, high, len(shares))
    return pd.DataFrame(dict(zip(HISTOGRAM, columns, strict=True)))


def samples_of_each_class(manifest: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows of each class, spread evenly over its patients, one a patient as far as they reach.

    Training images when there are any: the test images stay unseen for as long as possible.
    """
    train = manifest[manifest["split"] == "train"]
    chosen = []
    for label, everywhere in manifest.groupby("label", sort=True):
        rows = train[train["label"] == label]
        rows = (rows if len(rows) else everywhere).sort_values(["source", "path"], kind="stable")
        # the first image of every patient, then the second of those who have one, ...
        rows = rows.assign(turn=rows.groupby("patient").cumcount())
        first = rows[rows["turn"] == 0]
        pool = first if len(first) >= count else rows.sort_values("turn", kind="stable").head(count)
        at = np.unique(np.linspace(0, len(pool) - 1, num=min(count, len(pool))).round().astype(int))
        chosen.append(pool.iloc[at].drop(columns="turn"))
    return pd.concat(chosen).reset_index(drop=True) if chosen else manifest.iloc[:0]
