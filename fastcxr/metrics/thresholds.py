"""From probabilities to decisions: a threshold a class and a band left open, chosen on validation images alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.metrics.intervals import proportion_interval
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, Predictions

MIN_STABLE_POSITIVES = 50  # positives in validation, below which a threshold hits its aim by luck
NET_BENEFIT_THRESHOLDS = np.linspace(0.01, 0.5, 50)  # probabilities at which somebody might act


def fit_thresholds(
    predictions: Predictions, sensitivity: float, specificity: float | None, abstain: float
) -> dict[str, Any]:
    """`thresholds` of each class, one against the rest, and `uncertain_below`: the band that is left open, or None.

    A threshold is the highest one that reaches the wanted sensitivity on the validation split, or, where a specificity
    is wanted, the lowest one that reaches it. `abstain`: the share of validation images to be left open.
    """
    valid_predictions = predictions.for_split("valid").scorable()
    truth, probability = valid_predictions.truth, valid_predictions.probability
    thresholds = {
        label: threshold
        for k, label in enumerate(predictions.labels)
        if (threshold := _choose_threshold(truth == k, probability[:, k], sensitivity, specificity))
    }
    confidence = probability.max(axis=1)
    uncertain_below = float(np.quantile(confidence, abstain)) if abstain and len(confidence) else None
    return {"thresholds": thresholds, "uncertain_below": uncertain_below}


def _choose_threshold(
    positive: np.ndarray, score: np.ndarray, sensitivity: float, specificity: float | None
) -> dict[str, Any] | None:
    if positive.all() or not positive.any():
        return None
    target = {"sensitivity": sensitivity} if specificity is None else {"specificity": specificity}
    return {
        "threshold": find_threshold_at_sensitivity(score[positive], sensitivity)
        if specificity is None
        else find_threshold_at_specificity(score[~positive], specificity),
        "wanted": target,
        "positives": int(positive.sum()),
        "unstable": bool(positive.sum() < MIN_STABLE_POSITIVES),
    }


def find_threshold_at_sensitivity(positives: np.ndarray, target_share: float) -> float:
    """The highest threshold that so large a share of these scores reaches."""
    sorted_scores = np.sort(positives)[::-1]
    return float(sorted_scores[max(1, int(np.ceil(target_share * len(sorted_scores) - 1e-9))) - 1])


def find_threshold_at_specificity(negatives: np.ndarray, target_share: float) -> float:
    """The lowest threshold that so large a share of these scores stays below."""
    sorted_scores = np.sort(negatives)
    highest = sorted_scores[max(1, int(np.ceil(target_share * len(sorted_scores) - 1e-9))) - 1]
    return float(np.nextafter(highest, 2.0))


def evaluate_thresholds(
    split_predictions: Predictions, thresholds: Mapping[str, Any], prevalence: Mapping[str, float]
) -> dict[str, Any]:
    """What the thresholds do on a split: `per_class` sensitivity and specificity, each [value, low, high], and where a
    prevalence is stated ppv and npv; `uncertain`, the share left open, and `answered_accuracy` of the rest.
    """
    scorable = split_predictions.scorable()
    truth, probability, patients = scorable.truth, scorable.probability, scorable.table["patient"].to_numpy()
    rows = {}
    for k, label in enumerate(split_predictions.labels):
        threshold_row = thresholds.get("thresholds", {}).get(label)
        if threshold_row is None or not len(truth):
            continue
        positive, is_predicted = truth == k, probability[:, k] >= threshold_row["threshold"]
        row = {
            name: _estimate_proportion(hits, among, patients)
            for name, hits, among in (
                ("sensitivity", is_predicted, positive),
                ("specificity", ~is_predicted, ~positive),
            )
        }
        rows[label] = dict(threshold_row) | row | compute_predictive_values(row, prevalence.get(label))
    uncertain_below = thresholds.get("uncertain_below")
    if uncertain_below is None or not len(truth):
        return {"per_class": rows}
    is_answered, is_any = probability.max(axis=1) >= uncertain_below, np.ones(len(truth), bool)
    return {
        "per_class": rows,
        "uncertain": _estimate_proportion(~is_answered, is_any, patients),
        "answered_accuracy": _estimate_proportion(probability.argmax(axis=1) == truth, is_answered, patients),
    }


def _estimate_proportion(is_hit: np.ndarray, is_eligible: np.ndarray, patients: np.ndarray) -> list[float] | None:
    if not is_eligible.any():
        return None
    return [
        float((is_hit & is_eligible).sum() / is_eligible.sum()),
        *proportion_interval(is_hit, is_eligible, patients),
    ]


def compute_predictive_values(row: Mapping[str, Any], prevalence: float | None) -> dict[str, Any]:
    """ppv and npv where so large a share of the people has the disease (Bayes), not where the folder's share has it.

    Each is [value, low, high]; the bounds are those of sensitivity and specificity at once, so they are wide.
    """
    if prevalence is None or None in (row["sensitivity"], row["specificity"]):
        return {}
    pairs = list(zip(row["sensitivity"], row["specificity"], strict=True))
    return {
        "prevalence": prevalence,
        "ppv": [_divide(found * prevalence, (1 - passed) * (1 - prevalence)) for found, passed in pairs],
        "npv": [_divide(passed * (1 - prevalence), (1 - found) * prevalence) for found, passed in pairs],
    }


def _divide(n_correct: float, n_wrong: float) -> float | None:
    return n_correct / (n_correct + n_wrong) if n_correct + n_wrong else None


def net_benefit(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Net benefit of acting on the score, and of acting on everybody, at each of NET_BENEFIT_THRESHOLDS (Vickers 2006).

    True positives less false ones, weighed by the odds at which somebody would act; per image.
    """
    odds = NET_BENEFIT_THRESHOLDS / (1 - NET_BENEFIT_THRESHOLDS)
    is_predicted = score[:, None] >= NET_BENEFIT_THRESHOLDS
    true_positive_rate, false_positive_rate = (
        (is_predicted & positive[:, None]).mean(axis=0),
        (is_predicted & ~positive[:, None]).mean(axis=0),
    )
    return true_positive_rate - false_positive_rate * odds, positive.mean() - (1 - positive.mean()) * odds


def apply_thresholds(predictions: Predictions, thresholds: Mapping[str, Any]) -> Predictions:
    """The predictions with `above_threshold`, the classes whose threshold is reached, and `uncertain`, yes or no.

    A picture unlike the training images is uncertain whatever its probabilities are, and reaches no threshold.
    """
    probability, is_ood = predictions.probability, find_ood_rows(predictions)
    threshold_values = [
        thresholds.get("thresholds", {}).get(label, {}).get("threshold", np.inf) for label in predictions.labels
    ]
    is_reached = (probability >= np.array(threshold_values)) & ~is_ood[:, None]  # nan reaches nothing
    names = ["; ".join(np.array(predictions.labels)[row]) for row in is_reached]
    uncertain_below = thresholds.get("uncertain_below")
    is_uncertain = (
        np.zeros(len(names), bool)
        if uncertain_below is None
        else np.nan_to_num(probability, nan=1.0).max(axis=1) < uncertain_below
    )
    extra_columns = {"above_threshold": names, "uncertain": np.where(is_uncertain | is_ood, "yes", "no")}
    return Predictions(predictions.table.assign(**extra_columns), predictions.labels)


def find_ood_rows(predictions: Predictions) -> np.ndarray:
    """Return which images are out of distribution, shape (n,); none for a model without an OOD detector."""
    return (predictions.table.get(IN_DISTRIBUTION_COLUMN, pd.Series("", predictions.table.index)) == "no").to_numpy()


def compute_ood_rate(split_predictions: Predictions) -> dict[str, Any]:
    """Return `n_images` with an OOD score, `n_ood` of them out of distribution, and `proportion`, [value, low, high].

    Empty for a model without an OOD detector. Images without a label count too.
    """
    has_ood_score = (
        split_predictions.table.get(IN_DISTRIBUTION_COLUMN, pd.Series("", split_predictions.table.index))
        .isin(["yes", "no"])
        .to_numpy()
    )
    if not has_ood_score.any():
        return {}
    is_ood = find_ood_rows(split_predictions)
    proportion = _estimate_proportion(is_ood, has_ood_score, split_predictions.table["patient"].to_numpy())
    return {"n_images": int(has_ood_score.sum()), "n_ood": int(is_ood.sum()), "proportion": proportion}
