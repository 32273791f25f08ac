"""Calibration line: logistic regression of the truth on the log odds of the predicted probability."""

import numpy as np
from scipy.special import expit, logit

from fastcxr.metrics.analytic_intervals import Z_95
from fastcxr.metrics.scoring_rules import MIN_PROBABILITY

MAX_NEWTON_STEPS = 100
MAX_SLOPE, MAX_CONDITION_NUMBER = 50.0, 1e12  # beyond either, the classes do not overlap and no line can be fitted


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
