"""Compute the metrics of every split of predictions, with confidence intervals."""

from collections.abc import Mapping
from typing import Any

from fastcxr.metrics.calibration import measure_calibration, scale
from fastcxr.metrics.classification import measure
from fastcxr.metrics.intervals import find_intervals
from fastcxr.metrics.predictions import Predictions
from fastcxr.metrics.thresholds import measure_decisions, measure_gate


def measure_predictions(
    predictions: Predictions,
    calibration: Mapping[str, Any] | None = None,
    prevalence: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """The numbers of every split that has rows, their 95 % intervals, and the images and patients behind them.

    `calibration`: what model.json holds of it. The probabilities were scaled by its temperature, and what they were
    before is `uncalibrated`; what its thresholds do is `decisions`, with predictive values at a `prevalence` a class.
    What a gate found unlike the training images is `gate`, and counts in all other figures.
    Unreadable images (`n_errors`) and images without a label (`n_unlabelled`) are counted and left out.
    """
    return {
        split: _measure_part(predictions.part(split), calibration or {}, prevalence or {})
        for split in predictions.splits
    }


def _measure_part(part: Predictions, calibration: Mapping[str, Any], prevalence: Mapping[str, float]) -> dict[str, Any]:
    scored = part.scored()
    unread = part.table["error"] != ""
    counts = {
        "n_images": len(scored.table),
        "n_patients": int(scored.table["patient"].nunique()),
        "n_errors": int(unread.sum()),
        "n_unlabelled": int((~unread & (part.table["label"] == "")).sum()),
    }
    figures = measure(scored.truth, scored.probability, scored.labels)
    patients = scored.table["patient"].tolist()
    figures["calibration"] = measure_calibration(scored.truth, scored.probability, scored.labels, patients)
    intervals = find_intervals(scored.truth, scored.probability, scored.labels, patients, figures)
    if calibration.get("thresholds"):
        figures["decisions"] = measure_decisions(part, calibration, prevalence)
    gate = measure_gate(part)
    figures |= {"gate": gate} if gate else {}
    temperature = calibration.get("temperature", 1.0)
    if temperature != 1:
        before = scale(scored.probability, 1 / temperature)
        found = measure_calibration(scored.truth, before, scored.labels, patients)
        figures["uncalibrated"] = {name: found[name] for name in ("log_loss", "brier", "ece", "ece_chance")}
    return counts | figures | {"intervals": intervals}
