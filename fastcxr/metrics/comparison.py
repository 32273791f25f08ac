"""Several models on the same images: who is better, by how much, and whether that is more than luck."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fastcxr.errors import DataError
from fastcxr.metrics.bootstrap import bootstrap_metrics
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import SEED, confidence_intervals
from fastcxr.metrics.predictions import Predictions

TESTED_METRICS = {"auroc": "auroc.macro", "accuracy": "accuracy"}  # a leaderboard's figures, the first of which ranks
SIGNIFICANCE_LEVEL = 0.05
IMAGE_KEY = ["source", "path"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`rows`: one a model, the best first. `shared`: images that all were scored on, 0 where there are none.

    A row has name, images, patients, and for each figure of TESTED [value, low, high]; on shared images also how far
    it is behind the best, as `auroc_difference` [difference, low, high], `auroc_p` (Holm) and `auroc_tie`.
    """

    rows: list[dict[str, Any]]
    n_shared_images: int
    n_patients: int
    predictions: dict[str, Predictions]  # what was compared, by name


def compare_models(models: Mapping[str, Predictions]) -> Comparison:
    """Compare models by what each said about the images of its headline split.

    Images are known by source and path. On those that all models scored differences are tested, patients drawn with
    replacement; where no image is shared there is nothing to test. Raises DataError for models of different classes,
    or an image with two labels.
    """
    predictions = {name: model.for_split(model.primary_split).scorable() for name, model in models.items()}
    _validate_classes(predictions)
    shared_images = _find_shared_images(predictions)
    if len(shared_images):
        predictions = {name: _select_images(part, shared_images) for name, part in predictions.items()}
        _validate_labels(predictions)
    patients = {name: part.table["patient"].to_numpy() for name, part in predictions.items()}
    first_patients = next(iter(patients.values()))  # on shared images one word on who is who, for all
    rows = [
        _make_row(name, part, first_patients if len(shared_images) else patients[name])
        for name, part in predictions.items()
    ]
    rows.sort(key=lambda row: -(row["auroc"][0] if row["auroc"] else -1))
    if len(shared_images):
        _add_test_results(rows, predictions, first_patients)
    return Comparison(
        rows=rows,
        n_shared_images=len(shared_images),
        n_patients=len(set(first_patients)) if len(shared_images) else 0,
        predictions=predictions,
    )


def _validate_classes(predictions: Mapping[str, Predictions]) -> None:
    (first, first_labels), *other_models = [(name, set(part.labels)) for name, part in predictions.items()]
    for name, labels in other_models:
        if labels != first_labels:
            what = f"{first} has the classes {', '.join(sorted(first_labels))}, {name} {', '.join(sorted(labels))}"
            raise DataError(what, "Compare models of the same classes", code="E311")


def _find_shared_images(predictions: Mapping[str, Predictions]) -> pd.MultiIndex:
    keys = [pd.MultiIndex.from_frame(part.table[IMAGE_KEY]) for part in predictions.values()]
    shared_images = keys[0]
    for key in keys[1:]:
        shared_images = shared_images.intersection(key)
    return shared_images.sort_values()


def _select_images(model_predictions: Predictions, shared_images: pd.MultiIndex) -> Predictions:
    table = model_predictions.table.set_index(IMAGE_KEY, drop=False).loc[shared_images].reset_index(drop=True)
    return Predictions(table, model_predictions.labels)


def _validate_labels(predictions: Mapping[str, Predictions]) -> None:
    (first, first_table), *other_models = [(name, part.table) for name, part in predictions.items()]
    for name, table in other_models:
        is_different = first_table["label"] != table["label"]
        if is_different.any():
            path = first_table.loc[is_different, "path"].iloc[0]
            what = f"{first} and {name} give {int(is_different.sum()):,} images different labels, as {path}"
            raise DataError(what, "Train and test both on the same labels", code="E312")


def _align_classes(model_predictions: Predictions, labels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities in one order of the classes."""
    ordered = Predictions(model_predictions.table, labels)
    return ordered.truth, ordered.probability


def _make_row(name: str, model_predictions: Predictions, patients: np.ndarray) -> dict[str, Any]:
    labels = tuple(sorted(model_predictions.labels))
    truth, probability = _align_classes(model_predictions, labels)
    metrics = compute_metrics(truth, probability, labels)
    intervals = confidence_intervals(truth, probability, labels, patients, metrics)["of"]
    values = {"auroc": metrics["auroc"]["macro"], "accuracy": metrics["accuracy"]}
    cells = {
        key: None if value is None else [value, *intervals.get(TESTED_METRICS[key], (None, None))]
        for key, value in values.items()
    }
    return {"name": name, "images": len(truth), "patients": len(set(patients)), **cells}


def _add_test_results(rows: list[dict[str, Any]], predictions: Mapping[str, Predictions], patients: np.ndarray) -> None:
    """Every model against the best one, in the same draws of patients; Holm's p is that of all pairs of models."""
    draws = {}
    for row in rows:
        labels = tuple(sorted(predictions[row["name"]].labels))
        draws[row["name"]] = bootstrap_metrics(
            *_align_classes(predictions[row["name"]], labels), labels, patients, SEED
        )
    pairs = list(combinations(rows, 2))  # first those of the best one
    for key, name in TESTED_METRICS.items():
        tests = [_compare_with_best(one, other, key, draws, name) for one, other in pairs]
        # which one is the best was looked up before it was compared: every pair counts as tried
        adjusted_p = holm([p for _, p in tests])
        for row, (difference, _), p in zip(rows[1:], tests, adjusted_p, strict=False):
            row |= {f"{key}_difference": difference, f"{key}_p": p, f"{key}_tie": bool(p >= SIGNIFICANCE_LEVEL)}


def _compare_with_best(
    best: dict[str, Any], row: dict[str, Any], key: str, draws: dict, name: str
) -> tuple[list[float], float]:
    """How far a figure is behind, with its 95 % interval, and how likely so large a difference is by luck.

    Draws of n patients spread a little less than patients do, and how much they spread is itself an estimate: hence
    n / (n - 1) and Student's distribution (Cameron and Miller 2015, for clusters). Without them equal models of few
    patients are told apart too often.
    """
    difference = best[key][0] - row[key][0] if best[key] and row[key] else 0.0
    draw_differences = draws[best["name"]][name] - draws[row["name"]][name]
    draw_differences = draw_differences[np.isfinite(draw_differences)]
    standard_error = float(draw_differences.std(ddof=1)) if len(draw_differences) > 1 else 0.0
    if not standard_error:  # as of one patient alone
        return [difference, difference, difference], float(difference == 0)
    n = row["patients"]
    standard_error *= (n / (n - 1)) ** 0.5
    margin = float(student.ppf(0.975, n - 1)) * standard_error
    return [difference, difference - margin, difference + margin], float(
        2 * student.sf(abs(difference) / standard_error, n - 1)
    )


def holm(values: list[float]) -> list[float]:
    """Values of p for several questions at once (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.array(values)[order] * np.arange(len(values), 0, -1)
    capped = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return capped[np.argsort(order)].tolist()
