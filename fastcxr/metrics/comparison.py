"""Paired comparison of several models on the images that all of them scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fastcxr.errors import DataError
from fastcxr.metrics.bootstrap import bootstrap_metrics
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import SEED, confidence_intervals, flatten, make_estimate
from fastcxr.metrics.predictions import Predictions

TESTED_METRICS = {"auroc": "auroc.macro", "accuracy": "accuracy"}  # of the leaderboard, ranked by the first
SIGNIFICANCE_LEVEL = 0.05
IMAGE_KEY = ["source", "path"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Leaderboard of models and the images that they share.

    rows: one per model, the best first, with name, images, patients, and [value, low, high] of each metric of
    TESTED_METRICS. If the models share images, every row but the first compares the best model with its own:
    `auroc_difference` [difference, low, high], `auroc_p` (adjusted by Holm) and `auroc_tie`; likewise for accuracy.
    """

    rows: list[dict[str, Any]]
    n_shared_images: int
    n_patients: int
    predictions: dict[str, Predictions]  # the compared rows, by name of the model


def compare_models(models: Mapping[str, Predictions]) -> Comparison:
    """Compare models on the primary split of each, by name.

    Images are identified by source and path. On shared images, differences are tested with a paired bootstrap over
    patients; without shared images there is no test.

    Raises:
        DataError: the models have different classes, or an image has two labels.
    """
    predictions = {name: model.for_split(model.primary_split).scorable() for name, model in models.items()}
    _validate_classes(predictions)
    keys = [pd.MultiIndex.from_frame(part.table[IMAGE_KEY]) for part in predictions.values()]
    shared_images = reduce(pd.MultiIndex.intersection, keys).sort_values()
    if len(shared_images):
        predictions = {name: _select_images(part, shared_images) for name, part in predictions.items()}
        _validate_labels(predictions)
    first = next(iter(predictions.values()))  # its patient identifiers apply to the shared images of all models
    patients = {
        name: (first if len(shared_images) else part).table["patient"].to_numpy() for name, part in predictions.items()
    }
    aligned = {name: Predictions(part.table, tuple(sorted(part.labels))) for name, part in predictions.items()}
    rows = [_make_row(name, part, patients[name]) for name, part in aligned.items()]
    rows.sort(key=lambda row: -(row["auroc"][0] if row["auroc"] else -1))
    if len(shared_images):
        _add_test_results(rows, aligned, patients[rows[0]["name"]])
    return Comparison(
        rows=rows,
        n_shared_images=len(shared_images),
        n_patients=rows[0]["patients"] if len(shared_images) else 0,
        predictions=predictions,
    )


def _validate_classes(predictions: Mapping[str, Predictions]) -> None:
    (first, first_labels), *other_models = [(name, set(part.labels)) for name, part in predictions.items()]
    for name, labels in other_models:
        if labels != first_labels:
            first_names, names = (", ".join(sorted(part)) for part in (first_labels, labels))
            problem = f"{first} has the classes {first_names}, but {name} has {names}"
            raise DataError(problem, "Compare models with the same classes", code="E311")


def _select_images(model_predictions: Predictions, shared_images: pd.MultiIndex) -> Predictions:
    table = model_predictions.table.set_index(IMAGE_KEY, drop=False).loc[shared_images].reset_index(drop=True)
    return Predictions(table, model_predictions.labels)


def _validate_labels(predictions: Mapping[str, Predictions]) -> None:
    (first, first_table), *other_models = [(name, part.table) for name, part in predictions.items()]
    for name, table in other_models:
        is_different = first_table["label"] != table["label"]
        if is_different.any():
            path = first_table.loc[is_different, "path"].iloc[0]
            problem = f"{first} and {name} have different labels for {int(is_different.sum()):,} images, first {path}"
            raise DataError(problem, "Train and test both models on the same labels", code="E312")


def _make_row(name: str, part: Predictions, patients: np.ndarray) -> dict[str, Any]:
    metrics = compute_metrics(part.class_index, part.probability, part.labels)
    intervals = confidence_intervals(part.class_index, part.probability, part.labels, patients, metrics)["of"]
    values = flatten(metrics)
    estimates = {key: make_estimate(metric, values, intervals) for key, metric in TESTED_METRICS.items()}
    return {"name": name, "images": len(part.table), "patients": len(set(patients)), **estimates}


def _add_test_results(rows: list[dict[str, Any]], predictions: Mapping[str, Predictions], patients: np.ndarray) -> None:
    """Compare every model with the best one in the same draws of patients; Holm's p covers all pairs of models."""
    draws = {
        name: bootstrap_metrics(part.class_index, part.probability, part.labels, patients, SEED)
        for name, part in predictions.items()
    }
    pairs = list(combinations(rows, 2))  # those with the best model first
    for key, name in TESTED_METRICS.items():
        tests = [_compare_pair(*pair, key, [draws[row["name"]][name] for row in pair]) for pair in pairs]
        # the best model is selected on the same data, hence the adjustment for every pair
        adjusted_p = holm([p for _, p in tests])
        for row, (difference, _), p in zip(rows[1:], tests, adjusted_p, strict=False):
            row |= {f"{key}_difference": difference, f"{key}_p": p, f"{key}_tie": bool(p >= SIGNIFICANCE_LEVEL)}


def _compare_pair(
    first: dict[str, Any], second: dict[str, Any], key: str, draws: Sequence[np.ndarray]
) -> tuple[list[float], float]:
    """Return the difference of a metric as [value, low, high], and its two-sided p.

    A bootstrap of n patients underestimates the variance, and the variance is itself an estimate: hence n / (n - 1) and
    Student's distribution (Cameron and Miller 2015, for clusters). Without them, equal models with few patients differ
    significantly too often.
    """
    difference = first[key][0] - second[key][0] if first[key] and second[key] else 0.0
    draw_differences = draws[0] - draws[1]
    draw_differences = draw_differences[np.isfinite(draw_differences)]
    standard_error = float(draw_differences.std(ddof=1)) if len(draw_differences) > 1 else 0.0
    if not standard_error:  # for example with one patient
        return [difference, difference, difference], float(difference == 0)
    n = second["patients"]
    standard_error *= (n / (n - 1)) ** 0.5
    margin = float(student.ppf(0.975, n - 1)) * standard_error
    p = float(2 * student.sf(abs(difference) / standard_error, n - 1))
    return [difference, difference - margin, difference + margin], p


def holm(values: list[float]) -> list[float]:
    """Return p values adjusted for multiple tests (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.array(values)[order] * np.arange(len(values), 0, -1)
    capped = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return capped[np.argsort(order)].tolist()
