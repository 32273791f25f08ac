"""Decision thresholds of each class and an abstention threshold, both chosen on the validation split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.metrics.bootstrap import find_n_draws
from fastcxr.metrics.intervals import estimate_proportions
from fastcxr.metrics.predictions import (
    IN_DISTRIBUTION_COLUMN,
    Predictions,
    find_ood_rows,
)
from fastcxr.metrics.scored_images import ScoredImages

MIN_STABLE_POSITIVES = 50  # positive validation images below which a threshold is unstable
NET_BENEFIT_THRESHOLDS = np.linspace(0.01, 0.5, 50)  # threshold probabilities of decision curves


def fit_thresholds(
    predictions: Predictions, sensitivity: float, specificity: float | None, abstain: float
) -> dict[str, Any]:
    """Choose the one-vs-rest `thresholds` and `uncertain_below`, the confidence for abstention or None (for findings).

    Args:
        predictions: only their validation split is used.
        sensitivity: target; the highest threshold that reaches it is chosen.
        specificity: target used instead if it is not None; the lowest threshold that reaches it is chosen.
        abstain: share of validation images on which the model abstains.
    """
    valid_predictions = predictions.for_split("valid").scorable()
    images = valid_predictions.to_arrays()
    thresholds = {
        label: threshold
        for k, label in enumerate(predictions.labels)
        if (threshold := _choose_threshold(*_select_known(images, k), sensitivity, specificity))
    }
    confidence = images.probability.max(axis=1)
    has_abstention = abstain and len(confidence) and not predictions.is_multi_label
    uncertain_below = float(np.quantile(confidence, abstain)) if has_abstention else None
    return {"thresholds": thresholds, "uncertain_below": uncertain_below}


def _select_known(images: ScoredImages, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and probability of a class or finding, of the images whose label is known."""
    return images.positive[images.known[:, k], k], images.probability[images.known[:, k], k]


def _choose_threshold(
    positive: np.ndarray, score: np.ndarray, sensitivity: float, specificity: float | None
) -> dict[str, Any] | None:
    if positive.all() or not positive.any():
        return None
    if specificity is None:
        target, threshold = {"sensitivity": sensitivity}, find_threshold_at_sensitivity(score[positive], sensitivity)
    else:
        target, threshold = {"specificity": specificity}, find_threshold_at_specificity(score[~positive], specificity)
    return {
        "threshold": threshold,
        "wanted": target,
        "positives": int(positive.sum()),
        "unstable": bool(positive.sum() < MIN_STABLE_POSITIVES),
    }


def find_threshold_at_sensitivity(positives: np.ndarray, target_share: float) -> float:
    """Return the highest threshold that the target share of these scores reaches."""
    sorted_scores = np.sort(positives)[::-1]
    return float(sorted_scores[max(1, int(np.ceil(target_share * len(sorted_scores) - 1e-9))) - 1])


def find_threshold_at_specificity(negatives: np.ndarray, target_share: float) -> float:
    """Return the lowest threshold that is above the target share of these scores."""
    return float(np.nextafter(-find_threshold_at_sensitivity(-negatives, target_share), 2.0))


def evaluate_thresholds(
    split_predictions: Predictions, thresholds: Mapping[str, Any], prevalence: Mapping[str, float]
) -> dict[str, Any]:
    """Evaluate the thresholds on a split.

    Returns:
        per_class: sensitivity, specificity, and ppv and npv if the prevalence of the class is given. uncertain: share
        of abstentions. answered_accuracy: accuracy on the other images; both not for findings. All are
        [value, low, high].
    """
    images = split_predictions.scorable().to_arrays()
    truth, probability = images.truth, images.probability
    if not len(truth):
        return {"per_class": {}}
    given, uncertain_below = thresholds.get("thresholds", {}), thresholds.get("uncertain_below")
    labels = [label for label in split_predictions.labels if label in given]
    proportions: dict[Any, tuple[np.ndarray, np.ndarray]] = {}  # hits and eligible images
    for label in labels:
        k = split_predictions.labels.index(label)
        is_predicted = probability[:, k] >= given[label]["threshold"]
        proportions[label, "sensitivity"] = (is_predicted, images.positive[:, k])
        proportions[label, "specificity"] = (~is_predicted, images.negative[:, k])
    if uncertain_below is not None and not images.is_multi_label:
        is_answered, is_any = probability.max(axis=1) >= uncertain_below, np.ones(len(truth), bool)
        proportions["uncertain"] = (~is_answered, is_any)
        proportions["answered_accuracy"] = (probability.argmax(axis=1) == truth, is_answered)
    values = estimate_proportions(
        list(proportions.values()), images.patients, find_n_draws(split_predictions.table["patient"].nunique())
    )
    estimates = dict(zip(proportions, values, strict=True))
    rows = {}
    for label in labels:
        row = {name: estimates.pop((label, name)) for name in ("sensitivity", "specificity")}
        rows[label] = dict(given[label]) | row | compute_predictive_values(row, prevalence.get(label))
    return {"per_class": rows} | estimates


def compute_predictive_values(row: Mapping[str, Any], prevalence: float | None) -> dict[str, Any]:
    """Return PPV and NPV at this prevalence by Bayes' theorem, each [value, low, high]; empty without a prevalence.

    The bounds combine the bounds of sensitivity and specificity, so the intervals are conservative.
    """
    if prevalence is None or None in (row["sensitivity"], row["specificity"]):
        return {}
    pairs = list(zip(row["sensitivity"], row["specificity"], strict=True))
    return {
        "prevalence": prevalence,
        "ppv": [_divide(sens * prevalence, (1 - spec) * (1 - prevalence)) for sens, spec in pairs],
        "npv": [_divide(spec * (1 - prevalence), (1 - sens) * prevalence) for sens, spec in pairs],
    }


def _divide(n_correct: float, n_wrong: float) -> float | None:
    return n_correct / (n_correct + n_wrong) if n_correct + n_wrong else None


def net_benefit(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the net benefit of the score and of treating all at each of NET_BENEFIT_THRESHOLDS (Vickers 2006).

    Net benefit is the share of true positives minus the share of false positives times the odds of the threshold.
    """
    odds = NET_BENEFIT_THRESHOLDS / (1 - NET_BENEFIT_THRESHOLDS)
    is_predicted = score[:, None] >= NET_BENEFIT_THRESHOLDS
    true_positives, false_positives = ((is_predicted & part[:, None]).mean(axis=0) for part in (positive, ~positive))
    return true_positives - false_positives * odds, positive.mean() - (1 - positive.mean()) * odds


def compute_ood_rate(split_predictions: Predictions) -> dict[str, Any]:
    """Return `n_images` with an OOD score, `n_ood` out-of-distribution images, and `proportion`, [value, low, high].

    Images without a label are included. Empty for a model without an OOD detector.
    """
    table = split_predictions.table
    has_ood_score = table.get(IN_DISTRIBUTION_COLUMN, pd.Series("", table.index)).isin(["yes", "no"]).to_numpy()
    if not has_ood_score.any():
        return {}
    is_ood = find_ood_rows(split_predictions)
    n_draws = find_n_draws(split_predictions.table["patient"].nunique())
    [proportion] = estimate_proportions([(is_ood, has_ood_score)], table["patient"].to_numpy(), n_draws)
    return {"n_images": int(has_ood_score.sum()), "n_ood": int(is_ood.sum()), "proportion": proportion}
