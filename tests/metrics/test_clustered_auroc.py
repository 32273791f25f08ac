"""Analytic intervals of AUROCs, clustered by patient, agree with the definition and with the bootstrap."""

from dataclasses import replace

import numpy as np
import pytest
from finding_predictions import FINDINGS, simulate_findings, to_predictions
from recording_progress import peak_memory

from fastcxr.metrics import bootstrap
from fastcxr.metrics.analytic_intervals import auroc_interval, delong, newcombe
from fastcxr.metrics.clustered_auroc import PatientComponents, compute_clustered_auroc_intervals
from fastcxr.metrics.evaluate import evaluate_predictions


def find_patients(images) -> np.ndarray:
    return np.unique(images.patients, return_inverse=True)[1]


def compute_obuchowski_variance(images, k: int) -> float:
    """Return the variance by the sums of Obuchowski 1997 over all pairs of a positive and a negative image."""
    known = images.known[:, k]
    positive, score = images.positive[known, k], images.probability[known, k]
    patients = images.patients[known]
    kernel = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    auroc, (m, n) = kernel.mean(), kernel.shape
    first = {p: (kernel.mean(axis=1)[patients[positive] == p] - auroc).sum() for p in set(images.patients)}
    second = {p: (kernel.mean(axis=0)[patients[~positive] == p] - auroc).sum() for p in set(images.patients)}
    counts = len(set(patients[positive])), len(set(patients[~positive])), len(set(images.patients))
    factors = [count / (count - 1) for count in counts]
    s10, s01 = (factors[i] * sum(v**2 for v in part.values()) for i, part in enumerate((first, second)))
    s11 = factors[2] * sum(first[p] * second[p] for p in first)
    return s10 / m**2 + s01 / n**2 + 2 * s11 / (m * n)


def test_the_variance_of_each_finding_equals_obuchowskis_definition():
    images = simulate_findings(60, unknown=0.3).scorable().to_arrays()
    covariance = PatientComponents.of(images, find_patients(images), [0, 1, 2]).compute_covariance()
    expected = [compute_obuchowski_variance(images, k) for k in range(3)]
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=1e-9)
    np.testing.assert_allclose(covariance, covariance.T)


def test_with_one_image_per_patient_the_interval_is_delongs():
    images = simulate_findings(60).to_arrays()
    found = compute_clustered_auroc_intervals(images, np.arange(len(images.truth)), [])
    for k, label in enumerate(FINDINGS):
        expected = auroc_interval(images.positive[:, k], images.probability[:, k])
        assert found[f"auroc.per_class.{label}"] == pytest.approx(expected, abs=1e-9)


def test_the_covariance_of_a_finding_with_itself_is_its_variance():
    one = simulate_findings(60, ("Edema",))
    twice = to_predictions(np.tile(one.truth, 2), np.tile(one.probability, 2), ("a", "b")).to_arrays()
    covariance = PatientComponents.of(twice, np.arange(len(twice.truth)), [0, 1]).compute_covariance()
    variance = delong(twice.positive[:, 0], twice.probability[:, 0])[1]
    np.testing.assert_allclose(covariance, variance, rtol=0.01)  # other factors for few patients between findings
    found = compute_clustered_auroc_intervals(twice, np.arange(len(twice.truth)), [])
    assert found["auroc.macro"] == pytest.approx(found["auroc.per_class.a"], abs=1e-3), "no gain from a copy"


def test_repeated_images_of_a_patient_do_not_narrow_the_intervals():
    images = simulate_findings(100).to_arrays()
    index = find_patients(images)
    rows = np.tile(np.arange(len(index)), 4)
    repeated = replace(images, truth=images.truth[rows], probability=images.probability[rows])
    once, again = (
        compute_clustered_auroc_intervals(*given, []) for given in ((images, index), (repeated, index[rows]))
    )
    for name, interval in once.items():
        assert again[name] == pytest.approx(interval, abs=1e-9)


def test_an_auroc_of_1_and_a_finding_of_one_patient_have_newcombes_interval():
    images = simulate_findings(40).to_arrays()
    index = find_patients(images)
    truth, probability = images.truth.copy(), images.probability.copy()
    probability[:, 0] = 0.1 + 0.8 * truth[:, 0]
    truth[:, 1] = index == index[0]
    found = compute_clustered_auroc_intervals(replace(images, truth=truth, probability=probability), index, [0, 1, 2])
    n_patients = [len(np.unique(index[truth[:, 0] == value])) for value in (1, 0)]
    assert found["auroc.per_class.Edema"] == pytest.approx(newcombe(1.0, *n_patients))
    low, high = found["auroc.per_class.Effusion"]
    assert high - low > 0.3, "one patient has the finding"
    low, high = found["auroc.macro"]
    assert high - low > 0.1, "the mean includes the uncertain finding"
    assert found["auroc.chexpert5"] == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("n_patients", "tolerance"), [(1000, 0.01), pytest.param(20_000, 0.002, marks=pytest.mark.slow)]
)
def test_both_methods_agree(n_patients, tolerance, monkeypatch):
    labels = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion")
    predictions = simulate_findings(n_patients, labels, unknown=0.2, prevalence=0.1)
    drawn = evaluate_predictions(predictions)["test"]["intervals"]
    monkeypatch.setattr(bootstrap, "MAX_BOOTSTRAP_PATIENTS", 500)
    monkeypatch.setattr("fastcxr.metrics.intervals.MAX_BOOTSTRAP_PATIENTS", 500)
    analytic = evaluate_predictions(predictions)["test"]["intervals"]
    assert (drawn["n_draws"], analytic["n_draws"]) == (2000, 200)
    assert "Obuchowski" in analytic["method"] and "Obuchowski" not in drawn["method"]
    assert list(drawn["of"]) == list(analytic["of"])
    names = [name for name in drawn["of"] if name.startswith("auroc")]
    assert len(names) == 8
    for name in names:
        assert analytic["of"][name] == pytest.approx(drawn["of"][name], abs=tolerance), name


@pytest.mark.slow
def test_a_test_set_of_the_size_of_chestxray14_needs_little_memory(few_draws):
    predictions = simulate_findings(56_000, [f"finding {k}" for k in range(14)], unknown=0.1, prevalence=0.05)
    found = {}
    assert peak_memory(lambda: found.update(evaluate_predictions(predictions)["test"])) < 1e9
    assert found["n_images"] > 110_000 and len(found["intervals"]["of"]) == 4 + 14 * 8 + 4
