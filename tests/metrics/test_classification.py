"""Every classification metric against scikit-learn and against a plain loop."""

import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import LABELS, make_manifest, make_probability

from fastcxr.errors import DataError
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import make_predictions, read_predictions, write_predictions

close = {"rel": 0, "abs": 1e-9}


def draw(seed, n=60, k=3, ties=False):
    """Return truth and probabilities; with ties there are few distinct probabilities."""
    random = np.random.default_rng(seed)
    probability = random.dirichlet(np.ones(k), size=n)
    if ties:
        probability = np.round(probability * 4) + 0.25
        probability = probability / probability.sum(axis=1, keepdims=True)
    return random.integers(0, k, n), probability


def area_by_pairs(is_class, score):
    """Return the AUROC as the share of correctly ordered pairs; a tie counts half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in score[is_class] for b in score[~is_class]]
    return np.mean(pairs)


def precision_by_steps(is_class, score):
    """Return the precision at each threshold, weighted by the added recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = score >= threshold
        recall = is_class[taken].sum() / is_class.sum()
        total, before = total + (recall - before) * is_class[taken].mean(), recall
    return total


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_every_metric_equals_scikit_learn(seed, ties):
    truth, probability = draw(seed, ties=ties, k=3 + seed % 3)
    k = probability.shape[1]
    labels, hot = [f"c{i}" for i in range(k)], np.eye(k)[truth]
    guess, found = probability.argmax(axis=1), compute_metrics(truth, probability, labels)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess), **close)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess), **close)
    assert found["top2_accuracy"] == pytest.approx(sk.top_k_accuracy_score(truth, probability, k=2), **close)
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, guess).tolist()
    macro = sk.roc_auc_score(truth, probability, multi_class="ovr", average="macro")
    assert found["auroc"]["macro"] == pytest.approx(macro, **close)
    for name, score in (("auroc", sk.roc_auc_score), ("average_precision", sk.average_precision_score)):
        assert found[name]["macro"] == pytest.approx(score(hot, probability, average="macro"), **close)
        assert found[name]["micro"] == pytest.approx(score(hot, probability, average="micro"), **close)
        assert list(found[name]["per_class"].values()) == pytest.approx(score(hot, probability, average=None), **close)
    report = sk.classification_report(truth, guess, target_names=labels, output_dict=True, zero_division=0)
    for label in labels:
        ours, theirs = found["per_class"][label], report[label]
        assert [ours["precision"], ours["recall"], ours["f1"]] == pytest.approx(
            [theirs["precision"], theirs["recall"], theirs["f1-score"]], **close
        )
        assert ours["support"] == theirs["support"]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_metric_equals_plain_counting(seed, ties):
    truth, probability = draw(seed, n=40, ties=ties)
    guess, found = probability.argmax(axis=1), compute_metrics(truth, probability, LABELS)
    for k, label in enumerate(LABELS):
        is_class, is_predicted = truth == k, guess == k
        ours = found["per_class"][label]
        assert found["auroc"]["per_class"][label] == pytest.approx(area_by_pairs(is_class, probability[:, k]), **close)
        steps = precision_by_steps(is_class, probability[:, k])
        assert found["average_precision"]["per_class"][label] == pytest.approx(steps, **close)
        assert ours["sensitivity"] == pytest.approx(is_predicted[is_class].mean(), **close)
        assert ours["specificity"] == pytest.approx((~is_predicted[~is_class]).mean(), **close)
        assert ours["precision"] == pytest.approx(is_class[is_predicted].mean() if is_predicted.any() else 0.0, **close)
        assert found["confusion_matrix"][k] == [int((is_class & (guess == j)).sum()) for j in range(3)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 12), k=st.integers(2, 5), ties=st.booleans())
def test_any_small_split_gives_strict_json_with_a_reason_for_every_null(seed, n, k, ties):
    found = compute_metrics(*draw(seed, n, k, ties), [f"c{i}" for i in range(k)])
    json.dumps(found, allow_nan=False)
    assert {name for name, value in find_leaves(found) if value is None} <= set(found["reasons"])
    for value in (value for name, value in find_leaves(found) if value is not None and "support" not in name):
        assert 0 <= value <= 1


def find_leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and key != "reasons":
            yield from find_leaves(value, (*path, key))
        elif key not in ("labels", "confusion_matrix", "reasons"):
            yield ".".join((*path, key)), value


def test_two_classes_agree_with_the_binary_functions_and_have_no_top2():
    truth, probability = draw(1, k=2)
    found = compute_metrics(truth, probability, ["no", "yes"])
    assert found["auroc"]["per_class"]["yes"] == pytest.approx(sk.roc_auc_score(truth, probability[:, 1]), **close)
    assert found["auroc"]["macro"] == pytest.approx(sk.roc_auc_score(truth, probability[:, 1]), **close)
    assert found["average_precision"]["per_class"]["yes"] == pytest.approx(
        sk.average_precision_score(truth, probability[:, 1]), **close
    )
    assert found["top2_accuracy"] is None and "two classes" in found["reasons"]["top2_accuracy"]


def test_a_class_without_images_is_null_with_a_reason_and_macro_excludes_it():
    truth, probability = draw(2)
    keep = truth != 2
    found = compute_metrics(truth[keep], probability[keep], LABELS)
    present = [sk.roc_auc_score(truth[keep] == k, probability[keep][:, k]) for k in (0, 1)]
    assert found["auroc"]["macro"] == pytest.approx(np.mean(present), **close)
    assert found["auroc"]["per_class"]["Pneumonia"] is None
    assert found["per_class"]["Pneumonia"]["recall"] is None and found["per_class"]["Pneumonia"]["support"] == 0
    assert found["reasons"]["auroc.per_class.Pneumonia"] == "no image of class Pneumonia in this split"
    assert found["reasons"]["auroc.macro"] == "mean over the 2 of 3 classes that have an image in this split"
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sk.balanced_accuracy_score(truth[keep], probability[keep].argmax(axis=1))
    assert found["balanced_accuracy"] == pytest.approx(balanced, **close)


def test_a_split_with_one_class_has_accuracy_but_no_auroc():
    _, probability = draw(3)
    found = compute_metrics(np.zeros(60, int), probability, LABELS)
    assert found["accuracy"] == found["per_class"]["Covid-19"]["recall"]
    assert found["auroc"] == {"macro": None, "micro": None, "per_class": dict.fromkeys(LABELS)}
    assert found["per_class"]["Covid-19"]["specificity"] is None
    assert "every image of this split is Covid-19" in found["reasons"]["auroc.macro"]


def test_a_class_that_is_never_predicted_has_zero_precision_with_a_reason():
    found = compute_metrics(np.array([0, 1, 1]), np.array([[0.2, 0.8]] * 3), ["a", "b"])
    assert found["per_class"]["a"]["precision"] == 0.0 and found["per_class"]["a"]["f1"] == 0.0
    assert "no image was predicted to be a" in found["reasons"]["per_class.a.precision"]


def test_each_split_has_counts_of_images_patients_and_errors():
    manifest = make_manifest(n=300)
    errors = [""] * 300
    first = manifest.index[manifest["split"] == "test"][0]
    errors[first] = "FCX-E103 truncated"
    second = manifest.index[manifest["split"] == "test"][1]
    manifest.loc[second, "label"] = None
    scores = make_probability(manifest.fillna({"label": LABELS[0]}))
    found = evaluate_predictions(make_predictions(manifest, scores, LABELS, errors))
    assert list(found) == ["train", "valid", "test"]
    good = manifest[manifest["split"] == "test"].drop([first, second])
    assert found["test"]["n_images"] == len(good) == sum(row["support"] for row in found["test"]["per_class"].values())
    assert found["test"]["n_patients"] == good["patient"].nunique()
    assert (found["test"]["n_errors"], found["test"]["n_unlabelled"]) == (1, 1)
    assert (found["valid"]["n_errors"], found["valid"]["n_unlabelled"]) == (0, 0)


def test_metrics_of_a_written_file_equal_scikit_learn(tmp_path):
    manifest = make_manifest(n=300)
    write_predictions(make_predictions(manifest, make_probability(manifest), LABELS), tmp_path / "p.csv")
    found = evaluate_predictions(read_predictions(tmp_path / "p.csv"))["test"]
    table = pd.read_csv(tmp_path / "p.csv").query("split == 'test'")
    scores = table[[f"prob_{label}" for label in LABELS]]
    macro = sk.roc_auc_score(table["label"], scores, multi_class="ovr", labels=LABELS)
    assert found["auroc"]["macro"] == pytest.approx(macro, **close)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(table["label"], table["predicted"]), **close)


def test_a_wrong_shape_or_a_missing_probability_raises_an_error_with_a_fix():
    with pytest.raises(DataError, match="Pass one row per image and one column per class"):
        compute_metrics(np.array([0, 1]), np.full((2, 3), 1 / 3), ["a", "b"])
    for truth, probability in (([0, -1], [[0.5, 0.5]] * 2), ([0, 1], [[0.5, 0.5], [np.nan, 1]])):
        with pytest.raises(DataError, match="Exclude it with Predictions.scorable"):
            compute_metrics(np.array(truth), np.array(probability), ["a", "b"])
