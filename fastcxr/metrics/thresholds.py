"""From probabilities to decisions: a threshold a class and a band left open, chosen on validation images alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.metrics.intervals import share_interval
from fastcxr.metrics.predictions import LIKE_TRAINING, Predictions

STABLE = 50  # positives in validation, below which a threshold hits its aim by luck
NET_RANGE = np.linspace(0.01, 0.5, 50)  # probabilities at which somebody might act


def fit_decisions(
    predictions: Predictions, sensitivity: float, specificity: float | None, abstain: float
) -> dict[str, Any]:
    """`thresholds` of each class, one against the rest, and `uncertain_below`: the band that is left open, or None.

    A threshold is the highest one that reaches the wanted sensitivity on the validation split, or, where a specificity
    is wanted, the lowest one that reaches it. `abstain`: the share of validation images to be left open.
    """
    part = predictions.part("valid").scored()
    truth, probability = part.truth, part.probability
    thresholds = {
        label: threshold
        for k, label in enumerate(predictions.labels)
        if (threshold := _choose(truth == k, probability[:, k], sensitivity, specificity))
    }
    sure = probability.max(axis=1)
    below = float(np.quantile(sure, abstain)) if abstain and len(sure) else None
    return {"thresholds": thresholds, "uncertain_below": below}


def _choose(
    positive: np.ndarray, score: np.ndarray, sensitivity: float, specificity: float | None
) -> dict[str, Any] | None:
    if positive.all() or not positive.any():
        return None
    wanted = {"sensitivity": sensitivity} if specificity is None else {"specificity": specificity}
    return {
        "threshold": at_sensitivity(score[positive], sensitivity)
        if specificity is None
        else at_specificity(score[~positive], specificity),
        "wanted": wanted,
        "positives": int(positive.sum()),
        "unstable": bool(positive.sum() < STABLE),
    }


def at_sensitivity(positives: np.ndarray, wanted: float) -> float:
    """The highest threshold that so large a share of these scores reaches."""
    ranked = np.sort(positives)[::-1]
    return float(ranked[max(1, int(np.ceil(wanted * len(ranked) - 1e-9))) - 1])


def at_specificity(negatives: np.ndarray, wanted: float) -> float:
    """The lowest threshold that so large a share of these scores stays below."""
    ranked = np.sort(negatives)
    highest = ranked[max(1, int(np.ceil(wanted * len(ranked) - 1e-9))) - 1]
    return float(np.nextafter(highest, 2.0))


def measure_decisions(
    part: Predictions, decisions: Mapping[str, Any], prevalence: Mapping[str, float]
) -> dict[str, Any]:
    """What the thresholds do on a split: `per_class` sensitivity and specificity, each [value, low, high], and where a
    prevalence is stated ppv and npv; `uncertain`, the share left open, and `answered_accuracy` of the rest.
    """
    scored = part.scored()
    truth, probability, patients = scored.truth, scored.probability, scored.table["patient"].to_numpy()
    rows = {}
    for k, label in enumerate(part.labels):
        chosen = decisions.get("thresholds", {}).get(label)
        if chosen is None or not len(truth):
            continue
        positive, named = truth == k, probability[:, k] >= chosen["threshold"]
        row = {
            name: _share(hits, among, patients)
            for name, hits, among in (("sensitivity", named, positive), ("specificity", ~named, ~positive))
        }
        rows[label] = dict(chosen) | row | predictive_values(row, prevalence.get(label))
    below = decisions.get("uncertain_below")
    if below is None or not len(truth):
        return {"per_class": rows}
    answered, everyone = probability.max(axis=1) >= below, np.ones(len(truth), bool)
    return {
        "per_class": rows,
        "uncertain": _share(~answered, everyone, patients),
        "answered_accuracy": _share(probability.argmax(axis=1) == truth, answered, patients),
    }


def _share(hits: np.ndarray, among: np.ndarray, patients: np.ndarray) -> list[float] | None:
    if not among.any():
        return None
    return [float((hits & among).sum() / among.sum()), *share_interval(hits, among, patients)]


def predictive_values(row: Mapping[str, Any], prevalence: float | None) -> dict[str, Any]:
    """ppv and npv where so large a share of the people has the disease (Bayes), not where the folder's share has it.

    Each is [value, low, high]; the bounds are those of sensitivity and specificity at once, so they are wide.
    """
    if prevalence is None or None in (row["sensitivity"], row["specificity"]):
        return {}
    pairs = list(zip(row["sensitivity"], row["specificity"], strict=True))
    return {
        "prevalence": prevalence,
        "ppv": [_ratio(found * prevalence, (1 - passed) * (1 - prevalence)) for found, passed in pairs],
        "npv": [_ratio(passed * (1 - prevalence), (1 - found) * prevalence) for found, passed in pairs],
    }


def _ratio(right: float, wrong: float) -> float | None:
    return right / (right + wrong) if right + wrong else None


def net_benefit(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Net benefit of acting on the score, and of acting on everybody, at each of NET_RANGE (Vickers 2006).

    True positives less false ones, weighed by the odds at which somebody would act; per image.
    """
    odds = NET_RANGE / (1 - NET_RANGE)
    named = score[:, None] >= NET_RANGE
    hits, alarms = (named & positive[:, None]).mean(axis=0), (named & ~positive[:, None]).mean(axis=0)
    return hits - alarms * odds, positive.mean() - (1 - positive.mean()) * odds


def decide(predictions: Predictions, decisions: Mapping[str, Any]) -> Predictions:
    """The predictions with `above_threshold`, the classes whose threshold is reached, and `uncertain`, yes or no.

    A picture unlike the training images is uncertain whatever its probabilities are, and reaches no threshold.
    """
    probability, strange = predictions.probability, is_strange(predictions)
    limits = [decisions.get("thresholds", {}).get(label, {}).get("threshold", np.inf) for label in predictions.labels]
    reached = (probability >= np.array(limits)) & ~strange[:, None]  # nan reaches nothing
    names = ["; ".join(np.array(predictions.labels)[row]) for row in reached]
    below = decisions.get("uncertain_below")
    open_ = np.zeros(len(names), bool) if below is None else np.nan_to_num(probability, nan=1.0).max(axis=1) < below
    further = {"above_threshold": names, "uncertain": np.where(open_ | strange, "yes", "no")}
    return Predictions(predictions.table.assign(**further), predictions.labels)


def is_strange(predictions: Predictions) -> np.ndarray:
    """Which pictures a gate found unlike the training images, shape (n,); none where no gate was asked."""
    return (predictions.table.get(LIKE_TRAINING, pd.Series("", predictions.table.index)) == "no").to_numpy()


def measure_gate(part: Predictions) -> dict[str, Any]:
    """`images` that a gate was asked about, how many of them are `strange`, and their `share`, [value, low, high].

    Nothing where there was no gate. Images without a label count too.
    """
    asked = part.table.get(LIKE_TRAINING, pd.Series("", part.table.index)).isin(["yes", "no"]).to_numpy()
    if not asked.any():
        return {}
    strange = is_strange(part)
    share = _share(strange, asked, part.table["patient"].to_numpy())
    return {"images": int(asked.sum()), "strange": int(strange.sum()), "share": share}
