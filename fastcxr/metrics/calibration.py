"""Do probabilities mean what they say? One temperature makes them so, from validation images; the rest measures it.

Every figure is of probabilities alone, which a temperature changes and the order of the classes does not notice.
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

MIN_PROBABILITY = 1e-12  # a probability of nothing would make one mistake cost infinitely much
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0  # temperatures
MIN_VALID_IMAGES = 30  # validation images, below which a temperature would be guessed
N_BINS = 15
N_SIMULATIONS, SEED = 1000, 0
CELLS = 1 << 20  # random numbers in memory at once (8 MiB as float64)
MAX_NEWTON_STEPS, MAX_SLOPE, MAX_CONDITION_NUMBER = (
    100,
    50.0,
    1e12,
)  # of Newton's method; a slope or condition beyond: nothing overlaps


def fit_calibration(predictions: Predictions) -> dict[str, Any]:
    """`temperature`, and the `images` and `patients` of the validation split that it was fitted on.

    Without enough of them the temperature is 1, and `reason` says why.
    """
    valid_predictions = predictions.for_split("valid").scorable()
    counts = {"images": len(valid_predictions.table), "patients": int(valid_predictions.table["patient"].nunique())}
    if len(valid_predictions.table) < MIN_VALID_IMAGES:
        return {"temperature": 1.0, **counts, "reason": f"fewer than {MIN_VALID_IMAGES} validation images"}
    return {"temperature": fit_temperature(valid_predictions.truth, valid_predictions.probability), **counts}


def validate_calibration(calibration: Any, path: Path) -> dict[str, Any]:
    """What a model.json says of calibration, or nothing for files of earlier versions.

    Raises ModelError where a temperature or a threshold is not a number that makes sense.
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
    raise ModelError("its calibration makes no sense", "Copy the run folder again", path=path, code="E301")


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fit_temperature(truth: np.ndarray, probability: np.ndarray) -> float:
    """The temperature of least log-loss (Guo 2017, arXiv:1706.04599); a weak prior keeps it near 1 for few images."""
    from scipy.optimize import minimize_scalar

    log_probability = np.log(np.clip(probability, MIN_PROBABILITY, 1))

    def cost(log_temperature: float) -> float:
        likelihood = log_softmax(log_probability / math.exp(log_temperature), axis=1)[
            np.arange(len(truth)), truth
        ].sum()
        return log_temperature**2 / 2 - likelihood

    optimum = minimize_scalar(cost, bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)), method="bounded")
    return float(math.exp(optimum.x))


def scale_probabilities(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature, shape (n, k); a row of nan stays one."""
    return (
        probability
        if temperature == 1
        else softmax(np.log(np.clip(probability, MIN_PROBABILITY, 1)) / temperature, axis=1)
    )


def scale_predictions(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with their probabilities at another temperature."""
    scaled = scale_probabilities(predictions.probability, temperature)
    columns = {PROBABILITY_PREFIX + label: scaled[:, k] for k, label in enumerate(predictions.labels)}
    return Predictions(predictions.table.assign(**columns), predictions.labels)


def compute_calibration(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: Sequence[str]
) -> dict[str, Any]:
    """log_loss, brier (summed over classes, 0 to 2), ece with the `ece_chance` of perfect probabilities, and per class
    the slope and intercept of truth on log odds, each with its 95 % interval (1 and 0 are perfect).

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k). None where there is no image.
    """
    if not len(truth):
        return {"log_loss": None, "brier": None, "ece": None, "ece_chance": None, "per_class": {}}
    _, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    return {
        "log_loss": float(compute_log_losses(truth, probability).mean()),
        "brier": float(compute_brier_scores(truth, probability).mean()),
        "ece": compute_ece(probability.max(axis=1), probability.argmax(axis=1) == truth),
        "ece_chance": simulate_chance_ece(probability.max(axis=1)),
        "per_class": {
            label: fit_calibration_line(truth == k, probability[:, k], patient_index) for k, label in enumerate(labels)
        },
    }


def compute_log_losses(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's log-loss, in nats; shape (n,)."""
    return -np.log(np.clip(probability[np.arange(len(truth)), truth], MIN_PROBABILITY, 1))


def compute_brier_scores(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's squared distance from the truth, summed over classes (Brier 1950); shape (n,)."""
    distance = np.array(probability, float)
    distance[np.arange(len(truth)), truth] -= 1
    return np.square(distance, out=distance).sum(axis=1)


def compute_ece(confidence: np.ndarray, is_correct: np.ndarray) -> float:
    """Expected calibration error: mean distance between how sure and how right, over bins of equal width."""
    return float(_compute_each_ece(confidence, is_correct[None])[0])


def simulate_chance_ece(confidence: np.ndarray) -> float:
    """The calibration error that perfect probabilities of these images stay below in 95 of 100 draws."""
    rng, at_once = np.random.default_rng(SEED), max(1, CELLS // len(confidence))
    sizes = (min(at_once, N_SIMULATIONS - done) for done in range(0, N_SIMULATIONS, at_once))
    errors = [_compute_each_ece(confidence, rng.random((size, len(confidence))) < confidence) for size in sizes]
    return float(np.quantile(np.concatenate(errors), 0.95))


def _compute_each_ece(confidence: np.ndarray, is_correct: np.ndarray) -> np.ndarray:
    """`confidence`: (n,), `is_correct`: (draws, n)."""
    bin_index = np.clip(np.ceil(confidence * N_BINS).astype(int) - 1, 0, N_BINS - 1)
    bin_membership = np.eye(N_BINS)[bin_index]
    return np.abs((is_correct - confidence) @ bin_membership).sum(axis=1) / len(confidence)


def fit_calibration_line(
    positive: np.ndarray, probability: np.ndarray, patient_index: np.ndarray
) -> dict[str, list[float]] | None:
    """intercept and slope of a logistic line through truth and log odds (Cox 1958), each [value, low, high].

    `patient_index`: a number an image; images of one patient lean on each other, and the intervals know (Liang 1986).
    None where the class is absent, or told apart so well that no line can be fitted.
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
        step = np.linalg.solve(information, design_matrix.T @ (positive - predicted))
        coefficients = coefficients + step / max(1.0, np.abs(step).max())  # never more than one at once
        if np.abs(step).max() < 1e-8:
            standard_errors = _compute_clustered_errors(
                design_matrix * (positive - predicted)[:, None], information, patient_index
            )
            bounds = zip(
                coefficients, coefficients - Z_95 * standard_errors, coefficients + Z_95 * standard_errors, strict=True
            )
            return dict(zip(("intercept", "slope"), [[float(edge) for edge in row] for row in bounds], strict=True))
    return None


def _compute_clustered_errors(scores: np.ndarray, information: np.ndarray, patient_index: np.ndarray) -> np.ndarray:
    cluster_sums, inverse = np.zeros((patient_index.max() + 1, scores.shape[1])), np.linalg.inv(information)
    np.add.at(cluster_sums, patient_index, scores)
    return np.sqrt(np.diag(inverse @ (cluster_sums.T @ cluster_sums) @ inverse))
