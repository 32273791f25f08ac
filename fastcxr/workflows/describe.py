"""A recipe's data flags and an empty folder come in; a page of the cohort, before anything is trained, goes out."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import describe_manifest
from fastcxr.data.stratify import TOO_FEW_CODE
from fastcxr.errors import DataError
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import write_dataset_page
from fastcxr.workflows.load import Dataset, assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir, select_sample_images, write_thumbnails

log = logging.getLogger("fastcxr")


def describe(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Read the recipe's data, and nothing else of it, into `folder`; returns the path of describe.html.

    Images that cannot be read are left out and listed in skipped.csv. The split is the one that a run would train on;
    where classes are too small for any, a warning says so and the cohort is shown without. a
    FastcxrError for data or a folder that cannot be used.
    """
    with OutputDir(folder, command).open(progress or make_default_progress()) as output_dir:
        manifest = load_dataset(recipe.replace(skip_bad=True), output_dir, Dataset(recipe, only_test=True))
        manifest = split_if_possible(manifest, recipe)
        output_dir.extra_metadata = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        output_dir.write_dataset_tables(manifest)
        write_thumbnails(output_dir.folder, select_sample_images(manifest))
    return write_dataset_page(folder)


def split_if_possible(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The manifest as a run would split it, or as it is: to look at a class no number of patients is too small."""
    try:
        return assign_recipe_splits(manifest, recipe)
    except DataError as error:
        if error.code != TOO_FEW_CODE:
            raise
        log.warning("a run would refuse this data: %s", error)
        return manifest.assign(split="", split_origin="")
