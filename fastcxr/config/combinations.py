"""Checks of combinations of options of a Recipe, which imports this module."""

import re
from typing import Any

from fastcxr.config.fields import unknown_name_error
from fastcxr.config.validation import OPTIMIZERS, parse_prevalence
from fastcxr.errors import RecipeError


def validate_combinations(recipe: Any) -> None:
    """Check names with a prefix, and combinations of options. Raises RecipeError."""
    if recipe.folds == 1:
        raise RecipeError("folds is 1, it must be 0 or at least 2", "Pass `folds=2` or more, or leave it out")
    if recipe.fold is not None and recipe.fold > recipe.folds:
        problem = f"fold is {recipe.fold}, it must be at most the number of folds, {recipe.folds}"
        raise RecipeError(problem, "Pass `folds=2` or more, and `fold` up to that number")
    if recipe.folds and recipe.reuse_split:
        raise RecipeError("`folds` and `reuse_split` cannot be combined", "Leave out `folds` or `reuse_split`")
    if recipe.leave_one_source_out or recipe.test_source:
        _validate_source_options(recipe)
    if not recipe.optimizer.startswith("timm:") and recipe.optimizer not in OPTIMIZERS:
        raise unknown_name_error(recipe.optimizer, [*OPTIMIZERS, "timm:NAME"], "optimizer cannot be")
    if recipe.layer_lr_ratio != 1 and isinstance(recipe.strategy, str) and recipe.strategy not in ("full", "lp_ft"):
        problem = f"layer_lr_ratio is {recipe.layer_lr_ratio:g}, but strategy {recipe.strategy} does not use it"
        raise RecipeError(problem, "Choose `strategy='lp_ft'` or `strategy='full'`, or leave `layer_lr_ratio` out")
    if recipe.lr_find_min >= recipe.lr_find_max:
        problem = f"lr_find_min is {recipe.lr_find_min:g}, it must be below lr_find_max, {recipe.lr_find_max:g}"
        raise RecipeError(problem, "Change one of them")
    if recipe.time_limit is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", recipe.time_limit):
        raise RecipeError(f"time_limit is {recipe.time_limit!r}", "Write a number and s, m or h, as 90s, 10m or 1.5h")
    for entry in recipe.prevalence:
        parse_prevalence(entry)
    if len(recipe.oversample_factors) < len(recipe.oversample):
        raise RecipeError("oversample names a class twice", "Pass one LABEL=N per class")
    if recipe.oversample and recipe.sampler == "weighted":
        raise RecipeError("`sampler='weighted'` and `oversample` cannot be combined", "Leave one of them out")


def _validate_source_options(recipe: Any) -> None:
    """Check that a held-out source is the only source of test images, with patients kept within one split."""
    if recipe.leave_one_source_out and recipe.test_source:
        raise RecipeError("`leave_one_source_out` and `test_source` cannot be combined", "Leave out `test_source`")
    if recipe.folds or recipe.reuse_split:
        raise RecipeError("a held-out source is the test set", "Leave out `folds` and `reuse_split`")
    if recipe.split == "image":
        raise RecipeError("a held-out source needs `split='patient'`", "Leave out `split='image'`")
