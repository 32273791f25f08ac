"""Every metric has a reproducible interval that is clustered by patient."""

import json

import numpy as np
import pandas as pd
import pytest
from recording_progress import peak_memory

from fastcxr.metrics import bootstrap
from fastcxr.metrics.analytic_intervals import auroc_interval, newcombe, wilson
from fastcxr.metrics.calibration import compute_calibration
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.metrics.intervals import confidence_intervals, flatten
from fastcxr.metrics.scored_images import ScoredImages

LABELS = ["a", "b", "c"]


def draw(n=120, k=3, seed=0, signal=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    probability = rng.dirichlet(np.ones(k), n)
    probability[np.arange(n), truth] += signal
    return truth, np.round(probability / probability.sum(axis=1, keepdims=True), 2)  # rounded: with ties


def compute_intervals(truth, probability, patients, labels=LABELS):
    images = ScoredImages(truth, probability, labels, np.asarray(patients))
    return confidence_intervals(images, compute_metrics(truth, probability, labels))


def test_weighted_metrics_equal_those_of_repeated_images():
    truth, probability = draw()
    weights = np.random.default_rng(1).integers(0, 4, (5, 120)).astype(float)
    drawn = bootstrap.MetricInputs.of(truth, probability, LABELS).compute(weights)
    for row, times in enumerate(weights.astype(int)):
        images = np.repeat(truth, times), np.repeat(probability, times, axis=0), LABELS
        expected = flatten(
            compute_metrics(*images) | {"calibration": compute_calibration(*images, np.arange(times.sum()))}
        )
        assert {name: column[row] for name, column in drawn.items()} == pytest.approx(
            {name: expected[name] for name in drawn}
        )


def test_metrics_do_not_depend_on_the_number_of_draws_in_memory(monkeypatch):
    truth, probability = draw()
    patients = np.arange(120) // 2
    inputs = bootstrap.MetricInputs.of(truth, probability, LABELS)
    whole = bootstrap.bootstrap_metrics(inputs, patients, 0)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS_IN_MEMORY", 7 * 120)
    for name, pieces in bootstrap.bootstrap_metrics(inputs, patients, 0).items():
        np.testing.assert_allclose(pieces, whole[name], rtol=0, atol=1e-12)


def test_memory_does_not_grow_with_the_number_of_pairs_of_classes(monkeypatch):
    monkeypatch.setattr(bootstrap, "N_DRAWS", 20)
    truth, probability = draw(n=3000, k=100)
    labels = [f"class {k}" for k in range(100)]

    def draw_all():
        bootstrap.bootstrap_metrics(bootstrap.MetricInputs.of(truth, probability, labels), np.arange(3000), 0)

    peak = peak_memory(draw_all)
    assert peak < 40e6, "indicators of all pairs of classes would take 240 MB, and their product 800 MB"


def test_metrics_of_a_class_are_undefined_in_a_draw_without_it():
    truth, probability = draw()
    weights = np.where(truth == 2, 0.0, 1.0)[None]
    images = bootstrap.MetricInputs.of(truth, probability, LABELS)
    drawn = {name: column[0] for name, column in images.compute(weights).items()}
    assert np.isnan([drawn["per_class.c.sensitivity"], drawn["auroc.per_class.c"], drawn["per_class.c.f1"]]).all()
    kept = truth != 2
    expected = compute_metrics(truth[kept], probability[kept], LABELS)
    assert drawn["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])
    assert drawn["auroc.macro"] == pytest.approx(expected["auroc"]["macro"])


def test_all_images_of_a_patient_are_drawn_together(monkeypatch):
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS_IN_MEMORY", 70)  # a few draws at a time
    patients = np.array(["p", "q", "p", "r", "q", "p", "s"])
    weights = np.concatenate(list(bootstrap.draw_bootstrap_weights(patients, 0)))
    assert weights.shape == (bootstrap.N_DRAWS, 7)
    assert (weights[:, [0]] == weights[:, [2, 5]]).all() and (weights[:, [1]] == weights[:, [4]]).all()
    assert (weights[:, [0, 1, 3, 6]].sum(axis=1) == 4).all()


def test_with_one_image_per_patient_proportions_and_aurocs_use_formulas():
    truth, probability = draw()
    found = compute_intervals(truth, probability, [f"p{i}" for i in range(120)])
    hits = (probability.argmax(axis=1) == truth).sum()
    assert found["unit"] == "image"
    assert found["of"]["accuracy"] == pytest.approx(list(wilson(hits, 120)))
    assert found["of"]["auroc.per_class.b"] == pytest.approx(list(auroc_interval(truth == 1, probability[:, 1])))
    low, high = found["of"]["auroc.macro"]
    assert low < compute_metrics(truth, probability, LABELS)["auroc"]["macro"] < high


def test_repeated_images_of_a_patient_do_not_narrow_intervals():
    truth, probability = draw(40)
    single = compute_intervals(truth, probability, [f"p{i}" for i in range(40)])
    repeated = compute_intervals(np.tile(truth, 5), np.tile(probability, (5, 1)), [f"p{i}" for i in range(40)] * 5)
    assert repeated["unit"] == "patient"
    for name in ("accuracy", "auroc.per_class.a", "per_class.b.specificity"):
        widths = [high - low for low, high in (single["of"][name], repeated["of"][name])]
        assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_every_printed_metric_lies_in_its_interval():
    truth, probability = draw(60, seed=3)
    metrics = flatten(compute_metrics(truth, probability, LABELS))
    found = compute_intervals(truth, probability, [f"p{i // 2}" for i in range(60)])["of"]
    without_interval = {name for name in metrics if name not in found}
    assert without_interval == {f"per_class.{label}.{name}" for label in LABELS for name in ("recall", "support")} | {
        "auroc.micro", "average_precision.micro",
    }  # fmt: skip
    assert all(0 <= found[name][0] < metrics[name] < found[name][1] <= 1 for name in found)


def test_a_perfect_model_has_lower_bounds_below_1():
    truth = np.repeat([0, 1, 2], 20)
    patients = [f"p{i // 2}" for i in range(60)]
    found = compute_intervals(truth, np.eye(3)[truth], patients)["of"]
    assert found["accuracy"] == pytest.approx([wilson(30, 30)[0], 1.0])
    assert found["auroc.per_class.a"] == pytest.approx([newcombe(1.0, 10, 20)[0], 1.0])
    for name in ("auroc.macro", "balanced_accuracy", "per_class.a.f1"):
        assert 0.5 < found[name][0] < 0.95 and found[name][1] == 1
    assert "average_precision.per_class.a" not in found, "no formula, and all draws are equal"


def test_the_same_predictions_give_the_same_intervals():
    truth, probability = draw()
    patients = [f"p{i // 3}" for i in range(120)]
    assert compute_intervals(truth, probability, patients) == compute_intervals(truth, probability, patients)


@pytest.mark.parametrize("patients", [["p"] * 6, ["p0", "p0", "p0", "p1", "p1", "p1"]])
def test_one_class_has_no_auroc_interval_and_one_patient_has_no_interval(patients):
    truth, probability = np.zeros(6, int), np.full((6, 2), 0.5)
    found = compute_intervals(truth, probability, patients, ["a", "b"])
    assert not {name for name in found["of"] if name.startswith("auroc")}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not found["of"] or len(set(patients)) > 1


def test_a_split_without_images_has_no_intervals():
    assert (
        compute_intervals(np.zeros(0, int), np.zeros((0, 2)), pd.Series([], dtype=str).tolist(), ["a", "b"])["of"] == {}
    )


@pytest.mark.parametrize("k", [2, 3])
def test_formulas_of_large_sets_agree_with_the_bootstrap_of_classes(k, monkeypatch):
    truth, probability = draw(2400, k)
    patients, labels = np.arange(2400) // 2, LABELS[:k]
    drawn = compute_intervals(truth, probability, patients, labels)
    assert "method" not in drawn, "the intervals of small sets are unchanged"
    for module in ("bootstrap", "intervals"):
        monkeypatch.setattr(f"fastcxr.metrics.{module}.MAX_BOOTSTRAP_PATIENTS", 1000)
    large = compute_intervals(truth, probability, patients, labels)
    assert large["n_draws"] == bootstrap.N_DRAWS_OF_LARGE_SETS and "Obuchowski" in large["method"]
    assert list(large["of"]) == list(drawn["of"])
    for name, (low, high) in drawn["of"].items():
        tolerance = 0.08 if name.startswith("auroc") else 0.35  # 200 draws have a standard error of 5 % of the width
        assert large["of"][name] == pytest.approx((low, high), abs=tolerance * (high - low)), name


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_without_rankings_only_the_intervals_of_average_precision_are_missing(monkeypatch, is_multi_label):
    monkeypatch.setattr("fastcxr.metrics.intervals.MAX_BOOTSTRAP_PATIENTS", 20)
    truth, probability = draw(n=200)
    known = np.where(np.arange(200)[:, None] % 7 == 0, np.nan, truth[:, None] == np.arange(len(LABELS)))
    images = ScoredImages(known if is_multi_label else truth, probability, LABELS, np.arange(200) // 2)
    metrics = compute_image_metrics(images)
    full, part = (confidence_intervals(images, metrics, with_rankings=flag)["of"] for flag in (True, False))
    assert part == {name: interval for name, interval in full.items() if "average_precision" not in name}
    assert "auroc.macro" in part
