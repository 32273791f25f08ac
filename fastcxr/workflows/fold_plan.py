"""Which runs a cross-validation or leave-one-source-out has, where their folders are, and what they share."""

import re
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import find_complete_sources
from fastcxr.errors import RecipeError
from fastcxr.io.files import read_json
from fastcxr.workflows.load import Dataset
from fastcxr.workflows.run_state import Folds

FOLD_DIR_NAME = re.compile(r"(fold|source)-(\d+)")


def plan_folds(recipe: Recipe, folder: Path, dataset: Dataset) -> Folds:
    """Return recipe and run folder of each run, by fold number or held-out source.

    Raises DataError if fewer than two sources contain every class, for leave-one-source-out.
    """
    if recipe.leave_one_source_out:
        single_recipe = recipe.replace(leave_one_source_out=False)
        sources = find_complete_sources(dataset.read_manifest())
        recipes = {source: single_recipe.replace(test_source=source) for source in sources}
    else:
        recipes = {str(fold): recipe.replace(fold=fold) for fold in range(1, recipe.folds + 1)}
    unit = find_held_out_unit(recipe)
    return {name: (part, folder / f"{unit}-{k}") for k, (name, part) in enumerate(recipes.items(), 1)}


def find_held_out_unit(recipe: Recipe) -> str:
    """Return what each run holds out: "source" or "fold"."""
    return "source" if recipe.leave_one_source_out else "fold"


def needs_patient_level_folds(recipe: Recipe, manifest: pd.DataFrame | None = None) -> bool:
    """Return whether the folds ignore patients and take only seconds, as those of a linear probe do.

    `manifest`: of the images; without several images of a patient there is no other split.
    """
    is_ignoring = recipe.split == "image" and recipe.strategy == "linear_probe"
    return is_ignoring and (manifest is None or bool(manifest["patient"].duplicated().any()))


def find_shared_batch_size(recipe: Recipe, folder: Path) -> int | None:
    """Return the batch size that the run in `folder` shares with the finished runs beside it, None to choose one.

    For a fold or source with `batch_size="auto"`: all of a cross-validation have the same size, and the first one
    chooses it. Raises RecipeError for another one before any is finished.
    """
    match = FOLD_DIR_NAME.fullmatch(folder.name)
    if recipe.batch_size != "auto" or not match or not (folder.parent / "recipe.json").is_file():
        return None
    for report in sorted(folder.parent.glob(f"{match[1]}-*/report.html")):
        return read_json(report.parent / "model.json")["choices"]["batch_size"]
    if match[2] == "1":
        return None
    problem = f"`batch_size='auto'` is chosen by the first finished {match[1]}, and none is finished"
    raise RecipeError(problem, f"Run {match[1]} 1 first, or pass `batch_size=32`", path=folder, code="E617")
