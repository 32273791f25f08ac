"""Decisions on images: the thresholds of a model applied to its probabilities, and the rows of `predict --json`.

Loads neither scipy nor scikit-learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcxr.io.tables import to_json_rows
from fastcxr.metrics.predictions import (
    DECISION_PREFIX,
    Predictions,
    drop_blank_truth,
    find_ood_rows,
    name_findings,
)
from fastcxr.metrics.scored_images import list_thresholds


def apply_thresholds(predictions: Predictions, thresholds: Mapping[str, Any]) -> Predictions:
    """Return the predictions with the columns `above_threshold` and `uncertain`; for findings see `_decide_findings`.

    above_threshold: the classes whose thresholds the image reaches, separated by semicolons; empty if it is
    out-of-distribution. uncertain: "yes" if the image is out-of-distribution, if its highest probability is below the
    abstention threshold, or if it reaches the thresholds of no class or of several classes; otherwise "no"; empty for
    an unreadable image. A class without a threshold is never reached; without any threshold this rule does not apply.
    """
    if predictions.is_multi_label:
        return _decide_findings(predictions, thresholds.get("thresholds", {}))
    probability, is_ood = predictions.probability, find_ood_rows(predictions)
    is_read = predictions.table["error"].eq("").to_numpy()
    rows, uncertain_below = thresholds.get("thresholds", {}), thresholds.get("uncertain_below")
    minimums = [rows.get(label, {}).get("threshold", np.inf) for label in predictions.labels]
    is_reached = (probability >= np.array(minimums)) & ~is_ood[:, None]  # False for NaN
    names = ["; ".join(np.array(predictions.labels)[row]) for row in is_reached]
    is_abstained = probability.max(axis=1) < (uncertain_below or 0)  # False for NaN
    is_ambiguous = bool(rows) & (is_reached.sum(axis=1) != 1)
    uncertain = np.where(is_ood | is_abstained | is_ambiguous, "yes", "no")
    extra_columns = {"above_threshold": names, "uncertain": np.where(is_read, uncertain, "")}
    return Predictions(predictions.table.assign(**extra_columns), predictions.labels)


def _decide_findings(predictions: Predictions, thresholds: Mapping[str, Any]) -> Predictions:
    """Return the predictions with `decision_FINDING` (yes or no), and the findings with yes in `predicted`.

    A finding without a threshold is decided at DEFAULT_THRESHOLD. An unreadable or out-of-distribution image has no
    decisions: its cells are empty.
    """
    is_decided = predictions.table["error"].eq("").to_numpy() & ~find_ood_rows(predictions)
    is_present = predictions.probability >= list_thresholds(thresholds, predictions.labels)  # False for NaN
    decisions = np.where(is_decided[:, None], np.where(is_present, "yes", "no"), "")
    columns = {DECISION_PREFIX + label: decisions[:, k] for k, label in enumerate(predictions.labels)}
    columns["predicted"] = name_findings(is_present & is_decided[:, None], predictions.labels)
    return Predictions(predictions.table.assign(**columns), predictions.labels)


@dataclass
class PredictionCounts:
    """Numbers of classified, unreadable and out-of-distribution images, and of images with each finding.

    `findings` is None for a model of classes. The numbers of several blocks of images are added.
    """

    n_classified: int = 0
    n_unreadable: int = 0
    n_ood: int = 0
    findings: dict[str, int] | None = None

    def add(self, predictions: Predictions) -> None:
        """Add the images of a block, which has the columns of apply_thresholds."""
        findings = count_found_findings(predictions) if predictions.is_multi_label else None
        self.add_counts(PredictionCounts(**count_decided_images(predictions), findings=findings))

    def add_counts(self, other: "PredictionCounts") -> None:
        """Add the images of other blocks."""
        self.n_classified += other.n_classified
        self.n_unreadable += other.n_unreadable
        self.n_ood += other.n_ood
        if other.findings is not None:
            self.findings = {label: n + (self.findings or {}).get(label, 0) for label, n in other.findings.items()}


def count_found_findings(predictions: Predictions) -> dict[str, int]:
    """Return the number of images with each finding; `predictions`: with the columns of apply_thresholds."""
    table = predictions.table
    return {label: int((table[DECISION_PREFIX + label] == "yes").sum()) for label in predictions.labels}


def count_decided_images(predictions: Predictions) -> dict[str, int]:
    """Return the numbers of classified, unreadable and out-of-distribution images."""
    n_unreadable, n_ood = int(predictions.table["error"].ne("").sum()), int(find_ood_rows(predictions).sum())
    n_classified = len(predictions.table) - n_unreadable - n_ood
    return {"n_classified": n_classified, "n_unreadable": n_unreadable, "n_ood": n_ood}


def make_prediction_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """Return the rows of `predict --json` and of the server: the columns of predictions.csv, None for NaN."""
    return to_json_rows(drop_blank_truth(predictions))
