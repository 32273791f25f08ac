"""Analytic intervals against published values and slower implementations."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fastcxr.metrics.analytic_intervals import auroc_interval, delong, logit_interval, newcombe, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # method 3 in table I of Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_intervals(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("n", "low"), [(10, 0.800), (20, 0.899), (50, 0.960), (100, 0.980)])
def test_newcombe_has_a_bound_at_an_auroc_of_0_and_1(n, low):
    assert newcombe(1.0, n, n) == (pytest.approx(low, abs=5e-4), 1.0)
    assert newcombe(0.0, n, n) == (0.0, pytest.approx(1 - low, abs=5e-4))


@pytest.mark.parametrize("auroc", [0.5, 0.7, 0.95])
def test_the_bounds_of_newcombe_solve_its_equation(auroc):
    for bound in newcombe(auroc, 30, 70):
        factor = 1 + 49 * (1 - bound) / (2 - bound) + 49 * bound / (1 + bound)
        variance = bound * (1 - bound) * factor / (30 * 70)
        assert abs(auroc - bound) == pytest.approx(norm.ppf(0.975) * variance**0.5, rel=1e-6)


def slow_delong(truth, score):
    """Return AUROC and variance from every pair of a positive and a negative image."""
    wins = np.array([[float(p > n) + 0.5 * (p == n) for n in score[~truth]] for p in score[truth]])
    return wins.mean(), wins.mean(axis=1).var(ddof=1) / len(wins) + wins.mean(axis=0).var(ddof=1) / len(wins.T)


@pytest.mark.parametrize("steps", [1000, 7])  # 7 steps: many ties
def test_delong_equals_the_comparison_of_all_pairs(steps):
    rng = np.random.default_rng(steps)
    truth = rng.random(80) < 0.3
    score = np.round(rng.normal(size=80) + truth, 3) if steps == 1000 else rng.integers(0, steps, 80) + 1.0 * truth
    assert delong(truth, score) == pytest.approx(slow_delong(truth, score))
    assert delong(truth, score)[0] == pytest.approx(roc_auc_score(truth, score))


def test_a_logit_interval_lies_within_0_and_1_and_contains_the_value():
    for value, error in ((0.99, 0.05), (0.01, 0.05), (0.5, 0.01)):
        low, high = logit_interval(value, error)
        assert 0 < low < value < high < 1
    low, high = logit_interval(0.5, 0.01)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * 0.01, rel=1e-3), "at 0.5 it equals the Wald interval"


def test_a_perfect_auroc_and_a_class_with_one_image_have_an_interval():
    truth = np.arange(40) < 20
    assert auroc_interval(truth, truth.astype(float)) == newcombe(1.0, 20, 20)
    one, score = np.arange(40) == 5, np.arange(40.0)
    low, high = auroc_interval(one, score)
    assert 0 < low < roc_auc_score(one, score) < high < 1
