"""Calibration of findings: Platt scaling of each finding, or one temperature, and calibration metrics.

The calibrated probability is sigmoid(slope * logit + intercept); the slope is positive, so the order of the images does
not change.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit

from fastcxr.metrics.calibration_line import fit_calibration_line
from fastcxr.metrics.scored_images import ScoredImages
from fastcxr.metrics.scoring_rules import compute_label_losses

MIN_CLASS_IMAGES = 30  # positives, and negatives, needed to fit slope and intercept of one finding
MIN_SLOPE, MAX_SLOPE = 0.05, 20.0
SD_LOG_SLOPE, SD_INTERCEPT = 1.0, 5.0  # of the weak prior, which favours slope 1 and intercept 0
SMALLEST_PROBABILITY = np.finfo(float).tiny
LARGEST_PROBABILITY = 1 - np.finfo(float).epsneg  # the largest number below 1


def fit_finding_calibration(images: ScoredImages, *, is_scaled: bool) -> dict[str, dict[str, Any]]:
    """Return slope, intercept, method, positives and negatives of each finding, fitted on validation images.

    method: platt with at least MIN_CLASS_IMAGES positives and negatives (Platt 1999). Otherwise temperature: a slope
    that such findings share, fitted on those with both classes. none without such labels, or if not `is_scaled`.
    """
    log_odds, positive, known = compute_log_odds(images.probability), images.positive, images.known
    positives, negatives = positive.sum(axis=0), images.negative.sum(axis=0)
    is_frequent = is_scaled & (np.minimum(positives, negatives) >= MIN_CLASS_IMAGES)
    is_pooled = known & (is_scaled & ~is_frequent & (positives > 0) & (negatives > 0))
    shared = _fit_line(positive[is_pooled], log_odds[is_pooled], has_intercept=False)[0] if is_pooled.any() else 1.0
    rows = {}
    for k, label in enumerate(images.labels):
        slope, intercept, method = shared, 0.0, "temperature" if is_pooled.any() else "none"
        if is_frequent[k]:
            slope, intercept = _fit_line(positive[known[:, k], k], log_odds[known[:, k], k], has_intercept=True)
            method = "platt"
        counts = {"positives": int(positives[k]), "negatives": int(negatives[k])}
        rows[label] = {"slope": slope, "intercept": intercept, "method": method, **counts}
    return rows


def _fit_line(positive: np.ndarray, log_odds: np.ndarray, *, has_intercept: bool) -> tuple[float, float]:
    """Return slope and intercept with the lowest log-loss and the prior; the intercept is 0 without `has_intercept`."""
    from scipy.optimize import minimize

    def cost(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, intercept = math.exp(parameters[0]), parameters[1]
        line = slope * log_odds + intercept
        error = expit(line) - positive
        loss = np.logaddexp(0, line).sum() - line[positive].sum()
        prior = (parameters[0] / SD_LOG_SLOPE) ** 2 / 2 + (intercept / SD_INTERCEPT) ** 2 / 2
        gradient = [slope * (error @ log_odds) + parameters[0] / SD_LOG_SLOPE**2, error.sum()]
        gradient[1] = (gradient[1] + intercept / SD_INTERCEPT**2) * has_intercept
        return float(loss + prior) / len(line), np.array(gradient) / len(line)

    bounds = [(math.log(MIN_SLOPE), math.log(MAX_SLOPE)), (None, None)]
    options = {"gtol": 1e-9, "ftol": 1e-14}
    optimum = minimize(cost, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return float(math.exp(optimum.x[0])), float(optimum.x[1])


def compute_log_odds(probability: np.ndarray) -> np.ndarray:
    """Return finite log odds of probabilities, NaN for NaN."""
    return logit(np.clip(probability, SMALLEST_PROBABILITY, LARGEST_PROBABILITY))


def calibrate_findings(
    probability: np.ndarray, labels: Sequence[str], calibration: Mapping[str, Mapping[str, Any]]
) -> np.ndarray:
    """Return calibrated probabilities, shape (n, k); rows of NaN remain NaN.

    `calibration`: slope and intercept by finding; a finding that is not in it is unchanged.
    """
    return _transform(probability, labels, calibration, lambda odds, row: odds * row["slope"] + row["intercept"])


def uncalibrate_findings(
    probability: np.ndarray, labels: Sequence[str], calibration: Mapping[str, Mapping[str, Any]]
) -> np.ndarray:
    """Return the probabilities before `calibrate_findings`; same arguments."""
    return _transform(probability, labels, calibration, lambda odds, row: (odds - row["intercept"]) / row["slope"])


def _transform(
    probability: np.ndarray,
    labels: Sequence[str],
    calibration: Mapping[str, Mapping[str, Any]],
    function: Callable[[np.ndarray, Mapping[str, Any]], np.ndarray],
) -> np.ndarray:
    scaled = np.array(probability, float)
    for k, label in enumerate(labels):
        row = calibration.get(label)
        if row and (row["slope"], row["intercept"]) != (1, 0):
            scaled[:, k] = expit(function(compute_log_odds(scaled[:, k]), row))
    return scaled


def compute_finding_calibration(images: ScoredImages) -> dict[str, Any]:
    """Return the calibration metrics of one split.

    brier and log_loss: means over the findings with both classes, None without such a finding. per_class: see
    `fit_calibration_line`.
    """
    _, patient_index = np.unique(np.asarray(images.patients), return_inverse=True)
    positive, known = images.positive, images.known
    losses = compute_label_losses(positive, images.probability)
    averaged = np.flatnonzero(positive.any(axis=0) & images.negative.any(axis=0)).tolist()
    means = {
        name: float(np.mean([loss[known[:, k], k].mean() for k in averaged])) if averaged else None
        for name, loss in zip(("brier", "log_loss"), losses, strict=True)
    }
    lines: dict[str, Any] = dict.fromkeys(images.labels)
    for k in averaged:
        of_finding = known[:, k]
        columns = positive[of_finding, k], images.probability[of_finding, k], patient_index[of_finding]
        lines[images.labels[k]] = fit_calibration_line(*columns)
    return means | {"per_class": lines}
