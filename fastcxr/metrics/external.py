"""Differences of the metrics between the internal and the external test set, with 95 % confidence intervals.

The sets are independent samples, so the interval of a difference follows from the two intervals (MOVER: Zou and Donner
2008, doi:10.1002/sim.3095); for two proportions this is Newcombe's method 10 (1998, Statistics in Medicine 17:873).
A metric that depends on a class without images in one of the sets is not compared. Means over findings are compared
if they are over the same findings in both sets.
"""

import math
from collections.abc import Mapping
from typing import Any

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.intervals import Estimate, flatten, make_estimate
from fastcxr.metrics.predictions import OUT_OF_FOLD, Predictions

MACRO_AUROC = "auroc.macro"
MEAN_METRICS = (MACRO_AUROC, "balanced_accuracy", "accuracy")
FINDING_MEANS = (MACRO_AUROC, "auroc.weighted", "average_precision.macro")


def external_drops(predictions: Predictions, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return `compute_drop` by name of the external test set; empty without an internal test set.

    `metrics`: of each split. In pooled runs, the column `fold` names the external test set of each run.
    """
    primary_split = predictions.primary_split
    if primary_split is None or INTERNAL_TEST not in predictions.splits:
        return {}
    if primary_split != OUT_OF_FOLD:
        names = sorted(set(predictions.for_split(primary_split).table["source"]))
        return {" + ".join(names): compute_drop(metrics[INTERNAL_TEST], metrics[primary_split])}
    fold_metrics = {name: evaluate_predictions(predictions.for_fold(name)) for name in predictions.folds}
    return {name: compute_drop(part[INTERNAL_TEST], part[primary_split]) for name, part in fold_metrics.items()}


def compute_drop(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the metrics of the internal and the external test set.

    Returns:
        classes: those with images in both sets. only: those with images in one set, by set. figures: by dotted name of
        the metric, `internal`, `external` and `drop` (internal minus external), each [value, low, high].
    """
    is_multi_label = "averaged" in internal["auroc"]
    count = "positives" if is_multi_label else "support"
    present_classes = [
        [label for label, row in part["per_class"].items() if row[count]] for part in (internal, external)
    ]
    shared_classes = [label for label in present_classes[0] if label in present_classes[1]]
    unshared_classes = {
        name: [label for label in labels if label not in shared_classes]
        for name, labels in zip(("internal", "external"), present_classes, strict=True)
    }
    names = [f"per_class.{label}.sensitivity" for label in shared_classes]
    if is_multi_label or not any(unshared_classes.values()):  # otherwise the negative images are of different classes
        has_equal_means = not is_multi_label or internal["auroc"]["averaged"] == external["auroc"]["averaged"]
        means = FINDING_MEANS if is_multi_label else MEAN_METRICS
        names = [*means * has_equal_means, *names, *(f"per_class.{label}.specificity" for label in shared_classes)]
        names += [f"auroc.per_class.{label}" for label in shared_classes]
    figures = {}
    flat_metrics = [(flatten(part), part["intervals"]["of"]) for part in (internal, external)]
    for name in names:
        first, second = (make_estimate(name, values, intervals) for values, intervals in flat_metrics)
        if first is not None and second is not None:
            figures[name] = {"internal": first, "external": second, "drop": difference_interval(first, second)}
    return {
        "classes": shared_classes,
        "only": {name: labels for name, labels in unshared_classes.items() if labels},
        "figures": figures,
    }


def difference_interval(first: Estimate, second: Estimate) -> Estimate:
    """Return the first minus the second of two independent estimates; no bounds if one of them has no interval."""
    value = first[0] - second[0]
    if None in (*first, *second):
        return [value, None, None]
    below = math.hypot(first[0] - first[1], second[2] - second[0])
    above = math.hypot(first[2] - first[0], second[0] - second[1])
    return [value, value - below, value + above]
