"""Compute the metrics of every split of predictions, with confidence intervals."""

from collections.abc import Mapping
from typing import Any

from fastcxr.errors import require_type
from fastcxr.metrics.calibration import compute_image_calibration, uncalibrate
from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.metrics.intervals import confidence_intervals
from fastcxr.metrics.predictions import Predictions
from fastcxr.metrics.thresholds import compute_ood_rate, evaluate_thresholds

UNCALIBRATED_METRICS = ("log_loss", "brier", "ece", "ece_chance")


def evaluate_predictions(
    predictions: Predictions,
    calibration: Mapping[str, Any] | None = None,
    prevalence: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the metrics, 95 % confidence intervals and counts of every split that has rows.

    Unreadable images (`n_errors`) and images without a known label (`n_unlabelled`) are counted and excluded.
    Out-of-distribution images are included; `ood` is their proportion.

    Args:
        predictions: with calibrated probabilities.
        calibration: that of model.json. Its temperature, or its slopes and intercepts of findings, add `uncalibrated`,
            the calibration before scaling; its thresholds add `thresholds`, the metrics at them.
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
    n_errors = int((split_predictions.table["error"] != "").sum())
    counts = {
        "n_images": len(scorable.table),
        "n_patients": int(scorable.table["patient"].nunique()),
        "n_errors": n_errors,
        "n_unlabelled": len(split_predictions.table) - n_errors - len(scorable.table),
    }
    images = scorable.to_arrays(calibration.get("thresholds"))
    metrics = compute_image_metrics(images)
    metrics["calibration"] = compute_image_calibration(images)
    intervals = confidence_intervals(images, metrics)
    if calibration.get("thresholds"):
        metrics["thresholds"] = evaluate_thresholds(split_predictions, calibration, prevalence)
    ood_rate = compute_ood_rate(split_predictions)
    metrics |= {"ood": ood_rate} if ood_rate else {}
    uncalibrated = uncalibrate(images, calibration)
    if uncalibrated is not None:
        before = compute_image_calibration(uncalibrated)
        metrics["uncalibrated"] = {name: before[name] for name in before if name in UNCALIBRATED_METRICS}
    return counts | metrics | {"intervals": intervals}
