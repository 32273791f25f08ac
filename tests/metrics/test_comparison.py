"""Models are compared on shared images with the same draws of patients; a difference within chance is a tie."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from fastcxr.errors import DataError
from fastcxr.metrics import bootstrap
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.comparison import compare_models, holm
from fastcxr.metrics.predictions import Predictions, make_predictions

LABELS = ("a", "b")


def draw(noise, seed, n=200, truth_seed=0, split="test", labels=LABELS):
    truth = np.random.default_rng(truth_seed).integers(0, 2, n)
    score = 1 / (1 + np.exp(-(2 * truth - 1) - noise * np.random.default_rng(seed).normal(size=n)))
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i:03}.png" for i in range(n)], "label": np.array(LABELS)[truth],
        "patient": [f"p{i // 2}" for i in range(n)], "split": split,
    })  # fmt: skip
    columns = {"a": 1 - score, "b": score}
    return make_predictions(rows, np.stack([columns[label] for label in labels], axis=1), labels)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(bootstrap, "N_DRAWS", 400)


def test_a_clearly_better_model_is_ranked_first_without_a_tie():
    found = compare_models({"poor": draw(6, 1), "good": draw(0.5, 2)})
    assert [row["name"] for row in found.rows] == ["good", "poor"]
    poor = found.rows[1]
    assert not poor["auroc_tie"] and poor["auroc_p"] < 0.001
    assert poor["auroc_difference"][0] == pytest.approx(found.rows[0]["auroc"][0] - poor["auroc"][0])
    assert 0 < poor["auroc_difference"][1] < poor["auroc_difference"][0] < poor["auroc_difference"][2]
    assert (found.n_shared_images, found.n_patients) == (200, 100)


def is_tie(seed):
    pair = {"x": draw(2, 2 * seed, truth_seed=seed), "y": draw(2, 2 * seed + 1, truth_seed=seed)}
    return compare_models(pair).rows[1]["auroc_tie"]


@pytest.mark.slow
def test_two_equal_models_are_mostly_a_tie():
    assert np.mean([is_tie(seed) for seed in range(40)]) >= 0.9


def test_few_patients_widen_the_interval_of_a_difference_as_students_distribution_requires():
    models = {"x": draw(1, 1, n=20), "y": draw(3, 2, n=20)}
    is_correct = [model.probability.argmax(axis=1) == model.class_index for model in models.values()]
    differences = np.subtract(*is_correct, dtype=float)
    patient_sums = (differences - differences.mean()).reshape(10, 2).sum(axis=1)
    error = np.sqrt((patient_sums**2).sum() * 10 / 9) / 20  # cluster-robust, closed form
    _, low, high = compare_models(models).rows[1]["accuracy_difference"]
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, 9) * error, rel=0.1)


def test_equal_predictions_are_a_tie_with_a_difference_of_0():
    row = compare_models({"x": draw(1, 1), "y": draw(1, 1)}).rows[1]
    assert row["auroc_difference"] == [0, 0, 0] and row["auroc_p"] == 1 and row["accuracy_tie"]


def test_only_shared_images_count_in_any_order():
    x, y = draw(1, 1), draw(2, 2)
    some = Predictions(y.table.sample(frac=0.5, random_state=0).reset_index(drop=True), y.labels)
    found = compare_models({"x": x, "y": some})
    assert found.n_shared_images == 100
    kept = x.table[x.table["path"].isin(some.table["path"])].reset_index(drop=True)
    expected = Predictions(kept, LABELS)
    auroc = compute_metrics(expected.class_index, expected.probability, LABELS)["auroc"]["macro"]
    assert next(row for row in found.rows if row["name"] == "x")["auroc"][0] == pytest.approx(auroc)


def test_the_order_of_the_classes_does_not_matter():
    one, other = (
        compare_models({"x": draw(1, 1), "y": draw(2, 2, labels=labels)}).rows for labels in (LABELS, ("b", "a"))
    )
    assert one == other


def test_models_without_shared_images_are_listed_but_not_tested():
    other_images = Predictions(draw(1, 1).table.assign(source="t"), LABELS)
    found = compare_models({"x": draw(1, 1), "y": other_images})
    assert found.n_shared_images == 0 and not {key for row in found.rows for key in row if key.endswith("_p")}
    assert all(row["auroc"][1] < row["auroc"][0] < row["auroc"][2] for row in found.rows)


def test_models_with_different_classes_are_refused():
    plain = draw(1, 1)
    wide = Predictions(plain.table.assign(prob_c=0.0), ("a", "b", "c"))
    with pytest.raises(DataError, match="same classes"):
        compare_models({"x": plain, "y": wide})


def test_an_image_with_two_labels_is_refused():
    plain = draw(1, 1)
    other = plain.table["label"].map({"a": "b", "b": "a"})
    flipped = Predictions(plain.table.assign(label=other), LABELS)
    with pytest.raises(DataError, match=r"different labels for 200 images, first 000\.png"):
        compare_models({"x": plain, "y": flipped})


def test_p_is_adjusted_for_every_pair_of_models():
    good, poor = draw(2, 1), draw(3, 2)
    alone = compare_models({"good": good, "poor": poor}).rows[1]
    others = {f"poor {number}": draw(3.5, 3 + number) for number in range(3)}
    rows = {row["name"]: row for row in compare_models({"good": good, "poor": poor, **others}).rows}
    assert rows["good"]["auroc"][0] == max(row["auroc"][0] for row in rows.values())
    assert rows["poor"]["auroc_difference"] == alone["auroc_difference"]
    assert rows["poor"]["auroc_p"] >= min(1, 4.5 * alone["auroc_p"]), "at least five of ten pairs have no smaller p"


def test_holm_adjusts_p_for_the_number_of_tests():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
