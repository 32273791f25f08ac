"""Confidence intervals by formula, for images that are independent of each other."""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri  # scipy.stats and scipy.optimize take a second to import: only where they are used

Z_95 = float(ndtri(0.975))
Interval = tuple[float, float]


def wilson(n_hits: float, n: float) -> Interval:
    """Return the 95 % score interval of a proportion (Wilson 1927, doi:10.1080/01621459.1927.10502953); n >= 1."""
    proportion, z_squared = n_hits / n, Z_95**2
    midpoint = (proportion + z_squared / (2 * n)) / (1 + z_squared / n)
    half_width = Z_95 / (1 + z_squared / n) * math.sqrt(proportion * (1 - proportion) / n + z_squared / (4 * n**2))
    # at 0 and n hits the formula gives exactly 0 and 1, but with a rounding error
    return (0.0 if n_hits == 0 else midpoint - half_width, 1.0 if n_hits == n else midpoint + half_width)


def newcombe(auroc: float, n_positives: int, n_negatives: int) -> Interval:
    """Return the 95 % interval of an AUROC from its value and the two counts; defined at 0 and 1 too.

    Method 5 of Newcombe 2006 (doi:10.1002/sim.2324): the variance of Hanley and McNeil at each bound, with both counts
    replaced by their mean.
    """
    n_mean_minus_one = (n_positives + n_negatives) / 2 - 1

    def distance(bound: float) -> float:
        variance_factor = 1 + n_mean_minus_one * (1 - bound) / (2 - bound) + n_mean_minus_one * bound / (1 + bound)
        variance = bound * (1 - bound) * variance_factor / (n_positives * n_negatives)
        return (auroc - bound) ** 2 - Z_95**2 * variance

    return _solve_bound(distance, 0.0, auroc), _solve_bound(distance, 1.0, auroc)


def _solve_bound(distance: Callable[[float], float], end: float, auroc: float) -> float:
    if auroc == end:
        return end
    from scipy.optimize import root_scalar

    start = auroc + (end - auroc) * 1e-12  # an AUROC of 0 or 1 is itself a second root
    return root_scalar(distance, bracket=(end, start), method="brentq").root if distance(start) < 0 else end


def delong(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Return the AUROC and its variance, NaN for a class with one image.

    DeLong 1988 (doi:10.2307/2531595), computed from midranks (Sun 2014, doi:10.1109/LSP.2014.2337313).

    Args:
        truth: booleans, shape (n,), with both values.
        score: shape (n,), higher for positive images.
    """
    auroc, of_positives, of_negatives = compute_placements(truth, score)
    variances = [part.var(ddof=1) / len(part) if len(part) > 1 else math.nan for part in (of_positives, of_negatives)]
    return auroc, float(sum(variances))


def compute_placements(truth: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the AUROC, the share of negatives below each positive, and the share of positives above each negative."""
    from scipy.stats import rankdata

    positive, negative = score[truth], score[~truth]
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positives = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    of_negatives = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return float(of_positives.mean()), of_positives, of_negatives


def logit_interval(value: float, standard_error: float) -> Interval:
    """Return the 95 % interval that is symmetric on the logit scale and therefore lies within 0 and 1."""
    midpoint, half_width = math.log(value / (1 - value)), Z_95 * standard_error / (value * (1 - value))
    return 1 / (1 + math.exp(half_width - midpoint)), 1 / (1 + math.exp(-midpoint - half_width))


def auroc_interval(truth: np.ndarray, score: np.ndarray) -> Interval:
    """Return the logit-DeLong interval of an AUROC; Newcombe's at 0 and 1 and where DeLong's variance is undefined."""
    auroc, variance = delong(truth, score)
    if 0 < auroc < 1 and variance > 0:
        return logit_interval(auroc, math.sqrt(variance))
    return newcombe(auroc, int(truth.sum()), int((~truth).sum()))
