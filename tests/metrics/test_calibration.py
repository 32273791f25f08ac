"""Temperature scaling uses only validation images; calibration metrics equal those of scikit-learn."""

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
    """Return truth and perfectly calibrated probabilities."""
    rng = np.random.default_rng(seed)
    probability = softmax(2 * rng.normal(size=(n, 3)), axis=1)
    truth = (rng.random((n, 1)) > probability.cumsum(axis=1)).sum(axis=1)
    return truth, probability


def to_predictions(truth, probability, split="valid"):
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i}.png" for i in range(len(truth))], "label": np.array(LABELS)[truth],
        "patient": [f"p{i // 2}" for i in range(len(truth))], "split": split,
    })  # fmt: skip
    return make_predictions(rows, probability, LABELS)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fit_temperature_finds_the_temperature_that_was_applied(temperature):
    truth, probability = draw()
    found = fit_temperature(truth, scale_probabilities(probability, 1 / temperature))
    assert found == pytest.approx(temperature, rel=0.06)


def test_scaling_is_reversible_and_keeps_nan_rows():
    _, probability = draw(50)
    np.testing.assert_allclose(
        scale_probabilities(scale_probabilities(probability, 0.3), 1 / 0.3), probability, atol=1e-9
    )
    assert (scale_probabilities(probability, 3).argmax(axis=1) == probability.argmax(axis=1)).all()
    assert np.isnan(scale_probabilities(np.full((1, 3), np.nan), 2.0)).all()


def test_a_very_small_probability_is_scaled_as_its_logit():
    logits = np.array([[0.0, 300.0, 310.0]])
    np.testing.assert_allclose(scale_probabilities(softmax(logits, axis=1), 20.0), softmax(logits / 20.0, axis=1))


def test_the_temperature_stays_finite_for_few_images_that_are_all_correct():
    truth = np.arange(30) % 3
    found = fit_temperature(truth, softmax(np.eye(3)[truth], axis=1))
    assert MIN_TEMPERATURE < found < 1
    assert fit_temperature(truth, softmax(np.eye(3)[(truth + 1) % 3], axis=1)) < MAX_TEMPERATURE


def test_only_validation_images_are_used():
    truth, probability = draw(300)
    wrong = to_predictions((truth + 1) % 3, probability, "test").table
    both = to_predictions(truth, probability)
    mixed = type(both)(pd.concat([both.table, wrong], ignore_index=True), LABELS)
    assert fit_calibration(mixed) == fit_calibration(both)
    assert fit_calibration(both)["images"] == 300 and fit_calibration(both)["patients"] == 150


def test_with_too_few_validation_images_the_temperature_is_1_with_a_reason():
    truth, probability = draw(module.MIN_VALID_IMAGES - 1)
    found = fit_calibration(to_predictions(truth, probability))
    assert found["temperature"] == 1 and "fewer than 30" in found["reason"]


def test_metrics_equal_those_of_scikit_learn():
    truth, probability = draw(500)
    found = compute_calibration(truth, probability, LABELS, np.arange(500))
    assert found["log_loss"] == pytest.approx(log_loss(truth, probability))
    assert found["brier"] == pytest.approx(sum(brier_score_loss(truth == k, probability[:, k]) for k in range(3)))


def test_the_line_equals_a_logistic_regression_and_has_slope_1_for_calibrated_probabilities():
    truth, probability = draw()
    found = fit_calibration_line(truth == 0, probability[:, 0], np.arange(3000))
    odds = np.log(probability[:, 0] / (1 - probability[:, 0]))[:, None]
    other = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds, truth == 0)
    assert found["slope"][0] == pytest.approx(other.coef_[0, 0], rel=1e-3)
    assert found["intercept"][0] == pytest.approx(other.intercept_[0], abs=1e-3)
    assert found["slope"][1] < 1 < found["slope"][2] and found["intercept"][1] < 0 < found["intercept"][2]
    underconfident = fit_calibration_line(truth == 0, scale_probabilities(probability, 2.0)[:, 0], np.arange(3000))
    assert underconfident["slope"][1] > 1


def test_repeated_images_of_a_patient_do_not_narrow_the_interval_of_the_slope():
    truth, probability = draw(200)
    single = fit_calibration_line(truth == 0, probability[:, 0], np.arange(200))["slope"]
    repeated = fit_calibration_line(np.tile(truth == 0, 5), np.tile(probability[:, 0], 5), np.tile(np.arange(200), 5))[
        "slope"
    ]
    assert repeated == pytest.approx(single, rel=1e-6)


def test_an_absent_or_perfectly_separated_class_has_no_line():
    patients = np.arange(40)
    assert fit_calibration_line(np.zeros(40, bool), np.full(40, 0.3), patients) is None
    positive = np.arange(40) < 20
    assert fit_calibration_line(positive, np.where(positive, 0.9, 0.1), patients) is None
    assert fit_calibration_line(positive, np.full(40, 0.5), patients) is None, "a constant probability has no slope"


def test_the_ece_of_calibrated_probabilities_is_mostly_below_the_chance_ece():
    is_below = [
        found["ece"] <= found["ece_chance"]
        for found in (compute_calibration(*draw(300, seed), LABELS, np.arange(300)) for seed in range(60))
    ]
    assert np.mean(is_below) > 0.85
    truth, probability = draw(300)
    overconfident = compute_calibration(truth, scale_probabilities(probability, 0.2), LABELS, np.arange(300))
    assert overconfident["ece"] > overconfident["ece_chance"]


@pytest.mark.parametrize(("n", "published"), [(100, 0.104), (1000, 0.035)])
def test_the_chance_ece_is_near_published_values(n, published):
    confidence = np.random.default_rng(0).uniform(0.4, 1.0, n)
    assert module.simulate_chance_ece(confidence) == pytest.approx(published, rel=0.35)


def test_metrics_include_the_calibration_before_scaling():
    truth, probability = draw(400)
    miscalibrated = to_predictions(truth, scale_probabilities(probability, 0.3))
    fitted = fit_calibration(miscalibrated)
    after = evaluate_predictions(scale_predictions(miscalibrated, fitted), fitted)["valid"]
    assert after["calibration"]["log_loss"] < after["uncalibrated"]["log_loss"]
    assert after["uncalibrated"]["log_loss"] == pytest.approx(
        evaluate_predictions(miscalibrated)["valid"]["calibration"]["log_loss"]
    )
    low, high = after["intervals"]["of"]["calibration.brier"]
    assert low < after["calibration"]["brier"] < high
    assert "uncalibrated" not in evaluate_predictions(miscalibrated)["valid"]


def test_a_split_without_images_has_no_metrics():
    assert compute_calibration(np.zeros(0, int), np.zeros((0, 3)), LABELS, [])["log_loss"] is None


def test_the_chance_ece_does_not_depend_on_the_number_of_draws_in_memory(monkeypatch):
    confidence = np.random.default_rng(0).random(300)
    whole = module.simulate_chance_ece(confidence)
    monkeypatch.setattr(module, "CELLS", 7 * 300)
    assert module.simulate_chance_ece(confidence) == pytest.approx(whole, abs=1e-12)


def test_the_chance_ece_uses_bounded_memory():
    confidence = np.random.default_rng(0).random(20_000)
    assert peak_memory(lambda: module.simulate_chance_ece(confidence)) < 50e6, "all draws would take 320 MB"
