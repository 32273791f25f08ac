"""A recipe's data flags and an empty folder come in; a page of the cohort, before anything is trained, goes out."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import describe_manifest
from fastcxr.data.stratify import TOO_FEW
from fastcxr.errors import DataError
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.report.pages import draw_description
from fastcxr.workflows.load import read_cohort, split_cohort
from fastcxr.workflows.run_dir import CohortFolder, choose_samples, write_thumbnails

log = logging.getLogger("fastcxr")


def describe(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Read the recipe's data, and nothing else of it, into `folder`; returns the path of describe.html.

    Images that cannot be read are left out and listed in skipped.csv. The split is the one that a run would train on;
    where classes are too small for any, a warning says so and the cohort is shown without. a
    FastcxrError for data or a folder that cannot be used.
    """
    with CohortFolder(folder, command).open(progress or find_progress()) as record:
        manifest = split_if_possible(read_cohort(recipe.but(skip_bad=True), record, only_test=True), recipe)
        record.facts = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        record.write_cohort(manifest)
        write_thumbnails(record.folder, choose_samples(manifest))
    return draw_description(folder)


def split_if_possible(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The manifest as a run would split it, or as it is: to look at a class no number of patients is too small."""
    try:
        return split_cohort(manifest, recipe)
    except DataError as error:
        if error.code != TOO_FEW:
            raise
        log.warning("a run would refuse this data: %s", error)
        return manifest.assign(split="", split_from="")
