"""Temperature scaling, fitted on validation images, and calibration metrics.

A temperature changes the probabilities, but not their order within an image.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, logit, softmax

from fastcxr.errors import ModelError
from fastcxr.metrics.analytic_intervals import Z_95
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, Predictions
from fastcxr.metrics.scoring_rules import MIN_PROBABILITY, compute_brier_scores, compute_log_losses

SMALLEST_PROBABILITY = np.finfo(float).tiny  # keeps the logarithm of a probability finite
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MIN_VALID_IMAGES = 30  # validation images needed to fit a temperature
N_BINS = 15
N_SIMULATIONS, SEED = 1000, 0
CELLS = 1 << 20  # random numbers in memory at once (8 MiB as float64)
MAX_NEWTON_STEPS = 100
MAX_SLOPE, MAX_CONDITION_NUMBER = 50.0, 1e12  # beyond either, the classes do not overlap and no line can be fitted


def fit_calibration(predictions: Predictions) -> dict[str, Any]:
    """Return `temperature` and the `images` and `patients` of the validation split that it was fitted on.

    With fewer than MIN_VALID_IMAGES images the temperature is 1, and `reason` states it.
    """
    valid_predictions = predictions.for_split("valid").scorable()
    counts = {"images": len(valid_predictions.table), "patients": int(valid_predictions.table["patient"].nunique())}
    if len(valid_predictions.table) < MIN_VALID_IMAGES:
        return {"temperature": 1.0, **counts, "reason": f"fewer than {MIN_VALID_IMAGES} validation images"}
    return {"temperature": fit_temperature(valid_predictions.class_index, valid_predictions.probability), **counts}


def validate_calibration(calibration: Any, path: Path) -> dict[str, Any]:
    """Return the calibration of a model.json, empty for files of earlier versions.

    Raises:
        ModelError: a temperature is not a positive number, or a threshold is not a finite number.
    """
    if calibration is None:
        return {}
    thresholds = calibration.get("thresholds", {}) if isinstance(calibration, Mapping) else None
    rows = list(thresholds.values()) if isinstance(thresholds, Mapping) else [None]
    if (
        all(isinstance(row, Mapping) and _is_finite_number(row.get("threshold")) for row in rows)
        and _is_finite_number(calibration.get("temperature", 1.0))
        and calibration.get("temperature", 1.0) > 0
        and (calibration.get("uncertain_below") is None or _is_finite_number(calibration["uncertain_below"]))
    ):
        return dict(calibration)
    raise ModelError("the calibration is invalid", "Copy the run folder again", path=path, code="E301")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def scale_predictions(predictions: Predictions, temperature: float) -> Predictions:
    """Return the predictions with temperature-scaled probabilities."""
    scaled = scale_probabilities(predictions.probability, temperature)
    columns = {PROBABILITY_PREFIX + label: scaled[:, k] for k, label in enumerate(predictions.labels)}
    return Predictions(predictions.table.assign(**columns), predictions.labels)


def compute_calibration(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: Sequence[str]
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


def fit_calibration_line(
    positive: np.ndarray, probability: np.ndarray, patient_index: np.ndarray
) -> dict[str, list[float]] | None:
    """Return intercept and slope of a logistic regression of truth on log odds (Cox 1958), each [value, low, high].

    Perfect values are 0 and 1. The intervals are robust to clusters of images of one patient (Liang 1986). None if the
    class is absent, or separated so well that no line can be fitted. All arguments have shape (n,).
    """
    if positive.all() or not positive.any():
        return None
    log_odds = logit(np.clip(probability, MIN_PROBABILITY, 1 - MIN_PROBABILITY))
    design_matrix, coefficients = np.stack([np.ones_like(log_odds), log_odds], axis=1), np.array([0.0, 1.0])
    for _ in range(MAX_NEWTON_STEPS):
        predicted = expit(design_matrix @ coefficients)
        information = design_matrix.T @ (design_matrix * (predicted * (1 - predicted))[:, None])
        if abs(coefficients[1]) > MAX_SLOPE or np.linalg.cond(information) > MAX_CONDITION_NUMBER:
            return None
        residual = positive - predicted
        step = np.linalg.solve(information, design_matrix.T @ residual)
        coefficients = coefficients + step / max(1.0, np.abs(step).max())  # damped: at most 1 per step
        if np.abs(step).max() < 1e-8:
            margin = Z_95 * _compute_clustered_errors(design_matrix * residual[:, None], information, patient_index)
            intercept, slope = np.stack([coefficients, coefficients - margin, coefficients + margin], axis=1).tolist()
            return {"intercept": intercept, "slope": slope}
    return None


def _compute_clustered_errors(scores: np.ndarray, information: np.ndarray, patient_index: np.ndarray) -> np.ndarray:
    cluster_sums, inverse = np.zeros((patient_index.max() + 1, scores.shape[1])), np.linalg.inv(information)
    np.add.at(cluster_sums, patient_index, scores)
    return np.sqrt(np.diag(inverse @ (cluster_sums.T @ cluster_sums) @ inverse))
