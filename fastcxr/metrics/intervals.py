"""95 % confidence intervals of all metrics, clustered by patient.

If every patient has one image: Wilson for a proportion, logit-DeLong for an AUROC (Newcombe at 0 or 1). Metrics without
a formula, and all metrics if patients have several images, use a bootstrap over patients. At 0 or 1, where all draws
are equal, the formula is used with the number of patients as the number of images. Above MAX_BOOTSTRAP_PATIENTS
patients, AUROCs use a formula for clusters (clustered_auroc), and the bootstrap has fewer draws.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastcxr.metrics.analytic_intervals import Interval, auroc_interval, logit_interval, newcombe, wilson
from fastcxr.metrics.bootstrap import (
    MAX_BOOTSTRAP_PATIENTS,
    DrawnMetrics,
    MetricInputs,
    bootstrap_metrics,
    draw_bootstrap_weights,
    find_n_draws,
    is_in_top2,
)
from fastcxr.metrics.clustered_auroc import compute_clustered_auroc_intervals
from fastcxr.metrics.findings import FindingInputs, find_chexpert_findings
from fastcxr.metrics.scored_images import ScoredImages

SEED = 0
UNBOUNDED_METRICS = ("calibration.log_loss", "calibration.brier")
MIN_PATIENTS = 2
MIN_DEFINED_SHARE = 0.5  # of the draws in which a metric must be defined
Estimate = list[Any]  # [value, low, high] of metrics.json; low and high are None without an interval


def confidence_intervals(
    images: ScoredImages, metrics: Mapping[str, Any], n_patients: int | None = None, *, with_rankings: bool = True
) -> dict[str, Any]:
    """Return `unit` (image or patient), `level`, and `of`: [low, high] by dotted name of the metric.

    A metric that is None, or undefined in half of the draws, has no interval. Findings, and classes above
    MAX_BOOTSTRAP_PATIENTS patients, have in addition `method`, a text, and `n_draws`.

    Args:
        images: the images.
        metrics: those of `compute_image_metrics`.
        n_patients: number of patients that decides the method, for example that of the whole split for a subgroup;
            default: those of the images.
        with_rankings: False draws no rankings above MAX_BOOTSTRAP_PATIENTS patients, which take most of the time: there
            is no interval of an average precision then, and those of AUROCs are by formula.
    """
    names, patient_index = np.unique(images.patients, return_inverse=True)
    is_clustered, n_patients = len(names) < len(images.patients), n_patients or len(names)
    is_large, n_draws = n_patients > MAX_BOOTSTRAP_PATIENTS, find_n_draws(n_patients)
    method: dict[str, Any] = {}
    if images.is_multi_label or is_large:
        unit = "finding" if images.is_multi_label else "class"
        method = {"method": describe_method(n_patients, is_clustered, unit), "n_draws": n_draws}
    if len(names) < MIN_PATIENTS:
        return {"unit": "patient", "level": 0.95, **method, "of": {}}
    values = flatten(metrics)
    inputs = make_inputs(images, with_rankings=with_rankings or not is_large)
    intervals = {
        name: interval
        for name, draws in bootstrap_metrics(inputs, images.patients, SEED, n_draws).items()
        if (interval := _compute_bootstrap_interval(values.get(name), draws, name not in UNBOUNDED_METRICS)) is not None
    }
    analytic = _compute_analytic_intervals(images, patient_index if is_clustered else None)
    analytic |= _compute_perfect_intervals(analytic, values, images.labels)
    if values.get("hamming_loss") in (0.0, 1.0):  # the labels of a patient count as one
        analytic["hamming_loss"] = wilson(len(names) * values["hamming_loss"], len(names))
    for name, interval in analytic.items():
        if values.get(name) is not None and (not is_clustered or values[name] in (0.0, 1.0)):
            intervals[name] = interval
    if is_large:
        intervals |= compute_clustered_auroc_intervals(images, patient_index, find_chexpert_findings(images.labels))
    ordered = {name: [float(edge) for edge in intervals[name]] for name in values if name in intervals}
    return {"unit": "patient" if is_clustered else "image", "level": 0.95, **method, "of": ordered}


def make_inputs(images: ScoredImages, *, with_rankings: bool = True) -> DrawnMetrics:
    """Return the inputs of `bootstrap_metrics`, without AUROC and average precision unless `with_rankings`."""
    if images.is_multi_label:
        return FindingInputs.of(images, with_rankings=with_rankings)
    return MetricInputs.of(images.truth, images.probability, images.labels, with_rankings=with_rankings)


def describe_method(n_patients: int, is_clustered: bool, unit: str = "finding") -> str:
    """Return how the intervals are computed.

    `is_clustered`: whether patients have several images. `unit`: what a label is, finding or class.
    """
    draws = f"bootstrap over patients, {find_n_draws(n_patients):,} draws"
    if n_patients > MAX_BOOTSTRAP_PATIENTS:
        auroc = "AUROC: by formula, clustered by patient (Obuchowski 1997)"
    elif is_clustered:
        return draws
    else:
        auroc = f"AUROC of a {unit}: by formula (DeLong 1988)"
    proportions = "" if is_clustered else "; proportions: by formula (Wilson 1927)"
    return f"{auroc}{proportions}; other metrics: {draws}"


def estimate_proportions(
    proportions: Sequence[tuple[np.ndarray, np.ndarray]], patients: np.ndarray, n_draws: int | None = None
) -> list[Estimate | None]:
    """Return the share of hits among the eligible images, as [value, low, high]; None without an eligible image.

    All proportions are computed from the same bootstrap draws.

    Args:
        proportions: hits and eligible images of each proportion, booleans of shape (n,).
        patients: the patient of each image, shape (n,).
        n_draws: number of bootstrap draws; default N_DRAWS.
    """
    _, patient_index = np.unique(patients, return_inverse=True)
    is_clustered = len(patients) > 0 and patient_index.max() + 1 < len(patients)
    draws = _draw_proportions(proportions, patients, n_draws) if is_clustered else [None] * len(proportions)
    estimates: list[Estimate | None] = []
    for (is_hit, is_eligible), column in zip(proportions, draws, strict=True):
        if not is_eligible.any():
            estimates.append(None)
            continue
        value = float((is_hit & is_eligible).sum() / is_eligible.sum())
        interval = None if column is None else _compute_bootstrap_interval(value, column, True)
        wilson_index = patient_index if is_clustered else None
        estimates.append([value, *(interval or _compute_wilson_interval(is_hit, is_eligible, wilson_index))])
    return estimates


def _draw_proportions(
    proportions: Sequence[tuple[np.ndarray, np.ndarray]], patients: np.ndarray, n_draws: int | None
) -> list[np.ndarray]:
    """Return each proportion in every draw, shape (n_draws,); NaN in a draw without an eligible image."""
    if not proportions:
        return []
    hits, eligible = (np.stack(columns, axis=1).astype(float) for columns in zip(*proportions, strict=True))
    with np.errstate(invalid="ignore"):
        batches = [
            (weights @ (hits * eligible)) / (weights @ eligible)
            for weights in draw_bootstrap_weights(patients, SEED, n_draws)
        ]
    return list(np.concatenate(batches).T)


def make_estimate(name: str, values: Mapping[str, Any], intervals: Mapping[str, Sequence[float]]) -> Estimate | None:
    """Return [value, low, high] of a metric by its dotted name; None if it has no value."""
    return None if values.get(name) is None else [values[name], *intervals.get(name, (None, None))]


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the numbers and None values inside nested mappings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _compute_bootstrap_interval(value: float | None, draws: np.ndarray, is_proportion: bool) -> Interval | None:
    """Return the interval of a proportion from the standard error of its draws, or of a loss from their percentiles.

    For proportions, the standard error on the logit scale has better coverage than percentiles.
    """
    n_draws, draws = len(draws), draws[np.isfinite(draws)]
    if value is None or len(draws) < MIN_DEFINED_SHARE * n_draws:
        return None
    if not is_proportion:
        low, high = np.quantile(draws, [0.025, 0.975])
        return low, high
    return logit_interval(value, float(draws.std(ddof=1))) if 0 < value < 1 else None


def _compute_analytic_intervals(images: ScoredImages, patient_index: np.ndarray | None) -> dict[str, Interval]:
    """Return intervals by formula. `patient_index`: patient of each image; None: images are independent."""
    proportions, intervals = _list_image_proportions(images), {}
    for k, label in enumerate(images.labels):
        known, positive, is_predicted = images.known[:, k], images.positive[:, k], images.predicted[:, k]
        negative = known & ~positive
        proportions[f"per_class.{label}.sensitivity"] = (is_predicted, positive)
        proportions[f"per_class.{label}.specificity"] = (~is_predicted, negative)
        if images.is_multi_label:
            proportions[f"per_class.{label}.ppv"] = (positive, known & is_predicted)
            proportions[f"per_class.{label}.npv"] = (negative, known & ~is_predicted)
        else:
            proportions[f"per_class.{label}.precision"] = (positive, is_predicted)
        if positive.any() and negative.any():
            known_index = None if patient_index is None else patient_index[known]
            score = images.probability[known, k]
            intervals[f"auroc.per_class.{label}"] = _compute_auroc_interval(positive[known], score, known_index)
    return intervals | {
        name: _compute_wilson_interval(is_hit, is_eligible, patient_index)
        for name, (is_hit, is_eligible) in proportions.items()
        if is_eligible.any()
    }


def _list_image_proportions(images: ScoredImages) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return hits and eligible images of the metrics that are a share of all images."""
    is_any = np.ones(len(images.truth), bool)
    if images.is_multi_label:
        return {"exact_match": (~((images.predicted != images.positive) & images.known).any(axis=1), is_any)}
    proportions = {"accuracy": (images.truth == images.probability.argmax(axis=1), is_any)}
    if len(images.labels) > 2:
        proportions["top2_accuracy"] = (is_in_top2(images.truth, images.probability), is_any)
    return proportions


def _compute_perfect_intervals(
    intervals: Mapping[str, Interval], values: Mapping[str, Any], labels: Sequence[str]
) -> dict[str, Interval]:
    """Return conservative intervals of means that equal 1: from the mean lower bound of their components to 1."""
    aurocs = [f"auroc.per_class.{label}" for label in labels]
    components = {"balanced_accuracy": [f"per_class.{label}.sensitivity" for label in labels]}
    components |= dict.fromkeys(("auroc.macro", "auroc.weighted", "auroc.chexpert5"), aurocs)
    for label in labels:
        components[f"per_class.{label}.f1"] = [
            f"per_class.{label}.{name}" for name in ("sensitivity", "precision", "ppv")
        ]
    lows = {name: [intervals[part][0] for part in of if part in intervals] for name, of in components.items()}
    return {name: (float(np.mean(low)), 1.0) for name, low in lows.items() if low and values.get(name) == 1}


def _compute_wilson_interval(is_hit: np.ndarray, is_eligible: np.ndarray, patient_index: np.ndarray | None) -> Interval:
    n = is_eligible.sum() if patient_index is None else len(np.unique(patient_index[is_eligible]))
    return wilson(n * (is_hit & is_eligible).sum() / is_eligible.sum(), n)


def _compute_auroc_interval(positive: np.ndarray, score: np.ndarray, patient_index: np.ndarray | None) -> Interval:
    if patient_index is None:
        return auroc_interval(positive, score)
    # used only at 0 or 1; see `confidence_intervals`
    is_perfect = score[positive].min() > score[~positive].max()
    n_positives, n_negatives = (len(np.unique(patient_index[part])) for part in (positive, ~positive))
    return newcombe(float(is_perfect), n_positives, n_negatives)
