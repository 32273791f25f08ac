"""A recipe's data flags and an empty folder come in; a page of the cohort, before anything is trained, goes out."""

from pathlib import Path

from fastcxr.cohort import read_cohort, split_cohort
from fastcxr.data.manifest import describe_manifest
from fastcxr.evaluation.description import draw_description
from fastcxr.folder import CohortFolder, choose_samples, write_thumbnails
from fastcxr.progress import Progress, find_progress
from fastcxr.recipe import Recipe


def describe(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Read the recipe's data, and nothing else of it, into `folder`; returns the path of describe.html.

    Images that cannot be read are left out and listed in skipped.csv. The split is the one that a run would train on.
    Raises a FastcxrError for data or a folder that cannot be used.
    """
    with CohortFolder(folder, command).open(progress or find_progress()) as record:
        manifest = split_cohort(read_cohort(recipe.but(skip_bad=True), record), recipe)
        record.facts = {"cohort": describe_manifest(manifest), "seed": recipe.seed}
        record.write_cohort(manifest)
        write_thumbnails(record.folder, choose_samples(manifest))
    return draw_description(folder)
