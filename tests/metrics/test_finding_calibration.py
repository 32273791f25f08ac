"""Findings are calibrated with slope and intercept, on validation images only, or with one temperature if rare."""

import numpy as np
import pytest
from finding_predictions import FINDINGS, to_predictions
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from fastcxr.errors import ModelError
from fastcxr.metrics.calibration import (
    calibrate_probabilities,
    fit_calibration,
    scale_predictions,
)
from fastcxr.metrics.calibration_entry import validate_calibration
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.finding_calibration import MIN_CLASS_IMAGES, uncalibrate_findings
from fastcxr.metrics.predictions import Predictions, mark_ood

pytestmark = pytest.mark.usefixtures("few_draws")


def draw(n=2000, offset=-1.0, seed=0, split="valid") -> Predictions:
    """Return predictions whose log odds are half the true ones plus 1, and 20 % unknown labels."""
    rng = np.random.default_rng(seed)
    log_odds = 2 * rng.normal(size=(n, 3)) + offset
    truth = (rng.random((n, 3)) < expit(log_odds)).astype(float)
    truth[rng.random((n, 3)) < 0.2] = np.nan
    return to_predictions(truth, expit(log_odds / 2 + 1), split=split)


def test_platt_scaling_equals_logistic_regression_and_finds_the_distortion():
    predictions = draw()
    fitted = fit_calibration(predictions)
    assert (fitted["temperature"], fitted["images"], fitted["patients"]) == (
        1.0,
        *[len(predictions.scorable().table)] * 2,
    )
    for k, label in enumerate(FINDINGS):
        known = ~np.isnan(predictions.truth[:, k])
        truth, score = predictions.truth[known, k], logit(predictions.probability[known, k])
        expected = LogisticRegression(C=1e6, tol=1e-9).fit(score[:, None], truth)
        row = fitted["findings"][label]
        assert row["slope"] == pytest.approx(expected.coef_[0, 0], rel=5e-3), "the prior is weak"
        assert row["intercept"] == pytest.approx(expected.intercept_[0], abs=1e-2)
        assert row["slope"] == pytest.approx(2, rel=0.15) and row["intercept"] == pytest.approx(-2, abs=0.3)
        assert row["method"] == "platt" and row["positives"] == (truth == 1).sum()
        assert row["negatives"] == (truth == 0).sum()


def test_rare_findings_share_one_temperature():
    predictions = draw(400)
    truth = predictions.truth
    for k in (1, 2):
        positives = np.flatnonzero(truth[:, k] == 1)
        truth[positives[MIN_CLASS_IMAGES - 1 :], k] = np.nan
    rows = fit_calibration(to_predictions(truth, predictions.probability, split="valid"))["findings"]
    assert [rows[label]["method"] for label in FINDINGS] == ["platt", "temperature", "temperature"]
    assert rows["Effusion"]["slope"] == rows["Mass"]["slope"] != 1
    assert rows["Effusion"]["intercept"] == rows["Mass"]["intercept"] == 0
    assert rows["Mass"]["positives"] == MIN_CLASS_IMAGES - 1


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_findings_with_one_class_are_not_scaled_without_others_to_fit_a_temperature(value):
    predictions = draw(100)
    rows = fit_calibration(to_predictions(np.full((100, 3), value), predictions.probability, split="valid"))["findings"]
    assert {(row["slope"], row["intercept"], row["method"]) for row in rows.values()} == {(1.0, 0.0, "none")}


def test_few_validation_images_give_no_calibration_and_a_reason():
    fitted = fit_calibration(draw(20))
    assert {row["method"] for row in fitted["findings"].values()} == {"none"}
    assert fitted["reason"] == "fewer than 30 validation images"
    assert fit_calibration(draw(200, split="test"))["images"] == 0


def test_calibration_improves_other_images_and_keeps_the_ranking():
    fitted, test = fit_calibration(draw()), draw(seed=5, split="test")
    scaled = scale_predictions(test, fitted)
    found = evaluate_predictions(scaled, fitted)["test"]
    before = evaluate_predictions(test)["test"]
    assert found["calibration"]["brier"] < before["calibration"]["brier"] - 0.02
    assert found["uncalibrated"]["brier"] == pytest.approx(before["calibration"]["brier"], abs=1e-12)
    assert found["uncalibrated"]["log_loss"] == pytest.approx(before["calibration"]["log_loss"], abs=1e-9)
    assert found["auroc"] == before["auroc"]
    slope = found["calibration"]["per_class"]["Edema"]["slope"]
    assert slope[1] < 1 < slope[2]
    assert "uncalibrated" not in before
    is_present = scaled.probability >= 0.5
    assert scaled.table["predicted"][0] == "|".join(np.array(FINDINGS)[is_present[0]])


def test_unreadable_and_out_of_distribution_images_stay_without_findings():
    predictions = draw(60, offset=3)
    predictions.table.loc[0, "error"] = "not an image"
    predictions.table.loc[0, [f"prob_{label}" for label in FINDINGS]] = np.nan
    marked = mark_ood(predictions, np.where(np.arange(60) == 1, 2.0, 0.5))
    rows = {label: {"slope": 1.2, "intercept": 0.1} for label in FINDINGS}
    scaled = scale_predictions(marked, {"temperature": 1.0, "findings": rows})
    assert np.isnan(scaled.probability[0]).all() and np.isfinite(scaled.probability[1:]).all()
    assert list(scaled.table["predicted"][:2]) == ["", ""]
    assert (scaled.table["predicted"][2:] != "").any()


def test_probabilities_of_0_and_1_stay_finite_and_uncalibration_is_the_inverse():
    rows = {"a": {"slope": 0.5, "intercept": -1.0}, "b": {"slope": 1.0, "intercept": 0.0}}
    probability = np.array([[0.0, 0.0], [1e-9, 0.3], [0.6, 0.6], [1.0, 1.0]])
    scaled = calibrate_probabilities(probability, ("a", "b"), {"findings": rows})
    assert ((scaled >= 0) & (scaled <= 1)).all() and (np.diff(scaled[:, 0]) > 0).all()
    np.testing.assert_array_equal(scaled[:, 1], probability[:, 1])
    np.testing.assert_allclose(uncalibrate_findings(scaled, ("a", "b"), rows), probability, atol=1e-12)


def test_separated_classes_have_a_bounded_slope():
    truth = np.repeat([[0.0] * 3, [1.0] * 3], 50, axis=0)
    rows = fit_calibration(to_predictions(truth, 0.1 + 0.8 * truth, split="valid"))["findings"]
    assert all(1 < row["slope"] <= 20 and abs(row["intercept"]) < 1e-3 for row in rows.values())


@pytest.mark.parametrize(
    "row", [None, {}, {"slope": 0.0, "intercept": 0.0}, {"slope": 1.0, "intercept": float("nan")}, {"slope": "1"}]
)
def test_an_invalid_calibration_of_a_finding_is_refused(row, tmp_path):
    with pytest.raises(ModelError, match="the calibration is invalid"):
        validate_calibration({"temperature": 1.0, "findings": {"Edema": row}}, tmp_path)
    assert validate_calibration(fit_calibration(draw(40)), tmp_path)["findings"]["Edema"]["slope"] > 0
