"""Whether the choices of a recipe, each of them sound, agree with each other."""

import re
from typing import TYPE_CHECKING

from fastcxr.choices import not_known
from fastcxr.errors import RecipeError

if TYPE_CHECKING:
    from fastcxr.recipe import Recipe

OPTIMIZERS = ("radam", "adam", "adamw", "sgd")  # beside timm:NAME


def check_agreement(recipe: "Recipe") -> None:
    """What one field alone cannot tell: names with a prefix, and wishes that exclude each other.

    Raises RecipeError.
    """
    if recipe.folds == 1:
        raise RecipeError("folds is 1", "Give --folds 2 or more, or leave it out for one split into train, valid, test")
    if recipe.fold is not None and recipe.fold > recipe.folds:
        raise RecipeError(
            f"fold {recipe.fold} of {recipe.folds} folds", "Give --folds 2 or more, and --fold one of them"
        )
    if recipe.folds and recipe.split_from:
        raise RecipeError("folds and an earlier run cannot both give the splits", "Leave out --folds or --split-from")
    if recipe.leave_one_source_out or recipe.held_out:
        _check_sources(recipe)
    if not recipe.optimizer.startswith("timm:") and recipe.optimizer not in OPTIMIZERS:
        raise not_known(recipe.optimizer, [*OPTIMIZERS, "timm:NAME"], "optimizer cannot be")
    if recipe.spread != 1 and recipe.strategy in ("rapid", "probe", "shallow", "fine"):
        what = f"strategy {recipe.strategy} gives each layer group its own rate, or teaches the head alone"
        raise RecipeError(f"spread is {recipe.spread:g}, and {what}", "Choose --strategy deep, or leave spread out")
    if recipe.find_from >= recipe.find_to:
        raise RecipeError(
            f"find_from is {recipe.find_from:g} and find_to {recipe.find_to:g}", "Give a find_to above find_from"
        )
    if recipe.time_limit is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", recipe.time_limit):
        raise RecipeError(f"time limit is {recipe.time_limit!r}", "Write a number and s, m or h, as 90s, 10m or 1.5h")
    for entry in recipe.prevalence:
        read_prevalence(entry)
    if len(recipe.copies) < len(recipe.oversample):
        raise RecipeError("oversample names a class twice", "Give each class one LABEL=N")
    if recipe.oversample and recipe.sampler == "weighted":
        raise RecipeError(
            "sampler weighted and oversample both say how often a class is shown", "Choose one of the two"
        )


def _check_sources(recipe: "Recipe") -> None:
    """A source that is held out is all that is tested, and no patient crosses over."""
    if recipe.leave_one_source_out and recipe.held_out:
        raise RecipeError("one source is held out, and every source in turn", "Leave out --held-out")
    if recipe.folds or recipe.split_from:
        raise RecipeError("a held-out source gives the test images", "Leave out --folds and --split-from")
    if recipe.split == "image":
        raise RecipeError("a held-out source keeps patients apart", "Leave out --split image")


def read_prevalence(entry: str) -> tuple[str, float]:
    """LABEL=0.05 as its two parts."""
    label, _, share = entry.rpartition("=")
    if not label or not re.fullmatch(r"0?\.[0-9]+", share) or not 0 < float(share) < 1:
        raise RecipeError(f"prevalence is {entry!r}", "Write LABEL=SHARE, a share between 0 and 1, as COVID-19=0.05")
    return label, float(share)


def read_copies(entry: str) -> tuple[str, int]:
    """LABEL=5 as its two parts."""
    label, _, times = entry.rpartition("=")
    if not label or not re.fullmatch(r"[1-9][0-9]{0,5}", times):
        raise RecipeError(f"oversample is {entry!r}", "Write LABEL=N with a whole number, as COVID-19=5")
    return label, int(times)


def read_slice(rates: slice) -> tuple[float, float]:
    """slice(first group's rate, head's rate), as fastai takes it, as the head's rate and the spread below it."""
    low, high = rates.start, rates.stop
    if rates.step is not None or not (_is_rate(low) and _is_rate(high)) or low > high:
        what = f"learning_rate is slice({low}, {high})"
        raise RecipeError(what, "Give the first group's rate and then the head's, as slice(1e-5, 1e-3)")
    return float(high), high / low


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
