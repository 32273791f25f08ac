"""Heads of findings agree with scikit-learn on their known labels, and do not depend on the other findings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from training_probes import SILENT

from fastcxr.errors import TrainingError
from fastcxr.training import feature_split, finding_probe, linear_probe
from fastcxr.training.feature_split import FeatureSplit
from fastcxr.training.finding_losses import (
    AsymmetricFindingLoss,
    FindingCrossEntropy,
    FocalFindingLoss,
    compute_positive_weights,
)

N_ROWS, N_FEATURES, N_VIEWS = 300, 40, 2
TRAIN, VALID = np.arange(200), np.arange(200, N_ROWS)


def make_data(seed=0):
    """Return features, shape (views, n, d), and truth of five findings: common, rare, absent, present, unknown."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(N_ROWS, 1)) * (np.arange(N_FEATURES) < 20)
    features = rng.normal(size=(N_VIEWS, N_ROWS, N_FEATURES)) + 3 * common
    scores = features.mean(axis=0) @ rng.normal(size=(N_FEATURES, 5)) / 3 + rng.normal(size=(N_ROWS, 5))
    truth = (scores > np.quantile(scores, [0.6, 0.9, 0.5, 0.5, 0.5], axis=0).diagonal()).astype(np.float32)
    truth[:, 2], truth[:, 3] = 0, 1
    truth[rng.random(truth.shape) < 0.2] = np.nan
    truth[:, 4] = np.nan
    return features.astype(np.float32), torch.from_numpy(truth)


FEATURES, TRUTH = make_data()


def make_split(rows, truth=TRUTH, features=FEATURES, weights=None):
    return FeatureSplit(features, rows, truth[rows], torch.ones(len(rows)) if weights is None else weights)


def make_head(n_findings=5):
    linear = torch.nn.Linear(N_FEATURES, n_findings)
    return SimpleNamespace(linear=linear, mean=torch.zeros(N_FEATURES), std=torch.ones(N_FEATURES))


def fit(train=None, valid=None, loss=None):
    train = make_split(TRAIN) if train is None else train
    head, valid = make_head(train.labels.shape[1]), make_split(VALID) if valid is None else valid
    return head, linear_probe.fit_probe(head, loss or FindingCrossEntropy(), train, valid, SILENT)


@pytest.fixture
def strengths(monkeypatch):
    """Fit with the penalty 0.1 alone."""
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (0.1,))


def standardize(head, rows):
    x = np.concatenate([FEATURES[view, rows] for view in range(N_VIEWS)]).astype(float)
    return (x - head.mean.numpy()) / head.std.numpy()


def assert_sklearn_agrees(head, weight, rows, finding, l2, weights=None, positive_weight=1.0):
    """Compare the probabilities of one finding with those of scikit-learn."""
    x, y = standardize(head, rows), np.tile(TRUTH[rows, finding].numpy(), N_VIEWS)
    is_known = ~np.isnan(y)
    weights = np.tile(np.ones(len(rows)) if weights is None else weights, N_VIEWS)[is_known]
    model = LogisticRegression(C=1 / (l2 * weights.sum()), max_iter=10_000, tol=1e-9)
    model.fit(x[is_known], y[is_known], sample_weight=weights * np.where(y[is_known] == 1, positive_weight, 1))
    probability = 1 / (1 + np.exp(-(x @ weight[finding, :-1].numpy() + weight[finding, -1].item())))
    np.testing.assert_allclose(probability, model.predict_proba(x)[:, 1], atol=1e-3)


@pytest.mark.parametrize("finding", [0, 1])
@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_each_finding_agrees_with_scikit_learn_on_its_known_labels(monkeypatch, finding, l2):
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (l2,))
    head, result = fit()
    assert_sklearn_agrees(head, result.weight, TRAIN, finding, l2)


def test_positive_weights_and_sampling_weights_agree_with_scikit_learn(strengths):
    positive_weight = compute_positive_weights(TRUTH[TRAIN].numpy())
    weights = torch.rand(len(TRAIN), generator=torch.Generator().manual_seed(0)) + 0.5
    head, result = fit(make_split(TRAIN, weights=weights), loss=FindingCrossEntropy(positive_weight))
    for finding in (0, 1):
        factor = positive_weight[finding].item()
        assert_sklearn_agrees(head, result.weight, TRAIN, finding, 0.1, weights.numpy(), factor)


def test_a_finding_is_fitted_as_if_it_were_the_only_one(strengths):
    _, together = fit()
    for finding in (0, 1):
        truth = TRUTH[:, [finding]]
        _, alone = fit(make_split(TRAIN, truth), make_split(VALID, truth))
        torch.testing.assert_close(alone.weight[0], together.weight[finding], atol=1e-3, rtol=1e-2)


def test_a_finding_without_positives_or_negatives_has_its_log_odds_as_bias():
    _, result = fit()
    assert result.weight[2:, :-1].eq(0).all()
    absent, present = ((~TRUTH[TRAIN, finding].isnan()).sum().item() for finding in (2, 3))
    expected = [np.log(0.5 / (absent + 0.5)), np.log((present + 0.5) / 0.5), 0.0]
    assert result.weight[2:, -1].tolist() == pytest.approx(expected, rel=1e-5)


def test_one_penalty_serves_all_findings_without_many_positives():
    loss_sums = torch.tensor([[3.0, 1.0], [1.0, 2.5], [2.0, 2.0]])
    truth = torch.zeros(100, 2)
    truth[: finding_probe.MIN_VALID_POSITIVES, 0] = truth[: finding_probe.MIN_VALID_POSITIVES - 1, 1] = 1
    common, best = finding_probe.select_penalties(loss_sums + torch.tensor([[0.0, 0.0], [0.6, 0.6], [0.0, 0.0]]), truth)
    assert (common, best.tolist()) == (0, [1, 0])


def test_the_validation_loss_is_the_mean_over_all_known_labels():
    head, result = fit()
    logits, truth = linear_probe.compute_all_logits(result.weight, head, make_split(VALID)), TRUTH[VALID]
    assert result.valid_loss == pytest.approx(float(FindingCrossEntropy()(logits, truth)), rel=1e-5)


@pytest.mark.parametrize("loss", [FocalFindingLoss(2.0), AsymmetricFindingLoss(), FindingCrossEntropy(smoothing=0.2)])
def test_other_losses_reach_a_minimum_of_their_objective(strengths, loss):
    head, result = fit(loss=loss)
    x, truth = torch.from_numpy(standardize(head, TRAIN)), TRUTH[TRAIN].repeat(N_VIEWS, 1)[:, :2]
    weight = result.weight[:2].double().requires_grad_()
    losses = loss.compute_losses(x @ weight[:, :-1].T + weight[:, -1], truth).sum(dim=0) / (~truth.isnan()).sum(dim=0)
    (losses.sum() + 0.1 / 2 * weight[:, :-1].square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4
    assert weight.detach()[:, :-1].abs().max() > 0.01


@pytest.mark.parametrize("loss", [FindingCrossEntropy(torch.tensor([2.0, 5.0, 1.0, 1.0, 1.0]), smoothing=0.1)])
def test_the_analytic_gradient_is_that_of_autograd(loss):
    logits, findings = 3 * torch.randn(N_ROWS, 5, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    losses, gradients = loss.compute_gradients(logits, TRUTH, findings)
    expected = super(FindingCrossEntropy, loss).compute_gradients(logits, TRUTH, findings)
    torch.testing.assert_close((losses, gradients), expected)


def test_a_refit_uses_the_rows_of_both_splits():
    head, result = fit()
    both = make_split(TRAIN).concat(make_split(VALID))
    weight = finding_probe.refit_findings(head, FindingCrossEntropy(), both, result, linear_probe.SILENT_BAR)
    for finding in (0, 1):
        assert_sklearn_agrees(head, weight, np.arange(N_ROWS), finding, result.finding_l2[finding])


def test_the_chunk_size_does_not_change_the_heads(monkeypatch):
    _, expected = fit()
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 64)
    _, chunked = fit()
    torch.testing.assert_close(chunked.weight, expected.weight, atol=1e-3, rtol=1e-2)


def test_undefined_features_are_refused():
    features = FEATURES.copy()
    features[:, 250, 3] = np.nan
    with pytest.raises(TrainingError, match="validation loss of the fitted head is NaN"):
        fit(valid=make_split(VALID, features=features))


def test_labels_that_are_all_unknown_give_an_even_chance():
    truth = torch.full_like(TRUTH, float("nan"))
    _, result = fit(make_split(TRAIN, truth), make_split(VALID, truth))
    assert result.weight.eq(0).all() and result.valid_loss == 0


def test_a_fit_of_features_on_disk_equals_that_in_memory(monkeypatch):
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 64)
    fits, logits = [], []
    for available in (1 << 30, 0):
        monkeypatch.setattr(feature_split, "read_available_memory", lambda available=available: available)
        train = make_split(TRAIN)
        head, found = fit(train)
        fits.append(found)
        logits.append(linear_probe.compute_all_logits(found.weight, head, make_split(VALID)))
        assert (train.cached_chunks is None) == (available == 0)
    assert fits[0].weight.equal(fits[1].weight) and fits[0].finding_l2 == fits[1].finding_l2
    torch.testing.assert_close(logits[0].sigmoid(), logits[1].sigmoid(), atol=1e-6, rtol=0)
