"""Overlap of other data with the images of a run: the same pixels, near-duplicates, crops, other images of a patient.

A run stores the features of its images that the search for near-duplicates compares. Crops are found only under the
same file name, as when datasets are merged.
"""

import logging
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fastcxr.audit.image_features import THUMBNAIL_PIXELS, ImageFeatures, extract_features
from fastcxr.audit.near_duplicates import match_near_duplicates
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.duplicates import get_stem, is_distinctive_name
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.merge import has_global_id
from fastcxr.data.same_image import is_same_image
from fastcxr.errors import DataError
from fastcxr.io.files import atomic_file
from fastcxr.progress.base import Progress
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN, IMAGE_KEY

log = logging.getLogger("fastcxr")
FEATURES_FILE = "features.npz"
NPZ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)  # of a damaged file
SIZE_COLUMNS = ["width", "height"]  # of the metadata
MAX_SIDE_PIXELS = 8 * THUMBNAIL_PIXELS
FITTED_SPLITS = ("train", "valid")  # used for training or model selection
# in order of precedence
SAME_PIXELS, NEAR_DUPLICATE, CROP, SAME_PATIENT = "same pixels", "near-duplicate", "crop", "same patient"


def write_features(folder: Path, manifest: pd.DataFrame, progress: Progress, earlier: Path | None = None) -> None:
    """Write features.npz: key, pixel hash, size, whole and trimmed thumbnail of each image, in the manifest's order.

    `manifest`: with a column of pixel hashes. `earlier`: features.npz of a run that read the same data; it is copied if
    it has the same images, because the pass over all images takes most of the time.
    """
    # Never publish this file: the thumbnails, 64 x 64 pixels, show the radiographs of patients.
    if earlier and _has_images(earlier, manifest):
        with atomic_file(folder / FEATURES_FILE, overwrite=True) as temporary:
            shutil.copyfile(earlier, temporary)
        return
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    # next to each other: the two thumbnails of most images are equal, which halves the compressed size
    thumbnails = np.stack([features.thumbnails, features.trimmed_thumbnails], axis=1)
    source, path, image_sha256 = (
        np.array(manifest[name].tolist(), dtype=str) for name in (*IMAGE_KEY, IMAGE_HASH_COLUMN)
    )
    with atomic_file(folder / FEATURES_FILE, overwrite=True) as temporary, temporary.open("wb") as file:
        size = features.metadata[SIZE_COLUMNS].to_numpy(np.int64)
        np.savez_compressed(file, source=source, path=path, image_sha256=image_sha256, size=size, thumbnails=thumbnails)


def _has_images(features_file: Path, manifest: pd.DataFrame) -> bool:
    """Return whether the file has exactly these images, by key and pixel hash, in this order."""
    names = [*IMAGE_KEY, IMAGE_HASH_COLUMN]
    try:
        # np.load does not close a damaged file that it opened
        with features_file.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return all(arrays[name].tolist() == manifest[name].tolist() for name in names)
    except NPZ_ERRORS:  # for example because the folder of the run was removed meanwhile
        return False


def read_features(folder: Path) -> tuple[pd.DataFrame, ImageFeatures] | None:
    """Return keys and features (thumbnails and image sizes only) in features.npz, or None if there is no such file."""
    path = folder / FEATURES_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            thumbnails, keys = arrays["thumbnails"], {name: arrays[name] for name in IMAGE_KEY}
            sizes = pd.DataFrame(arrays["size"], columns=SIZE_COLUMNS)
        shape = len(sizes), 2, THUMBNAIL_PIXELS, THUMBNAIL_PIXELS
        if thumbnails.shape != shape or thumbnails.dtype != np.uint8 or (sizes < 1).any(axis=None):
            raise ValueError(f"thumbnails of shape {thumbnails.shape}")
        table = pd.DataFrame(keys, index=sizes.index, dtype="str")
        return table, ImageFeatures(thumbnails[:, 0], thumbnails[:, 1], np.empty((len(table), 0)), sizes)
    except NPZ_ERRORS as error:
        problem = f"the features cannot be read ({type(error).__name__})"
        fix = "Restore the file, or delete it: then only images with the same pixels and known patients are found"
        raise DataError(problem, fix, path=path) from error


def find_overlap(manifest: pd.DataFrame, run: Path, image_size: int, progress: Progress) -> pd.DataFrame:
    """Return the images that overlap with those of a run, with its columns `reason`, and `split` and `path` of the run.

    The index has the rows of the manifest, which start at 0. An image has the first reason that applies: the same
    pixels, near-duplicate, crop or patient of a fitted image (of the training or validation split), then the same
    pixels, near-duplicate or crop of another image. Patients are matched if their identifiers are globally unique.
    """
    run_images = read_written_manifest(run / "manifest.csv")
    if IMAGE_HASH_COLUMN not in run_images:
        log.warning("an earlier version made the run: overlap of this data with its training images is unknown")
        return pd.DataFrame(columns=["reason", "split", "path"])
    hashes = open_image_cache(manifest["file"].tolist(), image_size, depths=read_depths(manifest)).hash_images()
    same_pixels = _match_values(pd.Series(hashes, index=manifest.index), run_images, IMAGE_HASH_COLUMN)
    same_image = _match_features(manifest, run, run_images, progress)
    same_patient = _match_values(manifest["patient"][has_global_id(manifest)], run_images, "patient")
    reasons = {SAME_PIXELS: same_pixels, **same_image, SAME_PATIENT: same_patient}
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


def _match_features(
    manifest: pd.DataFrame, run: Path, run_images: pd.DataFrame, progress: Progress
) -> dict[str, pd.DataFrame]:
    """Return split and path of an image of the run that is a near-duplicate or a crop of each image, by reason."""
    stored = read_features(run)
    if stored is None:
        text = "the run has no %s: near-duplicates of its training images are not found in this data"
        log.warning(text, FEATURES_FILE)
        return {}
    keys, run_features = stored
    images = keys.reset_index(names="row").merge(run_images, on=IMAGE_KEY)
    run_features = run_features.select_rows(images["row"].to_numpy())  # of the images of the manifest, in this order
    features = extract_features(manifest["file"].tolist(), progress, read_depths(manifest))
    near_duplicates = _match_near_duplicates(features, run_features, images)
    others = manifest["path"].drop(index=near_duplicates.index)
    return {NEAR_DUPLICATE: near_duplicates, CROP: _match_crops(others, features, run_features, images)}


def _match_near_duplicates(features: ImageFeatures, run_features: ImageFeatures, images: pd.DataFrame) -> pd.DataFrame:
    """Return split and path of a near-duplicate of each image, one in a fitted and one in another split."""
    is_fitted, tables = images["split"].isin(FITTED_SPLITS), []
    for rows in (images.index[is_fitted], images.index[~is_fitted]):
        matches = match_near_duplicates(features, run_features.select_rows(rows.to_numpy()))
        tables.append(images.loc[rows[list(matches.values())], ["split", "path"]].set_axis(list(matches)))
    return pd.concat(tables)


def _match_crops(
    paths: pd.Series, features: ImageFeatures, run_features: ImageFeatures, images: pd.DataFrame
) -> pd.DataFrame:
    """Return split and path of the image of the run with the same file name, if one image is a crop of the other.

    A name counts if it is more than a counter and occurs once in the data and once in the run.
    """
    names, run_names = (table.map(get_stem).drop_duplicates(keep=False) for table in (paths, images["path"]))
    names = names[names.map(is_distinctive_name).astype(bool)]
    pairs = pd.merge(
        names.rename("name").rename_axis("row").reset_index(),
        run_names.rename("name").rename_axis("run_row").reset_index(),
    )
    is_crop = [
        is_same_image(_restore_shape(features, row), _restore_shape(run_features, run_row), cropped=True)
        for row, run_row in zip(pairs["row"], pairs["run_row"], strict=True)
    ]
    crops = pairs[pd.Series(is_crop, index=pairs.index, dtype=bool)]
    return images.loc[crops["run_row"], ["split", "path"]].set_axis(crops["row"].tolist())


def _restore_shape(features: ImageFeatures, row: int) -> np.ndarray:
    """Return the whole thumbnail with the aspect ratio of the image."""
    sizes = features.metadata[SIZE_COLUMNS].to_numpy()[row]
    width, height = np.minimum(sizes * THUMBNAIL_PIXELS // sizes.min(), MAX_SIDE_PIXELS).tolist()
    return np.asarray(Image.fromarray(features.thumbnails[row]).resize((width, height), Image.Resampling.BILINEAR))
