"""A temperature mends probabilities that are too sure or too shy, from validation images alone."""

import numpy as np
import pandas as pd
import pytest
from recording_progress import peak_memory
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from fastcxr.metrics import calibration as module
from fastcxr.metrics.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    compute_calibration,
    fit_calibration,
    fit_calibration_line,
    fit_temperature,
    scale_predictions,
    scale_probabilities,
)
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import make_predictions

LABELS = ("a", "b", "c")


def draw(n=3000, seed=0):
    """Probabilities that mean what they say."""
    rng = np.random.default_rng(seed)
    probability = softmax(2 * rng.normal(size=(n, 3)), axis=1)
    truth = (rng.random((n, 1)) > probability.cumsum(axis=1)).sum(axis=1)
    return truth, probability


def as_predictions(truth, probability, split="valid"):
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i}.png" for i in range(len(truth))], "label": np.array(LABELS)[truth],
        "patient": [f"p{i // 2}" for i in range(len(truth))], "split": split,
    })  # fmt: skip
    return make_predictions(rows, probability, LABELS)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_spoiled_probabilities_is_found(temperature):
    truth, probability = draw()
    found = fit_temperature(truth, scale_probabilities(probability, 1 / temperature))
    assert found == pytest.approx(temperature, rel=0.06)


def test_scaling_there_and_back_changes_nothing_and_a_row_of_nan_stays():
    _, probability = draw(50)
    np.testing.assert_allclose(
        scale_probabilities(scale_probabilities(probability, 0.3), 1 / 0.3), probability, atol=1e-9
    )
    assert (scale_probabilities(probability, 3).argmax(axis=1) == probability.argmax(axis=1)).all()
    assert np.isnan(scale_probabilities(np.full((1, 3), np.nan), 2.0)).all()


def test_few_images_that_are_all_right_do_not_make_a_model_infinitely_sure():
    truth = np.arange(30) % 3
    found = fit_temperature(truth, softmax(np.eye(3)[truth], axis=1))
    assert MIN_TEMPERATURE < found < 1
    assert fit_temperature(truth, softmax(np.eye(3)[(truth + 1) % 3], axis=1)) < MAX_TEMPERATURE


def test_only_validation_images_are_asked():
    truth, probability = draw(300)
    wrong = as_predictions((truth + 1) % 3, probability, "test").table
    both = as_predictions(truth, probability)
    mixed = type(both)(pd.concat([both.table, wrong], ignore_index=True), LABELS)
    assert fit_calibration(mixed) == fit_calibration(both)
    assert fit_calibration(both)["images"] == 300 and fit_calibration(both)["patients"] == 150


def test_too_few_validation_images_leave_probabilities_alone_and_say_so():
    truth, probability = draw(module.MIN_VALID_IMAGES - 1)
    found = fit_calibration(as_predictions(truth, probability))
    assert found["temperature"] == 1 and "fewer than 30" in found["reason"]


def test_figures_are_those_of_scikit_learn():
    truth, probability = draw(500)
    found = compute_calibration(truth, probability, LABELS, np.arange(500))
    assert found["log_loss"] == pytest.approx(log_loss(truth, probability))
    assert found["brier"] == pytest.approx(sum(brier_score_loss(truth == k, probability[:, k]) for k in range(3)))


def test_the_line_is_that_of_a_logistic_regression_and_perfect_probabilities_have_slope_one():
    truth, probability = draw()
    found = fit_calibration_line(truth == 0, probability[:, 0], np.arange(3000))
    odds = np.log(probability[:, 0] / (1 - probability[:, 0]))[:, None]
    other = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, truth == 0)
    assert found["slope"][0] == pytest.approx(other.coef_[0, 0], rel=1e-3)
    assert found["intercept"][0] == pytest.approx(other.intercept_[0], abs=1e-3)
    assert found["slope"][1] < 1 < found["slope"][2] and found["intercept"][1] < 0 < found["intercept"][2]
    shy = fit_calibration_line(truth == 0, scale_probabilities(probability, 2.0)[:, 0], np.arange(3000))
    assert shy["slope"][1] > 1, "probabilities too near each other"


def test_copies_of_an_image_make_the_line_no_surer():
    truth, probability = draw(200)
    alone = fit_calibration_line(truth == 0, probability[:, 0], np.arange(200))["slope"]
    five = fit_calibration_line(np.tile(truth == 0, 5), np.tile(probability[:, 0], 5), np.tile(np.arange(200), 5))[
        "slope"
    ]
    assert five == pytest.approx(alone, rel=1e-6)


def test_a_class_that_is_absent_or_told_apart_perfectly_has_no_line():
    patients = np.arange(40)
    assert fit_calibration_line(np.zeros(40, bool), np.full(40, 0.3), patients) is None
    positive = np.arange(40) < 20
    assert fit_calibration_line(positive, np.where(positive, 0.9, 0.1), patients) is None
    assert fit_calibration_line(positive, np.full(40, 0.5), patients) is None, "one probability for all leaves no slope"


def test_the_error_of_perfect_probabilities_stays_below_its_band_most_times():
    held = [
        found["ece"] <= found["ece_chance"]
        for found in (compute_calibration(*draw(300, seed), LABELS, np.arange(300)) for seed in range(60))
    ]
    assert np.mean(held) > 0.85
    truth, probability = draw(300)
    sure = compute_calibration(truth, scale_probabilities(probability, 0.2), LABELS, np.arange(300))
    assert sure["ece"] > sure["ece_chance"]


@pytest.mark.parametrize(("n", "band"), [(100, 0.104), (1000, 0.035)])
def test_the_band_is_about_what_others_found(n, band):
    sure = np.random.default_rng(0).uniform(0.4, 1.0, n)
    assert module.simulate_chance_ece(sure) == pytest.approx(band, rel=0.35)


def test_figures_before_the_temperature_stand_beside_those_after():
    truth, probability = draw(400)
    spoiled = as_predictions(truth, scale_probabilities(probability, 0.3))
    fitted = fit_calibration(spoiled)
    after = evaluate_predictions(scale_predictions(spoiled, fitted["temperature"]), fitted)["valid"]
    assert after["calibration"]["log_loss"] < after["uncalibrated"]["log_loss"]
    assert after["uncalibrated"]["log_loss"] == pytest.approx(
        evaluate_predictions(spoiled)["valid"]["calibration"]["log_loss"]
    )
    low, high = after["intervals"]["of"]["calibration.brier"]
    assert low < after["calibration"]["brier"] < high
    assert "uncalibrated" not in evaluate_predictions(spoiled)["valid"]


def test_no_image_is_no_error():
    assert compute_calibration(np.zeros(0, int), np.zeros((0, 3)), LABELS, [])["log_loss"] is None


def test_the_chance_error_is_the_same_whatever_number_of_draws_is_in_memory(monkeypatch):
    sure = np.random.default_rng(0).random(300)
    whole = module.simulate_chance_ece(sure)
    monkeypatch.setattr(module, "CELLS", 7 * 300)
    assert module.simulate_chance_ece(sure) == pytest.approx(whole, abs=1e-12)


def test_the_chance_error_does_not_hold_all_draws_of_all_images():
    sure = np.random.default_rng(0).random(20_000)
    assert peak_memory(lambda: module.simulate_chance_ece(sure)) < 50e6, "all draws would take 320 MB"
