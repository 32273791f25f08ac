"""Compute the metrics of every split of predictions, with confidence intervals."""

from collections.abc import Mapping
from typing import Any

from fastcxr.errors import require_type
from fastcxr.metrics.calibration import compute_calibration, scale_probabilities
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals
from fastcxr.metrics.predictions import Predictions
from fastcxr.metrics.thresholds import compute_ood_rate, evaluate_thresholds


def evaluate_predictions(
    predictions: Predictions,
    calibration: Mapping[str, Any] | None = None,
    prevalence: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the metrics, 95 % confidence intervals and counts of every split that has rows.

    Unreadable images (`n_errors`) and images without a label (`n_unlabelled`) are counted and excluded.
    Out-of-distribution images are included; `ood` is their proportion.

    Args:
        predictions: with temperature-scaled probabilities.
        calibration: that of model.json. Its temperature adds `uncalibrated`, the calibration before scaling; its
            thresholds add `thresholds`, the metrics at them.
        prevalence: of a class, for its predictive values at the threshold.
    """
    require_type("predictions", predictions, Predictions)
    return {
        split: _evaluate_split(predictions.for_split(split), calibration or {}, prevalence or {})
        for split in predictions.splits
    }


def _evaluate_split(
    split_predictions: Predictions, calibration: Mapping[str, Any], prevalence: Mapping[str, float]
) -> dict[str, Any]:
    scorable = split_predictions.scorable()
    is_unreadable = split_predictions.table["error"] != ""
    counts = {
        "n_images": len(scorable.table),
        "n_patients": int(scorable.table["patient"].nunique()),
        "n_errors": int(is_unreadable.sum()),
        "n_unlabelled": int((~is_unreadable & (split_predictions.table["label"] == "")).sum()),
    }
    metrics = compute_metrics(scorable.class_index, scorable.probability, scorable.labels)
    patients = scorable.table["patient"].tolist()
    metrics["calibration"] = compute_calibration(scorable.class_index, scorable.probability, scorable.labels, patients)
    intervals = confidence_intervals(scorable.class_index, scorable.probability, scorable.labels, patients, metrics)
    if calibration.get("thresholds"):
        metrics["thresholds"] = evaluate_thresholds(split_predictions, calibration, prevalence)
    ood_rate = compute_ood_rate(split_predictions)
    metrics |= {"ood": ood_rate} if ood_rate else {}
    temperature = calibration.get("temperature", 1.0)
    if temperature != 1:
        uncalibrated_probability = scale_probabilities(scorable.probability, 1 / temperature)
        uncalibrated = compute_calibration(scorable.class_index, uncalibrated_probability, scorable.labels, patients)
        metrics["uncalibrated"] = {name: uncalibrated[name] for name in ("log_loss", "brier", "ece", "ece_chance")}
    return counts | metrics | {"intervals": intervals}
