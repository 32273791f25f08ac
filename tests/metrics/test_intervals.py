"""Every figure has an interval that rests on patients, is the same each time, and claims nothing draws cannot know."""

import json

import numpy as np
import pandas as pd
import pytest
from recording_progress import peak_memory

from fastcxr.metrics import bootstrap
from fastcxr.metrics.analytic_intervals import auroc_interval, newcombe, wilson
from fastcxr.metrics.calibration import compute_calibration
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals, flatten

LABELS = ["a", "b", "c"]


def draw(n=120, k=3, seed=0, help=0.3):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    probability = rng.dirichlet(np.ones(k), n)
    probability[np.arange(n), truth] += help
    return truth, np.round(probability / probability.sum(axis=1, keepdims=True), 2)  # rounded: with ties


def intervals(truth, probability, patients, labels=LABELS):
    return confidence_intervals(truth, probability, labels, patients, compute_metrics(truth, probability, labels))


def test_drawn_figures_are_those_of_the_images_repeated():
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


def test_metrics_of_a_draw_are_the_same_whatever_number_of_draws_is_in_memory(monkeypatch):
    truth, probability = draw()
    patients = np.arange(120) // 2
    whole = bootstrap.bootstrap_metrics(truth, probability, LABELS, patients, 0)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS_IN_MEMORY", 7 * 120)
    for name, pieces in bootstrap.bootstrap_metrics(truth, probability, LABELS, patients, 0).items():
        np.testing.assert_allclose(pieces, whole[name], rtol=0, atol=1e-12)


def test_a_hundred_classes_take_no_memory_for_each_pair_of_classes(monkeypatch):
    monkeypatch.setattr(bootstrap, "N_DRAWS", 20)
    truth, probability = draw(n=3000, k=100)
    labels = [f"class {k}" for k in range(100)]
    peak = peak_memory(lambda: bootstrap.bootstrap_metrics(truth, probability, labels, np.arange(3000), 0))
    assert peak < 40e6, "indicators of all pairs of classes would take 240 MB, and their table 800 MB"


def test_a_draw_that_lacks_a_class_leaves_its_figures_undefined():
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


def test_where_each_patient_has_one_image_proportions_and_aurocs_come_from_formulas():
    truth, probability = draw()
    found = intervals(truth, probability, [f"p{i}" for i in range(120)])
    hits = (probability.argmax(axis=1) == truth).sum()
    assert found["unit"] == "image"
    assert found["of"]["accuracy"] == pytest.approx(list(wilson(hits, 120)))
    assert found["of"]["auroc.per_class.b"] == pytest.approx(list(auroc_interval(truth == 1, probability[:, 1])))
    low, high = found["of"]["auroc.macro"]
    assert low < compute_metrics(truth, probability, LABELS)["auroc"]["macro"] < high


def test_images_that_repeat_their_patients_make_intervals_no_narrower():
    truth, probability = draw(40)
    alone = intervals(truth, probability, [f"p{i}" for i in range(40)])
    five = intervals(np.tile(truth, 5), np.tile(probability, (5, 1)), [f"p{i}" for i in range(40)] * 5)
    assert five["unit"] == "patient"
    for name in ("accuracy", "auroc.per_class.a", "per_class.b.specificity"):
        widths = [high - low for low, high in (alone["of"][name], five["of"][name])]
        assert widths[1] == pytest.approx(widths[0], rel=0.15), "copies of an image say nothing new"


def test_every_printed_figure_has_an_interval_that_holds_it():
    truth, probability = draw(60, seed=3)
    figures = flatten(compute_metrics(truth, probability, LABELS))
    found = intervals(truth, probability, [f"p{i // 2}" for i in range(60)])["of"]
    silent = {name for name in figures if name not in found}
    assert silent == {f"per_class.{label}.{name}" for label in LABELS for name in ("recall", "support")} | {
        "auroc.micro", "average_precision.micro",
    }  # fmt: skip
    assert all(0 <= found[name][0] < figures[name] < found[name][1] <= 1 for name in found)


def test_a_perfect_model_is_not_called_certain():
    truth = np.repeat([0, 1, 2], 20)
    patients = [f"p{i // 2}" for i in range(60)]
    found = intervals(truth, np.eye(3)[truth], patients)["of"]
    assert found["accuracy"] == pytest.approx([wilson(30, 30)[0], 1.0])
    assert found["auroc.per_class.a"] == pytest.approx([newcombe(1.0, 10, 20)[0], 1.0])
    for name in ("auroc.macro", "balanced_accuracy", "per_class.a.f1"):
        assert 0.5 < found[name][0] < 0.95 and found[name][1] == 1
    assert "average_precision.per_class.a" not in found, "no formula, and draws that all agree"


def test_the_same_predictions_give_the_same_intervals():
    truth, probability = draw()
    patients = [f"p{i // 3}" for i in range(120)]
    assert intervals(truth, probability, patients) == intervals(truth, probability, patients)


@pytest.mark.parametrize("patients", [["p"] * 6, ["p0", "p0", "p0", "p1", "p1", "p1"]])
def test_one_class_or_one_patient_gives_no_invented_interval(patients):
    truth, probability = np.zeros(6, int), np.full((6, 2), 0.5)
    found = intervals(truth, probability, patients, ["a", "b"])
    assert not {name for name in found["of"] if name.startswith("auroc")}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert not found["of"] or len(set(patients)) > 1


def test_no_image_at_all_is_no_error():
    assert intervals(np.zeros(0, int), np.zeros((0, 2)), pd.Series([], dtype=str).tolist(), ["a", "b"])["of"] == {}
