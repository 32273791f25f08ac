"""Metrics of findings equal those of scikit-learn on the known labels; a finding with one class is named."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from finding_predictions import FINDINGS, simulate_findings, to_predictions
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    hamming_loss,
    log_loss,
    roc_auc_score,
)

from fastcxr.errors import DataError
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.findings import FindingInputs, compute_finding_metrics
from fastcxr.metrics.intervals import flatten

pytestmark = pytest.mark.usefixtures("few_draws")
FORTY = tuple(f"finding {k}" for k in range(40))


@pytest.mark.parametrize(("labels", "unknown"), [(FINDINGS, 0.0), (FINDINGS, 0.4), (("Edema",), 0.2), (FORTY, 0.3)])
def test_the_metrics_of_each_finding_equal_those_of_scikit_learn(labels, unknown):
    predictions = simulate_findings(150, labels, unknown=unknown)
    images = predictions.scorable().to_arrays()
    found = compute_finding_metrics(images)
    for k, label in enumerate(labels):
        known = ~np.isnan(images.truth[:, k])
        truth, score = images.truth[known, k], images.probability[known, k]
        tn, fp, fn, tp = confusion_matrix(truth, score >= 0.5).ravel()
        expected = {
            "positives": tp + fn, "negatives": tn + fp, "unknown": (~known).sum(), "sensitivity": tp / (tp + fn),
            "specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "npv": tn / (tn + fn),
            "f1": f1_score(truth, score >= 0.5), "brier": brier_score_loss(truth, score),
        }  # fmt: skip
        assert found["per_class"][label] == pytest.approx(expected, abs=1e-9)
        assert found["auroc"]["per_class"][label] == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
        precision = average_precision_score(truth, score)
        assert found["average_precision"]["per_class"][label] == pytest.approx(precision, abs=1e-9)


def test_means_over_findings_equal_those_of_scikit_learn():
    images = simulate_findings(300).to_arrays()
    found, truth = compute_finding_metrics(images), images.truth
    for name, function in (("auroc", roc_auc_score), ("average_precision", average_precision_score)):
        for mean in ("macro", "weighted"):
            assert found[name][mean] == pytest.approx(function(truth, images.probability, average=mean), abs=1e-9)
    assert found["hamming_loss"] == pytest.approx(hamming_loss(truth, images.probability >= 0.5), abs=1e-9)
    assert found["exact_match"] == pytest.approx((truth == (images.probability >= 0.5)).all(axis=1).mean(), abs=1e-9)


def test_unknown_labels_count_neither_as_right_nor_as_wrong():
    truth = np.array([[1, 0, np.nan], [np.nan, 1, 0], [0, np.nan, 1], [np.nan, np.nan, np.nan]])
    probability = np.array([[0.9, 0.2, 0.9], [0.9, 0.3, 0.1], [0.8, 0.9, 0.7], [0.5, 0.5, 0.5]])
    found = evaluate_predictions(to_predictions(truth, probability))["test"]
    assert (found["n_images"], found["n_unlabelled"]) == (3, 1)
    known = ~np.isnan(truth)
    assert found["hamming_loss"] == hamming_loss(truth[known], probability[known] >= 0.5) == pytest.approx(2 / 6)
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["co_occurrence"]["truth"] == np.eye(3, dtype=int).tolist()
    assert found["co_occurrence"]["predicted"] == [[3, 1, 2], [1, 1, 1], [2, 1, 2]]


def test_brier_and_log_loss_are_means_over_findings():
    predictions = simulate_findings(200, unknown=0.2)
    images = predictions.scorable().to_arrays()
    known = ~np.isnan(images.truth)
    columns = [(images.truth[known[:, k], k], images.probability[known[:, k], k]) for k in range(3)]
    found = evaluate_predictions(predictions)["test"]["calibration"]
    assert found["brier"] == pytest.approx(np.mean([brier_score_loss(*column) for column in columns]), abs=1e-9)
    # scikit-learn clips probabilities at another value
    clipped = [(truth, np.clip(score, 1e-12, 1 - 1e-12)) for truth, score in columns]
    assert found["log_loss"] == pytest.approx(np.mean([log_loss(*column) for column in clipped]), abs=1e-9)
    assert list(found["per_class"]) == list(FINDINGS)


def test_a_finding_with_one_class_is_none_with_a_reason_and_not_part_of_the_means():
    labels = (*FINDINGS, "Hernia", "Nodule")
    predictions = simulate_findings(100, labels)
    truth = predictions.truth
    truth[:, 1], truth[:, 3], truth[:, 4] = 0, 1, np.nan
    found = evaluate_predictions(to_predictions(truth, predictions.probability, (*FINDINGS, "Hernia", "Nodule")))[
        "test"
    ]
    assert found["auroc"]["averaged"] == ["Edema", "Mass"]
    values, reasons = flatten(found), found["reasons"]
    assert values["auroc.macro"] == pytest.approx(np.mean([values[f"auroc.per_class.{n}"] for n in ("Edema", "Mass")]))
    assert reasons["auroc.macro"] == "mean over the 2 of 5 findings that have both classes in this split"
    for label, reason in (("Effusion", "no image has Effusion"), ("Hernia", "every image has Hernia")):
        for name in ("auroc", "average_precision"):
            assert values[f"{name}.per_class.{label}"] is None
            assert reasons[f"{name}.per_class.{label}"] == f"{reason} in this split"
    assert reasons["auroc.per_class.Nodule"] == "no label of Nodule is known in this split"
    undefined = {name for name, value in values.items() if value is None}
    assert undefined - {f"calibration.per_class.{n}" for n in ("Effusion", "Hernia", "Nodule")} <= set(reasons)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_predictive_values_without_a_prediction_are_none_with_a_reason():
    truth = np.array([[1, 0, 1], [0, 1, 0]])
    found = compute_finding_metrics(to_predictions(truth, np.full((2, 3), 0.4)).to_arrays())
    assert (found["per_class"]["Edema"]["ppv"], found["per_class"]["Edema"]["f1"]) == (None, 0)
    reason = "no image with a known label is predicted to have Edema in this split"
    assert found["reasons"]["per_class.Edema.ppv"] == reason


@pytest.mark.parametrize("truth", [np.zeros((0, 3)), np.full((4, 3), np.nan)])
def test_a_split_without_known_labels_has_no_metrics(truth):
    predictions = to_predictions(np.concatenate([truth, [[1, 0, 1]]]), np.full((len(truth) + 1, 3), 0.3))
    predictions.table.loc[len(truth), "error"] = "not an image"
    found = evaluate_predictions(predictions)["test"]
    assert (found["n_images"], found["n_errors"], found["n_unlabelled"]) == (0, 1, len(truth))
    assert found["auroc"]["macro"] is found["exact_match"] is found["calibration"]["brier"] is None
    assert found["reasons"]["hamming_loss"] == "no image to measure in this split"
    assert found["intervals"]["of"] == {}


def test_the_mean_of_chexperts_five_findings_is_given_if_all_are_there():
    five = ("Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation", "Atelectasis")
    found = compute_finding_metrics(simulate_findings(80, (*five, "Mass")).to_arrays())["auroc"]
    assert found["chexpert5"] == pytest.approx(np.mean([found["per_class"][label] for label in five]))
    assert "chexpert5" not in compute_finding_metrics(simulate_findings(80, five[1:]).to_arrays())["auroc"]
    predictions = simulate_findings(80, five)
    truth = predictions.truth
    truth[:, 0] = 0
    found = compute_finding_metrics(to_predictions(truth, predictions.probability, five).to_arrays())
    assert found["auroc"]["chexpert5"] is None
    assert found["reasons"]["auroc.chexpert5"] == "Edema: not both classes in this split"


def test_weighted_metrics_equal_those_of_repeated_images():
    predictions = simulate_findings(40, unknown=0.3).scorable()
    n = len(predictions.table)
    weights = np.random.default_rng(1).integers(0, 4, (3, n)).astype(float)
    drawn = FindingInputs.of(predictions.to_arrays()).compute(weights)
    for row, times in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(n), times)
        repeated = to_predictions(predictions.truth[rows], predictions.probability[rows])
        expected = flatten(evaluate_predictions(repeated)["test"])
        found = {name: column[row] for name, column in drawn.items()}
        assert found == pytest.approx({name: expected[name] for name in found})


def test_every_metric_lies_in_its_interval_which_is_clustered_by_patient():
    found = evaluate_predictions(simulate_findings(150, unknown=0.2))["test"]
    intervals, values = found["intervals"], flatten(found)
    assert (intervals["unit"], intervals["n_draws"]) == ("patient", 200)
    assert intervals["method"] == "bootstrap over patients, 200 draws"
    expected = {"auroc.macro", "auroc.weighted", "average_precision.weighted", "exact_match", "hamming_loss"}
    expected |= {"calibration.brier", "calibration.log_loss"}
    names = ("sensitivity", "specificity", "ppv", "npv", "f1", "brier")
    expected |= {f"per_class.{label}.{name}" for label in FINDINGS for name in names}
    assert expected <= set(intervals["of"])
    assert all(low < values[name] < high for name, (low, high) in intervals["of"].items())
    repeated = simulate_findings(150, unknown=0.2)
    rows = np.tile(np.arange(len(repeated.table)), 4)
    table = repeated.table.iloc[rows].reset_index(drop=True)
    again = evaluate_predictions(type(repeated)(table, FINDINGS))["test"]["intervals"]["of"]
    assert again["auroc.macro"] == pytest.approx(intervals["of"]["auroc.macro"], abs=1e-9)


def test_with_one_image_per_patient_proportions_and_aurocs_use_formulas():
    predictions = simulate_findings(100, unknown=0.2)
    images = predictions.scorable()
    single = to_predictions(images.truth, images.probability)
    found = evaluate_predictions(single)["test"]["intervals"]
    assert found["unit"] == "image" and "DeLong" in found["method"] and "Wilson" in found["method"]
    known = ~np.isnan(images.truth[:, 1])
    alone = to_predictions(images.truth[known][:, [1]], images.probability[known][:, [1]], ("Effusion",))
    expected = evaluate_predictions(alone)["test"]["intervals"]["of"]
    for name in ("auroc.per_class.Effusion", "per_class.Effusion.sensitivity", "per_class.Effusion.npv"):
        assert found["of"][name] == pytest.approx(expected[name], abs=1e-9), "an unknown label has the weight 0"


def test_a_perfect_model_has_lower_bounds_below_1():
    truth = simulate_findings(40).truth
    patients = np.arange(len(truth)) // 2
    found = evaluate_predictions(to_predictions(truth, 0.1 + 0.8 * truth, patients=patients))["test"]["intervals"]["of"]
    for name in ("auroc.macro", "auroc.weighted", "exact_match", "per_class.Edema.f1", "per_class.Mass.ppv"):
        assert 0.5 < found[name][0] < 1 == found[name][1], name
    assert 0 == found["hamming_loss"][0] < found["hamming_loss"][1] < 0.15


def test_decisions_use_the_thresholds_of_the_calibration():
    predictions = simulate_findings(100)
    calibration = {"thresholds": {"Edema": {"threshold": 0.2, "wanted": {"sensitivity": 0.9}, "positives": 60}}}
    found = evaluate_predictions(predictions, calibration, {"Edema": 0.1})["test"]
    truth, score = predictions.truth == 1, predictions.probability
    assert found["per_class"]["Edema"]["sensitivity"] == pytest.approx((score >= 0.2)[:, 0][truth[:, 0]].mean())
    assert found["per_class"]["Mass"]["sensitivity"] == pytest.approx((score >= 0.5)[:, 2][truth[:, 2]].mean())
    row = found["thresholds"]["per_class"]["Edema"]
    assert list(found["thresholds"]["per_class"]) == ["Edema"]
    interval = found["intervals"]["of"]["per_class.Edema.sensitivity"]
    assert row["sensitivity"] == pytest.approx([found["per_class"]["Edema"]["sensitivity"], *interval], abs=1e-9)
    assert {"threshold", "wanted", "positives", "specificity", "ppv", "npv"} <= set(row)


def test_a_finding_may_have_a_dot_in_its_name():
    found = evaluate_predictions(simulate_findings(60, ("a.b", "c")))["test"]
    assert math.isfinite(found["auroc"]["per_class"]["a.b"]) and "auroc.per_class.a.b" in found["intervals"]["of"]


def test_an_image_without_a_probability_is_refused_with_a_fix():
    images = simulate_findings(20).to_arrays()
    probability = images.probability.copy()
    probability[3, 1] = np.nan
    with pytest.raises(DataError, match=r"no probability.*scorable\(\)") as error:
        compute_finding_metrics(replace(images, probability=probability))
    assert error.value.code == "E309"
