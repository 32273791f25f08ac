"""Dataset description: tables and figures of a dataset on one page, before any training."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import COLUMN as BIT_DEPTH_COLUMN
from fastcxr.data.manifest import describe_manifest
from fastcxr.data.stratify import NO_SPLIT_CODE, TOO_FEW_CODE
from fastcxr.errors import DataError
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import write_dataset_page
from fastcxr.workflows.load import Dataset, assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir, select_sample_images, write_thumbnails

log = logging.getLogger("fastcxr")
MAX_DECODED = 2000  # images of a larger dataset: they take minutes, all of NIH ChestX-ray14 hours


def describe(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    *,
    decode_all: bool = False,
) -> Path:
    """Describe the data of a recipe; return the path of describe.html.

    Of more than MAX_DECODED images a random sample is decoded, unless `decode_all`; manifest.csv lists all images.
    Unreadable images are left out and listed in skipped.csv. The splits are those of a training run; if a class is too
    small to split, or only some images have a split, a warning is logged and no splits are shown. Raises FastcxrError
    for data or a folder that cannot be used.
    """
    with OutputDir(folder, command).open(progress or make_default_progress()) as output_dir:
        recipe = recipe.replace(skip_bad=True)
        max_decoded = None if decode_all else MAX_DECODED
        dataset = Dataset(recipe, only_test=True, max_decoded=max_decoded)
        manifest = split_if_possible(load_dataset(recipe, output_dir, dataset), recipe)
        output_dir.announce()
        output_dir.extra_metadata = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        assert dataset.decoded is not None  # load_dataset has opened the images
        n_images, n_decoded = len(manifest) + len(output_dir.skipped), len(dataset.decoded)
        if n_decoded < n_images:
            output_dir.extra_metadata["decoded"] = {"images": n_decoded, "all_images": n_images}
        decoded = select_decoded(manifest, dataset.decoded)
        output_dir.write_dataset_tables(manifest, decoded)
        write_thumbnails(output_dir.folder, select_sample_images(decoded))
    return write_dataset_page(folder)


def select_decoded(manifest: pd.DataFrame, decoded: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the manifest whose images were decoded, with the bit depths of `decoded`."""
    columns = [name for name in ("source", "path", BIT_DEPTH_COLUMN) if name in decoded]
    return manifest.drop(columns=BIT_DEPTH_COLUMN, errors="ignore").merge(decoded[columns], on=["source", "path"])


def split_if_possible(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Return the manifest with the splits of a training run, or with empty splits if that is not possible."""
    try:
        return assign_recipe_splits(manifest, recipe)
    except DataError as error:
        if error.code not in (TOO_FEW_CODE, NO_SPLIT_CODE):
            raise
        log.warning("training is not possible with this data: %s", error)
        return manifest.assign(split="", split_origin="")
