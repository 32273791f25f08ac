"""Bit depths of images deeper than 8 bits whose files state none: one decision for each source, kept with the model.

A single image does not tell its depth: a marker or a defective pixel may have any value, and an underexposed image of
a 12-bit detector fits into 10 bits. The images of one source come from one archive, and share one.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fastcxr.data.cache.images import ImageCache, open_image_cache
from fastcxr.data.imaging.intensity import DEPTHS, find_depth
from fastcxr.data.imaging.sniff import Remarks, log_counted_warnings
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import DataError, ImageError
from fastcxr.io.tables import to_text
from fastcxr.progress.base import Progress

log = logging.getLogger("fastcxr")

COLUMN = "bit_depth"  # of a manifest: bits of the row's image, where it is deeper than 8 and its file states no depth
SHARE_OF_IMAGES = 0.95  # of a source, whose peaks its depth must hold: of each 20 images, one may be of another kind
LEAST, MOST = min(DEPTHS), max(DEPTHS)


@dataclass(frozen=True)
class BitDepths:
    """What training decided: bits for each source, and for sources that it has not seen; None: it decided nothing."""

    sources: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None

    def find(self, source: str) -> int | None:
        """Return the depth of a source."""
        return self.sources.get(source, self.default)

    def is_unknown(self, source: str) -> bool:
        """Return whether the source is unknown, and those that are known differ from each other."""
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
    """The pictures of a manifest, and the manifest with the column `bit_depth` where some of its images need one.

    Images are decoded a second time only where their files state no depth and the manifest neither. `known`: the
    decision of a model's training; without it the decision is made now, from these images. `bad`: see open_image_cache.
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
        log.info("bit depth where files of more than 8 bits state none: %s", depths.describe())
    manifest = write_depths(manifest, open_rows, depths)
    return manifest, open_image_cache(files, size, progress, bad, read_depths(manifest))


def decide_depths(sources: pd.Series, peaks: Sequence[int]) -> BitDepths:
    """Return for each source the smallest usual depth that holds the peaks of 95 % of its images.

    `sources`, `peaks`: of each image whose file states no depth. Sources of few images: the largest peak counts.
    """
    by_source = pd.Series(np.asarray(peaks), index=pd.Index(sources)).groupby(level=0)
    held = {source: np.quantile(few, SHARE_OF_IMAGES, method="inverted_cdf") for source, few in by_source}
    found = {str(source): find_depth(int(peak)) for source, peak in held.items()}
    return BitDepths(found, _find_most_frequent(pd.Series(sources).map(found)))


def write_depths(manifest: pd.DataFrame, rows: Sequence[int], depths: BitDepths) -> pd.DataFrame:
    """Return the manifest with the depth of its source in the column `bit_depth` of these rows, by position."""
    column = read_depths(manifest) or [None] * len(manifest)
    for row in rows:
        column[row] = depths.find(manifest["source"].iloc[row])
    cells = pd.Series([depth and str(depth) for depth in column], index=manifest.index, dtype="object")
    others = manifest.drop(columns=COLUMN, errors="ignore")
    return others.assign(**{COLUMN: to_text(cells)})[[*others.columns.drop("file"), COLUMN, "file"]]


def read_depths(table: pd.DataFrame) -> list[int | None] | None:
    """Return the column `bit_depth`, None for a blank cell; None without the column.

    Raises DataError for a cell that is no depth.
    """
    if COLUMN not in table:
        return None
    cells = table[COLUMN].replace("", None)
    depths = pd.to_numeric(cells, errors="coerce").astype("float64")
    wrong = cells.notna() & ~(depths.between(LEAST, MOST) & (depths % 1 == 0))
    if wrong.any():
        what = f"the column {COLUMN} of {table['path'][wrong].iloc[0]!r} is {cells[wrong].iloc[0]!r}"
        fix = f"Give a whole number from {LEAST} to {MOST}, or leave the cell empty"
        raise DataError(f"{what}, which is no bit depth", fix, code="E012")
    return [None if pd.isna(depth) else int(depth) for depth in depths]


def find_depths(table: pd.DataFrame, known: BitDepths) -> list[int | None]:
    """Return the depth that each row is read with: its own, else that of its source as training decided it."""
    own = read_depths(table) or [None] * len(table)
    sources = table["source"] if "source" in table else [""] * len(table)
    return [depth or known.find(source) for depth, source in zip(own, sources, strict=True)]


def summarize_depths(manifest: pd.DataFrame) -> BitDepths:
    """Return the depths in a manifest for a model to keep: the commonest of each source, and of all images."""
    column = pd.Series(read_depths(manifest) or [], dtype="float64").dropna()
    if column.empty:
        return BitDepths()
    sources = manifest["source"].reset_index(drop=True)[column.index]
    by_source = column.groupby(sources)
    return BitDepths(
        {str(source): _find_most_frequent(depths) for source, depths in by_source}, _find_most_frequent(column)
    )


def warn_packed_depths(table: pd.DataFrame, known: BitDepths) -> None:
    """Log how many images were packed with another depth than the model knows: their pixels are 8-bit for good."""
    depths = zip(read_depths(table) or (), table["file"], table["source"], strict=False)
    packed = sum(
        depth is not None and known.find(source) not in (None, depth) and parse_reference(file) is not None
        for depth, file, source in depths
    )
    if packed:
        text = (
            "%s images were packed with another bit depth than the model was trained with (%s): pack them again with "
        )
        log.warning(text + "that in a column %s", f"{packed:,}", known.describe(), COLUMN)


def warn_unknown_sources(table: pd.DataFrame, remarks: Mapping[int, Remarks], known: BitDepths) -> None:
    """Log which images have no depth of their own, and come from a source for which the model knows none."""
    own, text = (
        read_depths(table) or [None] * len(table),
        f"the file states no bit depth; read with {known.default} bits",
    )
    text += f", the commonest of the model's sources, which differ ({known.describe()})"
    unsure = [
        (table["path"].iloc[row], Remarks({"W213": text}))
        for row, one in sorted(remarks.items())
        if one.peak is not None and own[row] is None and known.is_unknown(table["source"].iloc[row])
    ]
    log_counted_warnings(unsure)


def _find_most_frequent(depths: Iterable[float]) -> int:
    """The smallest of the depths that are most frequent."""
    return int(pd.Series(depths).mode().iloc[0])
