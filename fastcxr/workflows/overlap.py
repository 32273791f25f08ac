"""Overlap of other data with the images of a run: the same pixels, near-duplicates, and other images of a patient.

A run stores the features of its images that the search for near-duplicates compares.
"""

import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.audit.image_features import THUMBNAIL_PIXELS, ImageFeatures, extract_features
from fastcxr.audit.near_duplicates import match_near_duplicates
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.merge import has_global_id
from fastcxr.errors import DataError
from fastcxr.io.files import atomic_file
from fastcxr.progress.base import Progress
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN, IMAGE_KEY

log = logging.getLogger("fastcxr")
FEATURES_FILE = "features.npz"
NPZ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)  # of a damaged file
FITTED_SPLITS = ("train", "valid")  # used for training or model selection
SAME_PIXELS, NEAR_DUPLICATE, SAME_PATIENT = "same pixels", "near-duplicate", "same patient"  # in order of precedence


def write_features(folder: Path, manifest: pd.DataFrame, progress: Progress) -> None:
    """Write features.npz: key, pixel hash, whole and trimmed thumbnail of each image, in the order of the manifest.

    `manifest`: with a column of pixel hashes.
    """
    # Never publish this file: the thumbnails, 64 x 64 pixels, show the radiographs of patients.
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    # next to each other: the two thumbnails of most images are equal, which halves the compressed size
    thumbnails = np.stack([features.thumbnails, features.trimmed_thumbnails], axis=1)
    source, path, image_sha256 = (
        np.array(manifest[name].tolist(), dtype=str) for name in (*IMAGE_KEY, IMAGE_HASH_COLUMN)
    )
    with atomic_file(folder / FEATURES_FILE, overwrite=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, source=source, path=path, image_sha256=image_sha256, thumbnails=thumbnails)


def read_features(folder: Path) -> tuple[pd.DataFrame, ImageFeatures] | None:
    """Return the keys and the features (thumbnails only) in features.npz, or None if the folder has no such file."""
    path = folder / FEATURES_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys, thumbnails = {name: arrays[name] for name in IMAGE_KEY}, arrays["thumbnails"]
        if thumbnails.shape[1:] != (2, THUMBNAIL_PIXELS, THUMBNAIL_PIXELS) or thumbnails.dtype != np.uint8:
            raise ValueError(f"thumbnails of shape {thumbnails.shape}")
        table = pd.DataFrame(keys, index=range(len(thumbnails)), dtype="str")
    except NPZ_ERRORS as error:
        problem = f"the features cannot be read ({type(error).__name__})"
        fix = "Restore the file, or delete it: then only images with the same pixels and known patients are found"
        raise DataError(problem, fix, path=path) from error
    no_histogram, no_metadata = np.empty((len(table), 0)), pd.DataFrame(index=table.index)
    return table, ImageFeatures(thumbnails[:, 0], thumbnails[:, 1], no_histogram, no_metadata)


def find_overlap(manifest: pd.DataFrame, run: Path, image_size: int, progress: Progress) -> pd.DataFrame:
    """Return the images that overlap with those of a run, with its columns `reason`, and `split` and `path` of the run.

    The index has the rows of the manifest. An image has the first reason that applies: the same pixels, near-duplicate
    or patient of a fitted image (of the training or validation split), then pixels or near-duplicate of another image.
    Patients are matched if their identifiers are globally unique.
    """
    run_images = read_written_manifest(run / "manifest.csv")
    if IMAGE_HASH_COLUMN not in run_images:
        log.warning("an earlier version made the run: overlap of this data with its training images is unknown")
        return pd.DataFrame(columns=["reason", "split", "path"])
    hashes = open_image_cache(manifest["file"].tolist(), image_size, depths=read_depths(manifest)).hash_images()
    same_pixels = _match_values(pd.Series(hashes, index=manifest.index), run_images, IMAGE_HASH_COLUMN)
    near_duplicates = _match_thumbnails(manifest, run, run_images, progress)
    same_patient = _match_values(manifest["patient"][has_global_id(manifest)], run_images, "patient")
    reasons = {SAME_PIXELS: same_pixels, NEAR_DUPLICATE: near_duplicates, SAME_PATIENT: same_patient}
    matches = pd.concat([table.assign(reason=reason) for reason, table in reasons.items()])
    is_fitted = matches["split"].isin(FITTED_SPLITS)
    overlap = pd.concat([matches[is_fitted], matches[~is_fitted & (matches["reason"] != SAME_PATIENT)]])
    return overlap[~overlap.index.duplicated()].sort_index()


def _match_values(values: pd.Series, run_images: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return split and path of an image of the run with each value, one in a fitted and one in another split."""
    is_fitted = run_images["split"].isin(FITTED_SPLITS)
    tables = (
        images.drop_duplicates(column).set_index(column) for images in (run_images[is_fitted], run_images[~is_fitted])
    )
    return pd.concat([table.reindex(values).set_index(values.index)[["split", "path"]].dropna() for table in tables])


def _match_thumbnails(manifest: pd.DataFrame, run: Path, run_images: pd.DataFrame, progress: Progress) -> pd.DataFrame:
    """Return split and path of a near-duplicate of each image, one in a fitted and one in another split of the run."""
    stored = read_features(run)
    if stored is None:
        log.warning(
            "the run has no %s: near-duplicates of its training images are not found in this data", FEATURES_FILE
        )
        return run_images[["split", "path"]].iloc[:0]
    keys, run_features = stored
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    known = keys.reset_index().merge(run_images, on=IMAGE_KEY)
    is_fitted = known["split"].isin(FITTED_SPLITS)
    tables = []
    for images in (known[is_fitted], known[~is_fitted]):
        matches = match_near_duplicates(features, run_features.select_rows(images["index"].to_numpy()))
        rows = manifest.index[list(matches)]
        tables.append(images.iloc[list(matches.values())].set_index(rows)[["split", "path"]])
    return pd.concat(tables)
