"""Labels of the training rows become the order in which an epoch shows them: shuffled, weighted, or some repeated.

Only the loader of the training rows draws so; whatever fastai makes from it (get_preds, test_dl) sees each row once.
"""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd

from fastcxr.errors import RecipeError
from fastcxr.recipe import Recipe

log = logging.getLogger("fastcxr")


def loader_options(labels: pd.Series, recipe: Recipe) -> dict[str, Any]:
    """How a PictureLoader draws training rows with these labels in this order."""
    if recipe.class_weights == "balanced" and (recipe.sampler == "weighted" or recipe.oversample):
        log.warning("class weights and the drawing of images both favour rare classes: together they do so twice")
    if recipe.sampler == "weighted":
        # the reciprocal of the class counts: each class as a whole is equally likely
        return {"weights": (1 / labels.map(labels.value_counts())).tolist()}
    if recipe.oversample:
        return {"rows": repeat_rows(labels.tolist(), recipe.copies)}
    return {}  # fastai's own shuffling


def repeat_rows(labels: Sequence[str], copies: dict[str, int]) -> list[int]:
    """Positions of all rows, those of the classes in `copies` so many times. Says aloud what that comes to."""
    for label in copies:
        if label not in labels:
            known = sorted(set(labels))
            close = get_close_matches(label, known, n=1)
            fix = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}"
            raise RecipeError(f"oversample names a class {label!r} that no training image has", fix)
    rows = [row for row, label in enumerate(labels) for _ in range(copies.get(label, 1))]
    shown = ", ".join(f"{label} {times} times" for label, times in copies.items())
    log.info("oversampling: %s; an epoch shows %d of %d training images", shown, len(rows), len(labels))
    return rows
