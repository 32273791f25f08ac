"""From truth, probabilities and patients to a 95 % confidence interval of every figure, and the unit that it rests on.

Where each patient has one image: Wilson for a proportion, logit-DeLong for an AUROC (Newcombe at 0 or 1). Whatever has
no formula, and everything where a patient has several images, comes from draws of patients with replacement; at 0 or 1,
where all draws agree, patients stand for images in the formula.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastcxr.metrics.analytic_intervals import Interval, auroc_interval, logit_interval, newcombe, wilson
from fastcxr.metrics.bootstrap import N_DRAWS, bootstrap_metrics, draw_bootstrap_weights, is_in_top2

SEED = 0
UNBOUNDED_METRICS = ("calibration.log_loss", "calibration.brier")
MIN_PATIENTS = 2
MIN_DEFINED_DRAWS = N_DRAWS // 2  # that must define a figure


def confidence_intervals(
    truth: np.ndarray,
    probability: np.ndarray,
    labels: Sequence[str],
    patients: Sequence[str],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """`unit` (image or patient), `level`, and `of`: [low, high] under the dotted name of each figure.

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k). `metrics`: what `measure` says of them.
    A figure that is None, or undefined in half of the draws, has no interval.
    """
    patients = np.asarray(patients)
    names, patient_index = np.unique(patients, return_inverse=True)
    if len(names) < MIN_PATIENTS:
        return {"unit": "patient", "level": 0.95, "of": {}}
    is_clustered = len(names) < len(patients)
    values = flatten(metrics)
    intervals = {
        name: interval
        for name, draws in bootstrap_metrics(truth, probability, labels, patients, SEED).items()
        if (interval := _compute_bootstrap_interval(values.get(name), draws, name not in UNBOUNDED_METRICS)) is not None
    }
    analytic_intervals = _compute_analytic_intervals(
        truth, probability, labels, patient_index if is_clustered else None
    )
    analytic_intervals |= _compute_perfect_intervals(analytic_intervals, values, labels)
    for name, interval in analytic_intervals.items():
        is_extreme = values.get(name) in (0.0, 1.0)  # where all draws say the same
        if values.get(name) is not None and (not is_clustered or is_extreme):
            intervals[name] = interval
    ordered = {name: [float(edge) for edge in intervals[name]] for name in values if name in intervals}
    return {"unit": "patient" if is_clustered else "image", "level": 0.95, "of": ordered}


def proportion_interval(is_hit: np.ndarray, is_eligible: np.ndarray, patients: np.ndarray) -> Interval:
    """95 % interval of the share of `hits` among the images of `among`, at least one; both booleans, shape (n,)."""
    _, patient_index = np.unique(patients, return_inverse=True)
    is_clustered = patient_index.max() + 1 < len(patient_index)
    proportion = (is_hit & is_eligible).sum() / is_eligible.sum()
    if not is_clustered or proportion in (0, 1):
        return _compute_wilson_interval(is_hit, is_eligible, patient_index if is_clustered else None)
    with np.errstate(invalid="ignore"):
        draws = [
            (weights @ (is_hit & is_eligible)) / (weights @ is_eligible)
            for weights in draw_bootstrap_weights(patients, SEED)
        ]
    interval = _compute_bootstrap_interval(float(proportion), np.concatenate(draws), True)
    return interval or _compute_wilson_interval(is_hit, is_eligible, patient_index)


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers inside mappings, under their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _compute_bootstrap_interval(value: float | None, draws: np.ndarray, is_proportion: bool) -> Interval | None:
    """The draws' spread around a share, on the scale of log odds, which covers better; a loss has the draws' own."""
    draws = draws[np.isfinite(draws)]
    if value is None or len(draws) < MIN_DEFINED_DRAWS:
        return None
    if not is_proportion:
        return tuple(np.quantile(draws, [0.025, 0.975]))
    return logit_interval(value, float(draws.std(ddof=1))) if 0 < value < 1 else None


def _compute_analytic_intervals(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patient_index: np.ndarray | None
) -> dict[str, Interval]:
    """Return intervals by formula. `patient_index`: patient of each image; None: images are independent."""
    predicted = probability.argmax(axis=1)
    intervals = {"accuracy": _compute_wilson_interval(truth == predicted, np.ones(len(truth), bool), patient_index)}
    if len(labels) > 2:
        intervals["top2_accuracy"] = _compute_wilson_interval(
            is_in_top2(truth, probability), np.ones(len(truth), bool), patient_index
        )
    for k, label in enumerate(labels):
        positive, is_predicted = truth == k, predicted == k
        parts = {
            "sensitivity": (is_predicted, positive),
            "specificity": (~is_predicted, ~positive),
            "precision": (positive, is_predicted),
        }
        intervals |= {
            f"per_class.{label}.{name}": _compute_wilson_interval(*part, patient_index)
            for name, part in parts.items()
            if part[1].any()
        }
        if positive.any() and not positive.all():
            intervals[f"auroc.per_class.{label}"] = _compute_auroc_interval(positive, probability[:, k], patient_index)
    return intervals


def _compute_perfect_intervals(
    intervals: Mapping[str, Interval], values: Mapping[str, Any], labels: Sequence[str]
) -> dict[str, Interval]:
    """Means of perfect figures, of which draws know nothing: their parts' lower bounds all at once, a wide guess."""
    component_names = {
        "balanced_accuracy": [f"per_class.{label}.sensitivity" for label in labels],
        "auroc.macro": [f"auroc.per_class.{label}" for label in labels],
    }
    component_names |= {
        f"per_class.{label}.f1": [f"per_class.{label}.sensitivity", f"per_class.{label}.precision"] for label in labels
    }
    lower_bounds = {
        name: [intervals[part][0] for part in of if part in intervals] for name, of in component_names.items()
    }
    return {name: (float(np.mean(low)), 1.0) for name, low in lower_bounds.items() if low and values.get(name) == 1}


def _compute_wilson_interval(is_hit: np.ndarray, is_eligible: np.ndarray, patient_index: np.ndarray | None) -> Interval:
    n = is_eligible.sum() if patient_index is None else len(np.unique(patient_index[is_eligible]))
    return wilson(n * (is_hit & is_eligible).sum() / is_eligible.sum(), n)


def _compute_auroc_interval(positive: np.ndarray, score: np.ndarray, patient_index: np.ndarray | None) -> Interval:
    if patient_index is None:
        return auroc_interval(positive, score)
    # only asked for at 0 or 1, where no draw has anything to add
    is_perfect = score[positive].min() > score[~positive].max()
    return newcombe(
        float(is_perfect), len(np.unique(patient_index[positive])), len(np.unique(patient_index[~positive]))
    )
