"""From figures on test images of home and figures of elsewhere to how far they fall, each with a 95 % interval.

The two are independent samples, so the interval of a difference comes from the intervals of its two sides (MOVER: Zou
and Donner 2008, doi:10.1002/sim.3095); of two proportions that is Newcombe's method 10 (1998, Statistics in Medicine
17:873). A figure that means something else on either side, because a class has no image there, is not compared.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastcxr.metrics.evaluate import measure_predictions
from fastcxr.metrics.intervals import flatten
from fastcxr.metrics.predictions import INTERNAL, OUT_OF_FOLD, Predictions

RANK = "auroc.macro"
MEANS = (RANK, "balanced_accuracy", "accuracy")
WORRYING = 0.10  # of AUROC, or of a class's sensitivity
Figure = list[float | None]


def find_drops(predictions: Predictions, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the name of what was held out: `measure_drop` of it; nothing where there are no figures of home.

    `metrics`: of each split. Pooled runs name in a column `fold` what each of them held out.
    """
    if INTERNAL not in predictions.splits:
        return {}
    outside = predictions.headline_split
    if outside != OUT_OF_FOLD:
        names = sorted(set(predictions.part(outside).table["source"]))
        return {" + ".join(names): measure_drop(metrics[INTERNAL], metrics[outside])}
    parts = {name: measure_predictions(predictions.of_fold(name)) for name in predictions.folds}
    return {name: measure_drop(part[INTERNAL], part[outside]) for name, part in parts.items()}


def measure_drop(inside: Mapping[str, Any], outside: Mapping[str, Any]) -> dict[str, Any]:
    """`classes`: those with images on both sides; `only`: those with images on one side, by split; `figures`: by dotted
    name, `internal` and `external` as [value, low, high] and `drop`, internal less external, alike.
    """
    there = [[label for label, row in part["per_class"].items() if row["support"]] for part in (inside, outside)]
    both = [label for label in there[0] if label in there[1]]
    only = {
        name: [label for label in labels if label not in both]
        for name, labels in zip(("internal", "external"), there, strict=True)
    }
    names = [f"per_class.{label}.sensitivity" for label in both]
    if not any(only.values()):  # else the others, from which a class is told, are others
        names = [*MEANS, *names, *(f"per_class.{label}.specificity" for label in both)]
        names += [f"auroc.per_class.{label}" for label in both]
    figures = {name: _compare(_figure(inside, name), _figure(outside, name)) for name in names}
    return {
        "classes": both,
        "only": {name: labels for name, labels in only.items() if labels},
        "figures": {name: row for name, row in figures.items() if row},
    }


def differ(one: Figure, other: Figure) -> Figure:
    """One less the other, [value, low, high] each, of independent samples; without an interval on either side, none."""
    value = one[0] - other[0]
    if None in (*one, *other):
        return [value, None, None]
    below = math.hypot(one[0] - one[1], other[2] - other[0])
    above = math.hypot(one[2] - one[0], other[0] - other[1])
    return [value, value - below, value + above]


def _figure(part: Mapping[str, Any], name: str) -> Figure | None:
    value = flatten(part).get(name)
    low, high = part["intervals"]["of"].get(name, (None, None))
    return None if value is None else [value, low, high]


def _compare(inside: Figure | None, outside: Figure | None) -> dict[str, Figure] | None:
    if inside is None or outside is None:
        return None
    return {"internal": inside, "external": outside, "drop": differ(inside, outside)}
