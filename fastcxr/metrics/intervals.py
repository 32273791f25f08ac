"""From truth, probabilities and patients to a 95 % confidence interval of every figure, and the unit that it rests on.

Where each patient has one image: Wilson for a proportion, logit-DeLong for an AUROC (Newcombe at 0 or 1). Whatever has
no formula, and everything where a patient has several images, comes from draws of patients with replacement; at 0 or 1,
where all draws agree, patients stand for images in the formula.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastcxr.metrics.analytic_intervals import Interval, auroc_interval, logit_interval, newcombe, wilson
from fastcxr.metrics.bootstrap import DRAWS, draw_weights, is_among_two, redraw

SEED = 0
UNBOUNDED = ("calibration.log_loss", "calibration.brier")
FEWEST_PATIENTS = 2
FEWEST_DRAWS = DRAWS // 2  # that must define a figure


def find_intervals(
    truth: np.ndarray,
    probability: np.ndarray,
    labels: Sequence[str],
    patients: Sequence[str],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """`unit` (image or patient), `level`, and `of`: [low, high] under the dotted name of each figure.

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k). `figures`: what `measure` says of them.
    A figure that is None, or undefined in half of the draws, has no interval.
    """
    patients = np.asarray(patients)
    names, place = np.unique(patients, return_inverse=True)
    if len(names) < FEWEST_PATIENTS:
        return {"unit": "patient", "level": 0.95, "of": {}}
    clustered = len(names) < len(patients)
    values = flatten(figures)
    found = {
        name: interval
        for name, draws in redraw(truth, probability, labels, patients, SEED).items()
        if (interval := _of_draws(values.get(name), draws, name not in UNBOUNDED)) is not None
    }
    by_formula = _formulas(truth, probability, labels, place if clustered else None)
    by_formula |= _perfect(by_formula, values, labels)
    for name, interval in by_formula.items():
        is_end = values.get(name) in (0.0, 1.0)  # where all draws say the same
        if values.get(name) is not None and (not clustered or is_end):
            found[name] = interval
    ordered = {name: [float(edge) for edge in found[name]] for name in values if name in found}
    return {"unit": "patient" if clustered else "image", "level": 0.95, "of": ordered}


def share_interval(hits: np.ndarray, among: np.ndarray, patients: np.ndarray) -> Interval:
    """95 % interval of the share of `hits` among the images of `among`, at least one; both booleans, shape (n,)."""
    _, place = np.unique(patients, return_inverse=True)
    clustered = place.max() + 1 < len(place)
    share = (hits & among).sum() / among.sum()
    if not clustered or share in (0, 1):
        return _proportion(hits, among, place if clustered else None)
    with np.errstate(invalid="ignore"):
        parts = [(weights @ (hits & among)) / (weights @ among) for weights in draw_weights(patients, SEED)]
    found = _of_draws(float(share), np.concatenate(parts), True)
    return found or _proportion(hits, among, place)


def flatten(figures: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Numbers inside mappings, under their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{name}.")
        elif value is None or isinstance(value, int | float):
            flat[above + name] = value
    return flat


def _of_draws(value: float | None, draws: np.ndarray, is_share: bool) -> Interval | None:
    """The draws' spread around a share, on the scale of log odds, which covers better; a loss has the draws' own."""
    draws = draws[np.isfinite(draws)]
    if value is None or len(draws) < FEWEST_DRAWS:
        return None
    if not is_share:
        return tuple(np.quantile(draws, [0.025, 0.975]))
    return logit_interval(value, float(draws.std(ddof=1))) if 0 < value < 1 else None


def _formulas(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], place: np.ndarray | None
) -> dict[str, Interval]:
    """Intervals by formula. `place`: of each image's patient, who then counts once; None: images are independent."""
    guess = probability.argmax(axis=1)
    found = {"accuracy": _proportion(truth == guess, np.ones(len(truth), bool), place)}
    if len(labels) > 2:
        found["top2_accuracy"] = _proportion(is_among_two(truth, probability), np.ones(len(truth), bool), place)
    for k, label in enumerate(labels):
        positive, named = truth == k, guess == k
        parts = {"sensitivity": (named, positive), "specificity": (~named, ~positive), "precision": (positive, named)}
        found |= {
            f"per_class.{label}.{name}": _proportion(*part, place) for name, part in parts.items() if part[1].any()
        }
        if positive.any() and not positive.all():
            found[f"auroc.per_class.{label}"] = _ranked(positive, probability[:, k], place)
    return found


def _perfect(found: Mapping[str, Interval], values: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Interval]:
    """Means of perfect figures, of which draws know nothing: their parts' lower bounds all at once, a wide guess."""
    parts = {
        "balanced_accuracy": [f"per_class.{label}.sensitivity" for label in labels],
        "auroc.macro": [f"auroc.per_class.{label}" for label in labels],
    }
    parts |= {
        f"per_class.{label}.f1": [f"per_class.{label}.sensitivity", f"per_class.{label}.precision"] for label in labels
    }
    lows = {name: [found[part][0] for part in of if part in found] for name, of in parts.items()}
    return {name: (float(np.mean(low)), 1.0) for name, low in lows.items() if low and values.get(name) == 1}


def _proportion(hits: np.ndarray, among: np.ndarray, place: np.ndarray | None) -> Interval:
    n = among.sum() if place is None else len(np.unique(place[among]))
    return wilson(n * (hits & among).sum() / among.sum(), n)


def _ranked(positive: np.ndarray, score: np.ndarray, place: np.ndarray | None) -> Interval:
    if place is None:
        return auroc_interval(positive, score)
    # only asked for at 0 or 1, where no draw has anything to add
    is_perfect = score[positive].min() > score[~positive].max()
    return newcombe(float(is_perfect), len(np.unique(place[positive])), len(np.unique(place[~positive])))
