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
from fastcxr.metrics.analytic_intervals import Z
from fastcxr.metrics.predictions import PREFIX, Predictions

SMALLEST = 1e-12  # a probability of nothing would make one mistake cost infinitely much
LOWEST, HIGHEST = 0.05, 20.0  # temperatures
FEWEST = 30  # validation images, below which a temperature would be guessed
BINS = 15
DRAWS, SEED = 1000, 0
CELLS = 1 << 20  # random numbers in memory at once (8 MiB as float64)
STEPS, STEEPEST, WORST = 100, 50.0, 1e12  # of Newton's method; a slope or condition beyond: nothing overlaps


def fit_calibration(predictions: Predictions) -> dict[str, Any]:
    """`temperature`, and the `images` and `patients` of the validation split that it was fitted on.

    Without enough of them the temperature is 1, and `reason` says why.
    """
    part = predictions.part("valid").scored()
    counts = {"images": len(part.table), "patients": int(part.table["patient"].nunique())}
    if len(part.table) < FEWEST:
        return {"temperature": 1.0, **counts, "reason": f"fewer than {FEWEST} validation images"}
    return {"temperature": fit_temperature(part.truth, part.probability), **counts}


def check_calibration(given: Any, path: Path) -> dict[str, Any]:
    """What a model.json says of calibration, or nothing for files of earlier versions.

    Raises ModelError where a temperature or a threshold is not a number that makes sense.
    """
    if given is None:
        return {}
    thresholds = given.get("thresholds", {}) if isinstance(given, Mapping) else None
    rows = list(thresholds.values()) if isinstance(thresholds, Mapping) else [None]
    if (
        all(isinstance(row, Mapping) and _is_number(row.get("threshold")) for row in rows)
        and _is_number(given.get("temperature", 1.0))
        and given.get("temperature", 1.0) > 0
        and (given.get("uncertain_below") is None or _is_number(given["uncertain_below"]))
    ):
        return dict(given)
    raise ModelError("its calibration makes no sense", "Copy the run folder again", path=path, code="E301")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fit_temperature(truth: np.ndarray, probability: np.ndarray) -> float:
    """The temperature of least log-loss (Guo 2017, arXiv:1706.04599); a weak prior keeps it near 1 for few images."""
    from scipy.optimize import minimize_scalar

    logs = np.log(np.clip(probability, SMALLEST, 1))

    def cost(log_temperature: float) -> float:
        likelihood = log_softmax(logs / math.exp(log_temperature), axis=1)[np.arange(len(truth)), truth].sum()
        return log_temperature**2 / 2 - likelihood

    found = minimize_scalar(cost, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return float(math.exp(found.x))


def scale(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature, shape (n, k); a row of nan stays one."""
    return probability if temperature == 1 else softmax(np.log(np.clip(probability, SMALLEST, 1)) / temperature, axis=1)


def scale_predictions(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with their probabilities at another temperature."""
    scaled = scale(predictions.probability, temperature)
    columns = {PREFIX + label: scaled[:, k] for k, label in enumerate(predictions.labels)}
    return Predictions(predictions.table.assign(**columns), predictions.labels)


def measure_calibration(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: Sequence[str]
) -> dict[str, Any]:
    """log_loss, brier (summed over classes, 0 to 2), ece with the `ece_chance` of perfect probabilities, and per class
    the slope and intercept of truth on log odds, each with its 95 % interval (1 and 0 are perfect).

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k). None where there is no image.
    """
    if not len(truth):
        return {"log_loss": None, "brier": None, "ece": None, "ece_chance": None, "per_class": {}}
    _, place = np.unique(np.asarray(patients), return_inverse=True)
    return {
        "log_loss": float(image_losses(truth, probability).mean()),
        "brier": float(image_briers(truth, probability).mean()),
        "ece": calibration_error(probability.max(axis=1), probability.argmax(axis=1) == truth),
        "ece_chance": chance_error(probability.max(axis=1)),
        "per_class": {label: fit_line(truth == k, probability[:, k], place) for k, label in enumerate(labels)},
    }


def image_losses(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's log-loss, in nats; shape (n,)."""
    return -np.log(np.clip(probability[np.arange(len(truth)), truth], SMALLEST, 1))


def image_briers(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Each image's squared distance from the truth, summed over classes (Brier 1950); shape (n,)."""
    distance = np.array(probability, float)
    distance[np.arange(len(truth)), truth] -= 1
    return np.square(distance, out=distance).sum(axis=1)


def calibration_error(sure: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: mean distance between how sure and how right, over bins of equal width."""
    return float(_errors(sure, right[None])[0])


def chance_error(sure: np.ndarray) -> float:
    """The calibration error that perfect probabilities of these images stay below in 95 of 100 draws."""
    rng, at_once = np.random.default_rng(SEED), max(1, CELLS // len(sure))
    sizes = (min(at_once, DRAWS - done) for done in range(0, DRAWS, at_once))
    errors = [_errors(sure, rng.random((size, len(sure))) < sure) for size in sizes]
    return float(np.quantile(np.concatenate(errors), 0.95))


def _errors(sure: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`sure`: (n,), `right`: (draws, n)."""
    place = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    member = np.eye(BINS)[place]
    return np.abs((right - sure) @ member).sum(axis=1) / len(sure)


def fit_line(positive: np.ndarray, probability: np.ndarray, patient: np.ndarray) -> dict[str, list[float]] | None:
    """intercept and slope of a logistic line through truth and log odds (Cox 1958), each [value, low, high].

    `patient`: a number an image; images of one patient lean on each other, and the intervals know (Liang 1986).
    None where the class is absent, or told apart so well that no line can be fitted.
    """
    if positive.all() or not positive.any():
        return None
    odds = logit(np.clip(probability, SMALLEST, 1 - SMALLEST))
    columns, weights = np.stack([np.ones_like(odds), odds], axis=1), np.array([0.0, 1.0])
    for _ in range(STEPS):
        guess = expit(columns @ weights)
        information = columns.T @ (columns * (guess * (1 - guess))[:, None])
        if abs(weights[1]) > STEEPEST or np.linalg.cond(information) > WORST:
            return None
        step = np.linalg.solve(information, columns.T @ (positive - guess))
        weights = weights + step / max(1.0, np.abs(step).max())  # never more than one at once
        if np.abs(step).max() < 1e-8:
            errors = _clustered_errors(columns * (positive - guess)[:, None], information, patient)
            edges = zip(weights, weights - Z * errors, weights + Z * errors, strict=True)
            return dict(zip(("intercept", "slope"), [[float(edge) for edge in row] for row in edges], strict=True))
    return None


def _clustered_errors(scores: np.ndarray, information: np.ndarray, patient: np.ndarray) -> np.ndarray:
    sums, inverse = np.zeros((patient.max() + 1, scores.shape[1])), np.linalg.inv(information)
    np.add.at(sums, patient, scores)
    return np.sqrt(np.diag(inverse @ (sums.T @ sums) @ inverse))
