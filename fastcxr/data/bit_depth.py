"""Bit depth of images with more than 8 bits whose files state none: one depth for each source, saved with the model.

A single image does not determine its depth: a marker or a defective pixel may have any value, and an underexposed image
of a 12-bit detector fits into 10 bits. The images of one source come from one archive and have the same depth.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fastcxr.data.cache.images import ImageCache, open_image_cache
from fastcxr.data.imaging.intensity import DEPTHS, find_depth
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import DataError, ImageError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import to_text
from fastcxr.progress.base import Progress

log = logging.getLogger("fastcxr")

COLUMN = "bit_depth"  # manifest column: bits per pixel of an image with more than 8 bits whose file states no depth
IMAGE_FRACTION = 0.95  # of the images of a source whose peaks must fit its depth; the rest may be outliers
LEAST, MOST = min(DEPTHS), max(DEPTHS)


@dataclass(frozen=True)
class BitDepths:
    """Bit depths that training has determined, for each source and, as `default`, for unknown sources."""

    sources: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None

    def find(self, source: str) -> int | None:
        """Return the depth of a source."""
        return self.sources.get(source, self.default)

    def is_unknown(self, source: str) -> bool:
        """Return whether the source is unknown, and the known sources have different depths."""
        return source not in self.sources and len(set(self.sources.values())) > 1

    def describe(self) -> str:
        """Return `hospital_a 12 bits, hospital_b 14 bits`."""
        return ", ".join(f"{source} {depth} bits" for source, depth in self.sources.items())


def open_dataset_images(
    manifest: pd.DataFrame,
    size: int,
    progress: Progress | None = None,
    bad: list[ImageError] | None = None,
    known: BitDepths | None = None,
) -> tuple[pd.DataFrame, ImageCache]:
    """Return the manifest, with a column `bit_depth` if some images need it, and its images.

    Images are decoded twice only if neither their file nor the manifest states a depth.

    Args:
        manifest: The dataset.
        size: Pixels per side.
        progress: Progress display.
        bad: See `errors` of open_image_cache.
        known: Depths that the training of a model has determined; without them these images determine the depths.
    """
    files = manifest["file"].tolist()
    images = open_image_cache(files, size, progress, bad, read_depths(manifest))
    peaks = pd.Series({row: one.peak for row, one in images.remarks.items() if one.peak is not None}, dtype="int64")
    open_rows = [row for row in peaks.index if images.depths[row] is None]
    if known:
        warn_unknown_sources(manifest, images.remarks, known)
        warn_packed_depths(manifest, known)
    if not open_rows or (known and known.default is None):
        return manifest, images
    depths = known or decide_depths(manifest["source"].iloc[open_rows], peaks[open_rows])
    if not known:
        log.info("bit depth of images whose files state none: %s", depths.describe())
    manifest = write_depths(manifest, open_rows, depths)
    return manifest, open_image_cache(files, size, progress, bad, read_depths(manifest))


def decide_depths(sources: pd.Series, peaks: "Sequence[int] | pd.Series[int]") -> BitDepths:
    """Return for each source the smallest usual depth that holds the peaks of 95 % of its images.

    `sources` and `peaks` belong to the images whose files state no depth. With few images the largest peak decides.
    """
    by_source = pd.Series(np.asarray(peaks), index=pd.Index(sources)).groupby(level=0)
    found = {
        str(source): find_depth(int(np.quantile(group, IMAGE_FRACTION, method="inverted_cdf")))
        for source, group in by_source
    }
    return BitDepths(found, _find_most_frequent(sources.map(found)))


def write_depths(manifest: pd.DataFrame, rows: Sequence[int], depths: BitDepths) -> pd.DataFrame:
    """Return the manifest with the depths of the sources in column `bit_depth` of these rows (positions)."""
    column: list[int | None] = read_depths(manifest) or [None] * len(manifest)
    for row, source in zip(rows, manifest["source"].iloc[list(rows)], strict=True):
        column[row] = depths.find(source)
    cells = pd.Series([depth and str(depth) for depth in column], index=manifest.index, dtype="object")
    others = manifest.drop(columns=COLUMN, errors="ignore")
    return others.assign(**{COLUMN: to_text(cells)})[[*others.columns.drop("file"), COLUMN, "file"]]


def read_depths(table: pd.DataFrame) -> list[int | None] | None:
    """Return the column `bit_depth` with None for empty cells, or None without the column.

    Raises DataError for a value that is not a bit depth.
    """
    if COLUMN not in table:
        return None
    cells = table[COLUMN].replace("", None)
    depths = pd.to_numeric(cells, errors="coerce").astype("float64")
    wrong = cells.notna() & ~(depths.between(LEAST, MOST) & (depths % 1 == 0))
    if wrong.any():
        problem = f"the column {COLUMN} of {table['path'][wrong].iloc[0]!r} is {cells[wrong].iloc[0]!r}"
        fix = f"Set a whole number from {LEAST} to {MOST}, or leave the cell empty"
        raise DataError(f"{problem}, expected a bit depth", fix, code="E012")
    return [None if pd.isna(depth) else int(depth) for depth in depths]


def find_depths(table: pd.DataFrame, known: BitDepths) -> list[int | None]:
    """Return the depth for reading each row: that of the column, else the depth that training found for its source."""
    own = read_depths(table) or [None] * len(table)
    sources = table["source"] if "source" in table else [""] * len(table)
    return [depth or known.find(source) for depth, source in zip(own, sources, strict=True)]


def summarize_depths(manifest: pd.DataFrame) -> BitDepths:
    """Return the depths in a manifest for saving with a model: the most frequent of each source and of all images."""
    column = pd.Series(read_depths(manifest) or [], dtype="float64").dropna()
    if column.empty:
        return BitDepths()
    by_source = column.groupby(manifest["source"].reset_index(drop=True)[column.index])
    depths = {str(source): _find_most_frequent(group) for source, group in by_source}
    return BitDepths(depths, _find_most_frequent(column))


def warn_packed_depths(table: pd.DataFrame, known: BitDepths) -> None:
    """Log the number of images packed with another depth than that of the model; their 8-bit pixels are final."""
    depths = zip(read_depths(table) or (), table["file"], table["source"], strict=False)
    n_packed = sum(
        depth is not None and known.find(source) not in (None, depth) and parse_reference(file) is not None
        for depth, file, source in depths
    )
    if n_packed:
        text = "%s packed with a different bit depth than the model uses (%s): "
        fix = f"pack them again with that depth in the column {COLUMN}"
        log.warning(text + fix, pluralize(n_packed, "image"), known.describe())


def find_unknown_sources(table: pd.DataFrame, remarks: Mapping[int, Remarks], known: BitDepths) -> dict[int, Remarks]:
    """Return a remark on each row without a bit depth from a source that is unknown to the model."""
    column = read_depths(table) or [None] * len(table)
    text = (
        f"the file states no bit depth; read with {known.default} bits, "
        f"the most frequent depth of the model's sources, which differ ({known.describe()})"
    )
    return {
        row: Remarks({"W213": text})
        for row, one in sorted(remarks.items())
        if one.peak is not None and column[row] is None and known.is_unknown(table["source"].iloc[row])
    }


def warn_unknown_sources(table: pd.DataFrame, remarks: Mapping[int, Remarks], known: BitDepths) -> None:
    """Log the number of images without a bit depth from sources that are unknown to the model."""
    found = find_unknown_sources(table, remarks, known)
    log_counted_warnings((table["path"].iloc[row], one) for row, one in found.items())


def _find_most_frequent(depths: pd.Series) -> int:
    return int(depths.mode().iloc[0])  # the smallest of several
