"""Calibration that is fitted on validation images, and calibration metrics.

One class per image: a temperature, which changes the probabilities, but not their order within an image. Findings: see
finding_calibration.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import log_softmax, softmax

from fastcxr.metrics.calibration_line import fit_calibration_line
from fastcxr.metrics.finding_calibration import (
    calibrate_findings,
    compute_finding_calibration,
    fit_finding_calibration,
    uncalibrate_findings,
)
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, Predictions, find_ood_rows, name_predicted
from fastcxr.metrics.scored_images import ScoredImages
from fastcxr.metrics.scoring_rules import compute_brier_scores, compute_log_losses

SMALLEST_PROBABILITY = np.finfo(float).tiny  # keeps the logarithm of a probability finite
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MIN_VALID_IMAGES = 30  # validation images needed to fit a temperature
N_BINS = 15
N_SIMULATIONS, SEED = 1000, 0
CELLS = 1 << 20  # random numbers in memory at once (8 MiB as float64)


def fit_calibration(predictions: Predictions) -> dict[str, Any]:
    """Return `temperature` and the `images` and `patients` of the validation split that it was fitted on.

    Findings have the temperature 1 and `findings`: see `fit_finding_calibration`. With fewer than MIN_VALID_IMAGES
    images there is no scaling, and `reason` states it.
    """
    valid_predictions = predictions.for_split("valid").scorable()
    counts = {"images": len(valid_predictions.table), "patients": int(valid_predictions.table["patient"].nunique())}
    is_small = counts["images"] < MIN_VALID_IMAGES
    reason = {"reason": f"fewer than {MIN_VALID_IMAGES} validation images"} if is_small else {}
    if predictions.is_multi_label:
        rows = fit_finding_calibration(valid_predictions.to_arrays(), is_scaled=not is_small)
        return {"temperature": 1.0, "findings": rows, **counts, **reason}
    if is_small:
        return {"temperature": 1.0, **counts, **reason}
    return {"temperature": fit_temperature(valid_predictions.class_index, valid_predictions.probability), **counts}


def fit_temperature(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the temperature with the lowest log-loss (Guo 2017, arXiv:1706.04599); a weak prior favours 1."""
    from scipy.optimize import minimize_scalar

    log_probability = np.log(np.clip(probability, SMALLEST_PROBABILITY, 1))

    def cost(log_temperature: float) -> float:
        log_scaled = log_softmax(log_probability / math.exp(log_temperature), axis=1)
        return log_temperature**2 / 2 - log_scaled[np.arange(len(truth)), truth].sum()

    optimum = minimize_scalar(cost, bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), method="bounded")
    return float(math.exp(optimum.x))


def scale_probabilities(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities of shape (n, k), divided by the temperature on the logit scale; rows of NaN remain NaN."""
    if temperature == 1:
        return probability
    return softmax(np.log(np.clip(probability, SMALLEST_PROBABILITY, 1)) / temperature, axis=1)


def calibrate_probabilities(
    probability: np.ndarray, labels: Sequence[str], calibration: Mapping[str, Any]
) -> np.ndarray:
    """Return calibrated probabilities, shape (n, k); rows of NaN remain NaN. `calibration`: that of model.json."""
    if "findings" in calibration:
        return calibrate_findings(probability, labels, calibration["findings"])
    return scale_probabilities(probability, calibration.get("temperature", 1.0))


def scale_predictions(predictions: Predictions, calibration: Mapping[str, Any]) -> Predictions:
    """Return the predictions with calibrated probabilities; `calibration`: that of model.json."""
    scaled = calibrate_probabilities(predictions.probability, predictions.labels, calibration)
    columns: dict[str, Any] = {PROBABILITY_PREFIX + label: scaled[:, k] for k, label in enumerate(predictions.labels)}
    if predictions.is_multi_label:  # other findings may reach the threshold
        predicted = name_predicted(scaled, predictions.labels, findings=True)
        columns["predicted"] = np.where(find_ood_rows(predictions), "", predicted)
    return Predictions(predictions.table.assign(**columns), predictions.labels)


def uncalibrate(images: ScoredImages, calibration: Mapping[str, Any]) -> ScoredImages | None:
    """Return the images with their probabilities before calibration, None if it did not change them."""
    temperature, findings = calibration.get("temperature", 1.0), calibration.get("findings", {})
    if images.is_multi_label:
        if all((row["slope"], row["intercept"]) == (1, 0) for row in findings.values()):
            return None
        return replace(images, probability=uncalibrate_findings(images.probability, images.labels, findings))
    if temperature == 1:
        return None
    return replace(images, probability=scale_probabilities(images.probability, 1 / temperature))


def compute_image_calibration(images: ScoredImages) -> dict[str, Any]:
    """Return the calibration metrics of one split, for one class per image or for findings."""
    if images.is_multi_label:
        return compute_finding_calibration(images)
    return compute_calibration(images.truth, images.probability, images.labels, images.patients)


def compute_calibration(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: Sequence[str] | np.ndarray
) -> dict[str, Any]:
    """Return the calibration metrics of one split; None for each of them without images.

    log_loss; brier, summed over classes (0 to 2); ece; ece_chance, the ECE that calibrated probabilities rarely exceed;
    per_class: see `fit_calibration_line`.

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k). `patients`: of each image, n in all.
    """
    if not len(truth):
        return {"log_loss": None, "brier": None, "ece": None, "ece_chance": None, "per_class": {}}
    _, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    return {
        "log_loss": float(compute_log_losses(truth, probability).mean()),
        "brier": float(compute_brier_scores(truth, probability).mean()),
        "ece": float(_compute_eces(probability.max(axis=1), (probability.argmax(axis=1) == truth)[None])[0]),
        "ece_chance": simulate_chance_ece(probability.max(axis=1)),
        "per_class": {
            label: fit_calibration_line(truth == k, probability[:, k], patient_index) for k, label in enumerate(labels)
        },
    }


def simulate_chance_ece(confidence: np.ndarray) -> float:
    """Return the 95th percentile of the ECE that perfectly calibrated probabilities have by chance."""
    rng, at_once = np.random.default_rng(SEED), max(1, CELLS // len(confidence))
    sizes = (min(at_once, N_SIMULATIONS - done) for done in range(0, N_SIMULATIONS, at_once))
    errors = [_compute_eces(confidence, rng.random((size, len(confidence))) < confidence) for size in sizes]
    return float(np.quantile(np.concatenate(errors), 0.95))


def _compute_eces(confidence: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """Return expected calibration errors over bins of equal width; `confidence`: (n,), `is_correct`: (draws, n)."""
    bin_index = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    bin_membership = np.eye(N_BINS)[bin_index]
    return np.abs((is_correct - confidence) @ bin_membership).sum(axis=1) / len(confidence)
