"""Labels of the training rows become the order in which an epoch shows them: shuffled, weighted, or some repeated.

Only the loader of the training rows draws so; whatever fastai makes from it (get_preds, test_dl) sees each row once.
"""

import logging
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import pandas as pd
from fastai.data.core import TfmdDL

from fastcxr.errors import RecipeError
from fastcxr.recipe import Recipe

log = logging.getLogger("fastcxr")


class DrawnLoader(TfmdDL):
    """A loader that draws its rows with replacement, or shows some of them more than once.

    `weights`: one a row, how likely each draw takes it. `rows`: the positions that one epoch shows, before shuffling.
    The draws come from the loader's own generator in the main process, so they do not depend on the workers.
    """

    def __init__(self, dataset: Any = None, bs: int = 64, weights=None, rows=None, **options):
        self.weights, self.rows = weights, rows
        super().__init__(dataset, bs=bs, **(options | ({} if rows is None else {"n": len(rows)})))

    def get_idxs(self) -> list[int]:
        """Positions in the dataset, in the order of this epoch."""
        if self.weights is not None:
            return self.rng.choices(range(self.n), weights=self.weights, k=self.n)
        positions = super().get_idxs()
        return positions if self.rows is None else [self.rows[i] for i in positions]


def loader_options(labels: pd.Series, recipe: Recipe) -> dict[str, Any]:
    """What DataBlock.dataloaders takes beside the usual, for training rows with these labels in this order."""
    if recipe.class_weights == "balanced" and (recipe.sampler == "weighted" or recipe.oversample):
        log.warning("class weights and the drawing of images both favour rare classes: together they do so twice")
    if recipe.sampler == "weighted":
        # the reciprocal of the class counts: each class as a whole is equally likely
        return _only_train(weights=(1 / labels.map(labels.value_counts())).tolist())
    if recipe.oversample:
        return _only_train(rows=repeat_rows(labels.tolist(), recipe.copies))
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


def _only_train(**options) -> dict[str, Any]:
    return {"dl_type": DrawnLoader, "dl_kwargs": (options, {})}
