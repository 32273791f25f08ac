"""Checks of the values of a recipe that need more than one field, or the parts of a value."""

import re
from typing import Any

from fastcxr.config.fields import unknown_name_error
from fastcxr.errors import RecipeError

OPTIMIZERS = ("radam", "adam", "adamw", "sgd")  # beside timm:NAME


def validate_combinations(recipe: Any) -> None:
    """Check names with a prefix, and options that exclude each other. Raises RecipeError."""
    if recipe.folds == 1:
        raise RecipeError("folds is 1", "Give --folds 2 or more, or leave it out for one split into train, valid, test")
    if recipe.fold is not None and recipe.fold > recipe.folds:
        raise RecipeError(
            f"fold {recipe.fold} of {recipe.folds} folds", "Give --folds 2 or more, and --fold one of them"
        )
    if recipe.folds and recipe.reuse_split:
        raise RecipeError("folds and an earlier run cannot both give the splits", "Leave out --folds or --reuse-split")
    if recipe.leave_one_source_out or recipe.test_source:
        _validate_source_options(recipe)
    if not recipe.optimizer.startswith("timm:") and recipe.optimizer not in OPTIMIZERS:
        raise unknown_name_error(recipe.optimizer, [*OPTIMIZERS, "timm:NAME"], "optimizer cannot be")
    if recipe.layer_lr_ratio != 1 and isinstance(recipe.strategy, str) and recipe.strategy != "full":
        problem = f"strategy {recipe.strategy} sets the rate of each layer group, or trains the head only"
        raise RecipeError(
            f"layer_lr_ratio is {recipe.layer_lr_ratio:g}, and {problem}",
            "Choose --strategy full, or leave --layer-lr-ratio out",
        )
    if recipe.lr_find_min >= recipe.lr_find_max:
        raise RecipeError(
            f"lr_find_min is {recipe.lr_find_min:g} and lr_find_max {recipe.lr_find_max:g}",
            "Give an lr_find_max above lr_find_min",
        )
    if recipe.time_limit is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", recipe.time_limit):
        raise RecipeError(f"time limit is {recipe.time_limit!r}", "Write a number and s, m or h, as 90s, 10m or 1.5h")
    for entry in recipe.prevalence:
        parse_prevalence(entry)
    if len(recipe.oversample_factors) < len(recipe.oversample):
        raise RecipeError("oversample names a class twice", "Give each class one LABEL=N")
    if recipe.oversample and recipe.sampler == "weighted":
        raise RecipeError(
            "sampler weighted and oversample both say how often a class is shown", "Choose one of the two"
        )


def _validate_source_options(recipe: Any) -> None:
    """Check that a held-out source is the only source of test images, with patients kept apart."""
    if recipe.leave_one_source_out and recipe.test_source:
        raise RecipeError("both one held-out source and every source in turn are given", "Leave out --test-source")
    if recipe.folds or recipe.reuse_split:
        raise RecipeError("a held-out source gives the test images", "Leave out --folds and --reuse-split")
    if recipe.split == "image":
        raise RecipeError("a held-out source keeps patients apart", "Leave out --split image")


def parse_prevalence(entry: str) -> tuple[str, float]:
    """Return label and prevalence of LABEL=0.05."""
    label, _, prevalence = entry.rpartition("=")
    if not label or not re.fullmatch(r"0?\.[0-9]+", prevalence) or not 0 < float(prevalence) < 1:
        raise RecipeError(f"prevalence is {entry!r}", "Write LABEL=SHARE, a share between 0 and 1, as COVID-19=0.05")
    return label, float(prevalence)


def parse_oversample(entry: str) -> tuple[str, int]:
    """Return label and factor of LABEL=5."""
    label, _, factor = entry.rpartition("=")
    if not label or not re.fullmatch(r"[1-9][0-9]{0,5}", factor):
        raise RecipeError(f"oversample is {entry!r}", "Write LABEL=N with a whole number, as COVID-19=5")
    return label, int(factor)


def parse_rate_slice(rates: slice) -> tuple[float, float]:
    """Return the head rate, and its ratio to the first-group rate, of fastai's slice(first-group rate, head rate)."""
    low, high = rates.start, rates.stop
    if rates.step is not None or not (_is_positive_number(low) and _is_positive_number(high)) or low > high:
        problem = f"learning_rate is slice({low}, {high})"
        raise RecipeError(problem, "Give the first group's rate and then the head's, as slice(1e-5, 1e-3)")
    return float(high), high / low


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
