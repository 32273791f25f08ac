"""Thresholds are chosen on validation images and applied unchanged to other images."""

import numpy as np
import pandas as pd
import pytest

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ModelError, RecipeError
from fastcxr.metrics import intervals
from fastcxr.metrics.analytic_intervals import logit_interval, wilson
from fastcxr.metrics.calibration_entry import validate_calibration
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.predictions import make_predictions
from fastcxr.metrics.thresholds import (
    MIN_STABLE_POSITIVES,
    NET_BENEFIT_THRESHOLDS,
    compute_predictive_values,
    evaluate_thresholds,
    find_threshold_at_sensitivity,
    find_threshold_at_specificity,
    fit_thresholds,
    net_benefit,
)

LABELS = ("no", "yes")


def draw(n=400, split="valid", seed=0, patients=None):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, n)
    score = np.clip(rng.normal(0.35 + 0.3 * truth, 0.15), 0.01, 0.99)
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i}.png" for i in range(n)], "label": np.array(LABELS)[truth],
        "patient": [f"p{i}" for i in range(n)] if patients is None else patients, "split": split,
    })  # fmt: skip
    return make_predictions(rows, np.stack([1 - score, score], axis=1), LABELS)


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 1.0])
def test_a_threshold_reaches_its_target_and_the_next_one_does_not(target):
    rng = np.random.default_rng(1)
    scores = np.round(rng.random(57), 2)  # with ties
    threshold = find_threshold_at_sensitivity(scores, target)
    assert (scores >= threshold).mean() >= target > (scores > threshold).mean() - 1e-12
    upper = find_threshold_at_specificity(scores, target)
    assert (scores < upper).mean() >= target
    assert (scores < np.nextafter(upper, 0)).mean() < target or target == 1.0


def test_thresholds_of_the_validation_split_are_applied_unchanged_to_test():
    valid, test = draw(), draw(200, "test", seed=5)
    chosen = fit_thresholds(valid, 0.9, None, 0.0)
    both = type(valid)(pd.concat([valid.table, test.table], ignore_index=True), LABELS)
    assert fit_thresholds(both, 0.9, None, 0.0) == chosen
    threshold = chosen["thresholds"]["yes"]["threshold"]
    found = evaluate_thresholds(test, chosen, {})["per_class"]["yes"]
    positive, is_predicted = test.class_index == 1, test.probability[:, 1] >= threshold
    assert found["sensitivity"][0] == pytest.approx(is_predicted[positive].mean())
    assert found["specificity"][0] == pytest.approx((~is_predicted)[~positive].mean())
    assert found["sensitivity"][1:] == pytest.approx(list(wilson(is_predicted[positive].sum(), positive.sum())))


def test_a_specificity_may_be_the_target():
    valid = draw()
    chosen = fit_thresholds(valid, 0.95, 0.8, 0.0)["thresholds"]["yes"]
    assert chosen["wanted"] == {"specificity": 0.8}
    assert (valid.probability[valid.class_index == 0, 1] < chosen["threshold"]).mean() >= 0.8


def test_a_threshold_with_few_positives_is_unstable():
    positives = int((draw(2 * MIN_STABLE_POSITIVES, seed=3).class_index == 1).sum())
    assert fit_thresholds(draw(2 * MIN_STABLE_POSITIVES, seed=3), 0.9, None, 0.0)["thresholds"]["yes"]["unstable"] == (
        positives < MIN_STABLE_POSITIVES
    )
    assert fit_thresholds(draw(40), 0.9, None, 0.0)["thresholds"]["yes"]["unstable"]
    assert not fit_thresholds(draw(), 0.9, None, 0.0)["thresholds"]["yes"]["unstable"]


def test_intervals_are_clustered_by_patient():
    single = draw(60, "test")
    repeated = pd.concat([single.table] * 5, ignore_index=True)
    chosen = fit_thresholds(draw(), 0.9, None, 0.0)
    one, many = (
        evaluate_thresholds(part, chosen, {})["per_class"]["yes"]["specificity"]
        for part in (single, type(single)(repeated, LABELS))
    )
    assert many[0] == one[0]
    assert many[2] - many[1] == pytest.approx(one[2] - one[1], rel=0.2)


def test_all_thresholds_share_the_draws_of_one_bootstrap(monkeypatch):
    single = draw(60, "test")
    repeated = type(single)(pd.concat([single.table] * 2, ignore_index=True), LABELS)
    chosen, draw_weights, calls = fit_thresholds(draw(), 0.9, None, 0.2), intervals.draw_bootstrap_weights, []
    monkeypatch.setattr(
        intervals, "draw_bootstrap_weights", lambda *given: (calls.append(given), draw_weights(*given))[1]
    )
    found = evaluate_thresholds(repeated, chosen, {})
    assert len(calls) == 1
    weights = np.concatenate(list(draw_weights(repeated.table["patient"].to_numpy(), intervals.SEED)))
    positive = repeated.class_index == 1
    hit = positive & (repeated.probability[:, 1] >= chosen["thresholds"]["yes"]["threshold"])
    value, low, high = found["per_class"]["yes"]["sensitivity"]
    assert value == hit.sum() / positive.sum()
    with np.errstate(invalid="ignore"):
        deviation = np.nanstd(weights @ hit / (weights @ positive), ddof=1)
    assert [low, high] == list(logit_interval(value, float(deviation)))
    assert len(found["uncertain"]) == len(found["answered_accuracy"]) == 3


def test_predictive_values_follow_bayes_at_the_given_prevalence():
    row = {"sensitivity": [0.9, 0.8, 1.0], "specificity": [0.8, 0.7, 1.0]}
    found = compute_predictive_values(row, 0.01)
    assert found["ppv"][0] == pytest.approx(0.9 * 0.01 / (0.9 * 0.01 + 0.2 * 0.99))
    assert found["npv"][0] == pytest.approx(0.8 * 0.99 / (0.8 * 0.99 + 0.1 * 0.01))
    assert found["ppv"][1:] == pytest.approx([0.8 * 0.01 / (0.8 * 0.01 + 0.3 * 0.99), 1.0])
    assert compute_predictive_values(row, None) == {}


def test_the_model_abstains_on_the_least_confident_images():
    valid = draw()
    chosen = fit_thresholds(valid, 0.9, None, 0.2)
    found = evaluate_thresholds(valid, chosen, {})
    assert found["uncertain"][0] == pytest.approx(0.2, abs=0.01)
    accuracy = (valid.probability.argmax(axis=1) == valid.class_index).mean()
    assert found["answered_accuracy"][0] > accuracy
    decided = apply_thresholds(valid, {"uncertain_below": chosen["uncertain_below"]}).table
    assert (decided["uncertain"] == "yes").mean() == pytest.approx(0.2, abs=0.01)
    assert fit_thresholds(valid, 0.9, None, 0.0)["uncertain_below"] is None


def test_every_class_with_a_reached_threshold_is_listed_and_an_unreadable_file_has_none():
    rows = pd.DataFrame({"source": "s", "path": ["a", "b", "c"]})
    predictions = make_predictions(rows, np.array([[0.6, 0.4], [0.2, 0.8], [0, 0]]), LABELS, ["", "", "broken"])
    chosen = {"thresholds": {"no": {"threshold": 0.5}, "yes": {"threshold": 0.4}}, "uncertain_below": 0.7}
    decided = apply_thresholds(predictions, chosen).table
    assert decided["above_threshold"].tolist() == ["no; yes", "yes", ""]
    assert decided["uncertain"].tolist() == ["yes", "no", ""]


@pytest.mark.parametrize(
    ("thresholds", "reached", "uncertain"),
    [
        ({"no": 0.5, "yes": 0.5}, "yes", "no"),
        ({"no": 0.1, "yes": 0.5}, "no; yes", "yes"),
        ({"no": 0.9, "yes": 0.9}, "", "yes"),
        ({"no": 0.5}, "", "yes"),
        ({}, "", "no"),
    ],
)
def test_an_image_that_reaches_the_threshold_of_exactly_one_class_is_certain(thresholds, reached, uncertain):
    predictions = make_predictions(pd.DataFrame({"source": "s", "path": ["a"]}), np.array([[0.2, 0.8]]), LABELS)
    chosen = {"thresholds": {label: {"threshold": value} for label, value in thresholds.items()}}
    decided = apply_thresholds(predictions, chosen).table
    assert (decided["above_threshold"][0], decided["uncertain"][0]) == (reached, uncertain)


def test_a_class_missing_in_validation_has_no_threshold():
    valid = draw()
    single = type(valid)(valid.table[valid.table["label"] == "no"].reset_index(drop=True), LABELS)
    assert fit_thresholds(single, 0.9, None, 0.0)["thresholds"] == {}


def test_net_benefit_equals_its_formula():
    part = draw()
    positive, score = part.class_index == 1, part.probability[:, 1]
    benefit, treat_all = net_benefit(positive, score)
    k = 19
    threshold, n = NET_BENEFIT_THRESHOLDS[k], len(score)
    is_predicted = score >= threshold
    expected = (is_predicted & positive).sum() / n - (is_predicted & ~positive).sum() / n * threshold / (1 - threshold)
    assert benefit[k] == pytest.approx(expected)
    assert treat_all[0] == pytest.approx(positive.mean(), abs=0.01)


@pytest.mark.parametrize(
    "given",
    [[], {"temperature": 0}, {"temperature": "2"}, {"temperature": float("nan")}, {"thresholds": []},
     {"thresholds": {"a": {}}}, {"thresholds": {"a": {"threshold": True}}}, {"uncertain_below": "x"}],
)  # fmt: skip
def test_an_invalid_calibration_is_refused(given, tmp_path):
    with pytest.raises(ModelError, match="the calibration is invalid"):
        validate_calibration(given, tmp_path)


def test_a_model_of_an_earlier_version_has_no_calibration(tmp_path):
    assert validate_calibration(None, tmp_path) == {}


@pytest.mark.parametrize("entry", ["COVID-19", "COVID-19=2", "=0.5", "COVID-19=0", "COVID-19=5%"])
def test_a_prevalence_must_be_a_label_and_a_share(entry):
    with pytest.raises(RecipeError, match="LABEL=FRACTION"):
        Recipe(prevalence=(entry,))
