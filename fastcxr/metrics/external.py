"""From figures on test images of home and figures of elsewhere to how far they fall, each with a 95 % interval.

The two are independent samples, so the interval of a difference comes from the intervals of its two sides (MOVER: Zou
and Donner 2008, doi:10.1002/sim.3095); of two proportions that is Newcombe's method 10 (1998, Statistics in Medicine
17:873). A figure that means something else on either side, because a class has no image there, is not compared.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.intervals import flatten
from fastcxr.metrics.predictions import OUT_OF_FOLD, Predictions

MACRO_AUROC = "auroc.macro"
MEAN_METRICS = (MACRO_AUROC, "balanced_accuracy", "accuracy")
Estimate = list[float | None]


def external_drops(predictions: Predictions, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By the name of what was held out: `compute_drop` of it; nothing where there are no figures of home.

    `metrics`: of each split. Pooled runs name in a column `fold` what each of them held out.
    """
    if INTERNAL_TEST not in predictions.splits:
        return {}
    primary_split = predictions.primary_split
    if primary_split != OUT_OF_FOLD:
        names = sorted(set(predictions.for_split(primary_split).table["source"]))
        return {" + ".join(names): compute_drop(metrics[INTERNAL_TEST], metrics[primary_split])}
    fold_metrics = {name: evaluate_predictions(predictions.for_fold(name)) for name in predictions.folds}
    return {name: compute_drop(part[INTERNAL_TEST], part[primary_split]) for name, part in fold_metrics.items()}


def compute_drop(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, Any]:
    """`classes`: those with images on both sides; `only`: those with images on one side, by split; `figures`: by dotted
    name, `internal` and `external` as [value, low, high] and `drop`, internal less external, alike.
    """
    present_classes = [
        [label for label, row in part["per_class"].items() if row["support"]] for part in (internal, external)
    ]
    shared_classes = [label for label in present_classes[0] if label in present_classes[1]]
    unshared_classes = {
        name: [label for label in labels if label not in shared_classes]
        for name, labels in zip(("internal", "external"), present_classes, strict=True)
    }
    names = [f"per_class.{label}.sensitivity" for label in shared_classes]
    if not any(unshared_classes.values()):  # else the others, from which a class is told, are others
        names = [*MEAN_METRICS, *names, *(f"per_class.{label}.specificity" for label in shared_classes)]
        names += [f"auroc.per_class.{label}" for label in shared_classes]
    estimates = {
        name: _compare_estimates(_get_estimate(internal, name), _get_estimate(external, name)) for name in names
    }
    return {
        "classes": shared_classes,
        "only": {name: labels for name, labels in unshared_classes.items() if labels},
        "figures": {name: row for name, row in estimates.items() if row},
    }


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """One less the other, [value, low, high] each, of independent samples; without an interval on either side, none."""
    value = first[0] - second[0]
    if None in (*first, *second):
        return [value, None, None]
    below = math.hypot(first[0] - first[1], second[2] - second[0])
    above = math.hypot(first[2] - first[0], second[0] - second[1])
    return [value, value - below, value + above]


def _get_estimate(split_metrics: Mapping[str, Any], name: str) -> Estimate | None:
    value = flatten(split_metrics).get(name)
    low, high = split_metrics["intervals"]["of"].get(name, (None, None))
    return None if value is None else [value, low, high]


def _compare_estimates(internal: Estimate | None, external: Estimate | None) -> dict[str, Estimate] | None:
    if internal is None or external is None:
        return None
    return {"internal": internal, "external": external, "drop": difference_interval(internal, external)}
