"""Paired comparison of several models on the images that all of them scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.metrics.bootstrap import MetricDraws, bootstrap_metrics, find_n_draws
from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.metrics.intervals import SEED, Estimate, confidence_intervals, flatten, make_estimate, make_inputs
from fastcxr.metrics.predictions import TRUTH_PREFIX, Predictions
from fastcxr.metrics.scored_images import ScoredImages

TESTED_METRICS = {"auroc": "auroc.macro", "accuracy": "accuracy"}  # of the leaderboard, ranked by the first
TESTED_FINDING_METRICS = {"auroc": "auroc.macro", "average_precision": "average_precision.macro"}
SIGNIFICANCE_LEVEL = 0.05
LABELS_DIFFER_CODE = "E312"  # error code of models with different labels of the same images
IMAGE_KEY = ["source", "path"]
Tested = tuple[str, str, list[dict[str, Any]]]  # dotted name of a metric, its key, and the cells of each model with it


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Leaderboard of models and the images that they share.

    rows: one per model, the best first, with name, images, patients, and [value, low, high] of each metric of
    TESTED_METRICS. If the models share images, every row but the first compares the best model with its own:
    `auroc_difference` [difference, low, high], `auroc_p` (adjusted by Holm) and `auroc_tie`; likewise for accuracy.
    Models of findings have TESTED_FINDING_METRICS instead, and `findings`: for each finding `auroc` and the same tests
    of it, adjusted over all findings and pairs of models.
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
        DataError: the models have different classes, or an image has two labels, or a finding that is known to one
            model has another label or none in the data of the other.
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
    images = {
        name: replace(Predictions(part.table, tuple(sorted(part.labels))).to_arrays(), patients=patients[name])
        for name, part in predictions.items()
    }
    rows = [_make_row(name, part) for name, part in images.items()]
    rows.sort(key=lambda row: -(row["auroc"][0] if row["auroc"] else -1))
    if len(shared_images):
        _add_test_results(rows, images)
    return Comparison(
        rows=rows,
        n_shared_images=len(shared_images),
        n_patients=rows[0]["patients"] if len(shared_images) else 0,
        predictions=predictions,
    )


def _validate_classes(predictions: Mapping[str, Predictions]) -> None:
    (first, first_part), *other_models = predictions.items()
    for name, part in other_models:
        if (set(part.labels), part.is_multi_label) != (set(first_part.labels), first_part.is_multi_label):
            first_text, text = (
                f"the {'findings' if model.is_multi_label else 'classes'} {', '.join(sorted(model.labels))}"
                for model in (first_part, part)
            )
            problem = f"{first} has {first_text}, but {name} has {text}"
            raise DataError(problem, "Compare models with the same classes", code="E311")


def _select_images(model_predictions: Predictions, shared_images: pd.MultiIndex) -> Predictions:
    table = model_predictions.table.set_index(IMAGE_KEY, drop=False).loc[shared_images].reset_index(drop=True)
    return Predictions(table, model_predictions.labels)


def _validate_labels(predictions: Mapping[str, Predictions]) -> None:
    (first, first_part), *other_models = predictions.items()
    columns = [TRUTH_PREFIX + label for label in first_part.labels] if first_part.is_multi_label else ["label"]
    for name, part in other_models:
        tables = (first_part.table[columns], part.table[columns])
        is_same = (tables[0] == tables[1]).fillna(False) | (tables[0].isna() & tables[1].isna())
        is_different = ~is_same.astype(bool).all(axis=1)
        if is_different.any():
            path = first_part.table.loc[is_different, "path"].iloc[0]
            n_different = pluralize(int(is_different.sum()), "image")
            problem = f"{first} and {name} have different labels for {n_different}, first {path}"
            raise DataError(problem, "Train and test both models on the same labels", code=LABELS_DIFFER_CODE)


def _make_row(name: str, images: ScoredImages) -> dict[str, Any]:
    metrics = compute_image_metrics(images)
    intervals = confidence_intervals(images, metrics)["of"]
    values = flatten(metrics)
    row = {"name": name, "images": len(images.truth), "patients": len(set(images.patients))}
    row |= {key: make_estimate(metric, values, intervals) for key, metric in _list_tested_metrics(images).items()}
    if images.is_multi_label:
        estimates = {label: make_estimate(f"auroc.per_class.{label}", values, intervals) for label in images.labels}
        row["findings"] = {label: {"auroc": estimate} for label, estimate in estimates.items()}
    return row


def _list_tested_metrics(images: ScoredImages) -> dict[str, str]:
    return TESTED_FINDING_METRICS if images.is_multi_label else TESTED_METRICS


def _add_test_results(rows: list[dict[str, Any]], images: Mapping[str, ScoredImages]) -> None:
    """Compare every model with the best one in the same draws of patients; Holm's p covers all pairs of models.

    The tests of single findings are adjusted together, over all findings and pairs.
    """
    best, n_patients = images[rows[0]["name"]], rows[0]["patients"]
    n_draws = find_n_draws(n_patients) if best.is_multi_label else None
    draws = {name: bootstrap_metrics(make_inputs(part), best.patients, SEED, n_draws) for name, part in images.items()}
    families: list[list[Tested]] = [[(name, key, rows)] for key, name in _list_tested_metrics(best).items()]
    if best.is_multi_label:
        cells = {label: [row["findings"][label] for row in rows] for label in best.labels}
        families.append([(f"auroc.per_class.{label}", "auroc", of) for label, of in cells.items() if of[0]["auroc"]])
    for family in families:
        _test_family(family, [draws[row["name"]] for row in rows], n_patients)


def _test_family(family: Sequence[Tested], draws: Sequence[MetricDraws], n_patients: int) -> None:
    """Add the test results of these metrics, adjusted together; `draws`: of each model, the best one first."""
    pairs = list(combinations(range(len(draws)), 2))  # those with the best model first
    tests = [
        _compare_pair([cells[model][key] for model in pair], [draws[model][name] for model in pair], n_patients)
        for name, key, cells in family
        for pair in pairs
    ]
    # the best model is selected on the same data, hence the adjustment for every pair
    adjusted_p = holm([p for _, p in tests])
    for number, (_, key, cells) in enumerate(family):
        first = number * len(pairs)
        for cell, (difference, _), p in zip(cells[1:], tests[first:], adjusted_p[first:], strict=False):
            cell |= {f"{key}_difference": difference, f"{key}_p": p, f"{key}_tie": bool(p >= SIGNIFICANCE_LEVEL)}


def _compare_pair(
    estimates: Sequence[Estimate | None], draws: Sequence[np.ndarray], n_patients: int
) -> tuple[list[float], float]:
    """Return the difference of a metric as [value, low, high], and its two-sided p.

    A bootstrap of n patients underestimates the variance, and the variance is itself an estimate: hence n / (n - 1) and
    Student's distribution (Cameron and Miller 2015, for clusters). Without them, equal models with few patients differ
    significantly too often.
    """
    first, second = estimates
    difference = first[0] - second[0] if first and second else 0.0
    draw_differences = draws[0] - draws[1]
    draw_differences = draw_differences[np.isfinite(draw_differences)]
    standard_error = float(draw_differences.std(ddof=1)) if len(draw_differences) > 1 else 0.0
    if not standard_error:  # for example with one patient
        return [difference, difference, difference], float(difference == 0)
    standard_error *= (n_patients / (n_patients - 1)) ** 0.5
    margin = float(student.ppf(0.975, n_patients - 1)) * standard_error
    p = float(2 * student.sf(abs(difference) / standard_error, n_patients - 1))
    return [difference, difference - margin, difference + margin], p


def holm(values: list[float]) -> list[float]:
    """Return p values adjusted for multiple tests (Holm 1979)."""
    order = np.argsort(values)
    adjusted = np.array(values)[order] * np.arange(len(values), 0, -1)
    capped = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return capped[np.argsort(order)].tolist()
