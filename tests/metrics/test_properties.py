"""Properties of metrics and intervals for random predictions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcxr.metrics.analytic_intervals import auroc_interval, newcombe, wilson
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals, flatten
from fastcxr.metrics.scored_images import ScoredImages

LABELS = ["a", "b", "c"]


@st.composite
def scores(draw, max_size=40):
    """Draw the truth of two classes, both present, and scores in steps of a tenth, with ties."""
    truth = np.array([0, 1, *draw(st.lists(st.integers(0, 1), max_size=max_size))])
    steps = draw(st.lists(st.integers(0, 10), min_size=len(truth), max_size=len(truth)))
    return truth, np.array(steps) / 10


def compute_auroc(truth, score):
    return compute_metrics(truth, np.stack([1 - score, score], axis=1), ["no", "yes"])["auroc"]["per_class"]["yes"]


@given(scores())
@settings(max_examples=60, deadline=None)
def test_swapping_the_classes_gives_1_minus_the_auroc_and_its_interval(example):
    truth, score = example
    assert compute_auroc(1 - truth, score) == pytest.approx(1 - compute_auroc(truth, score))
    low, high = auroc_interval(truth == 1, score)
    assert auroc_interval(truth == 0, score) == pytest.approx((1 - high, 1 - low), abs=1e-6)


@given(scores(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_images_does_not_matter(example, random):
    truth, score = example
    order = list(range(len(truth)))
    random.shuffle(order)
    probability = np.stack([1 - score, score], axis=1)
    one, other = (
        compute_metrics(truth, probability, ["no", "yes"]),
        compute_metrics(truth[order], probability[order], ["no", "yes"]),
    )
    assert one["auroc"]["per_class"] == pytest.approx(other["auroc"]["per_class"])
    assert one["accuracy"] == pytest.approx(other["accuracy"])
    assert auroc_interval(truth == 1, score) == pytest.approx(auroc_interval(truth[order] == 1, score[order]), abs=1e-9)


@given(scores())
@settings(max_examples=80, deadline=None)
def test_an_auroc_lies_in_its_interval_and_both_between_0_and_1(example):
    truth, score = example
    low, high = auroc_interval(truth == 1, score)
    assert 0 <= low <= compute_auroc(truth, score) <= high <= 1


@given(st.integers(1, 300), st.data())
def test_wilson_contains_the_proportion_and_narrows_with_more_images(n, data):
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    smaller, larger = wilson(2 * hits, 2 * n)
    assert larger - smaller < high - low


@given(st.floats(0, 1), st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_newcombe_contains_the_auroc(auroc, positives, negatives):
    low, high = newcombe(auroc, positives, negatives)
    assert 0 <= low <= auroc + 1e-9 and auroc - 1e-9 <= high <= 1


@given(st.integers(0, 10**6), st.integers(6, 40), st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_every_interval_of_a_split_contains_its_metric(seed, n, images):
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.ones(3), n)
    truth = rng.integers(0, 3, n)
    metrics = compute_metrics(truth, probability, LABELS)
    patients = np.array([f"p{i // images}" for i in range(n)])
    found = confidence_intervals(ScoredImages(truth, probability, LABELS, patients), metrics)["of"]
    flat = flatten(metrics)
    assert found
    for name, (low, high) in found.items():
        assert 0 <= low <= flat[name] <= high <= 1, name
