"""Losses of findings agree with their definitions, and unknown labels change nothing."""

from types import SimpleNamespace

import fastai.callback.progress  # noqa: F401  adds no_bar to Learner
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoader, DataLoaders
from fastai.learner import Learner
from sklearn.metrics import roc_auc_score
from timm.loss import AsymmetricLossMultiLabel

from fastcxr.config.recipe import Recipe
from fastcxr.training.finding_losses import (
    compute_finding_auroc_from_logits,
    compute_positive_weights,
    make_finding_loss,
    weigh_rows,
)
from fastcxr.training.losses import WeightedAvgLoss

UNKNOWN = float("nan")
LOGITS = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
KNOWN = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
TRUTH = KNOWN.masked_fill(torch.rand(40, 5, generator=torch.Generator().manual_seed(2)) < 0.4, UNKNOWN)
LOSSES = ["binary_cross_entropy", "focal", "asymmetric"]


def make(name="binary_cross_entropy", truth=None, **options):
    return make_finding_loss(Recipe(loss=name, class_weights="none" if truth is None else "balanced", **options), truth)


def compute_gradient(loss, logits, truth):
    logits = logits.clone().requires_grad_()
    value = loss(logits, truth)
    value.backward()
    return value.item(), logits.grad


def test_without_unknown_labels_the_loss_is_that_of_torch():
    value, gradient = compute_gradient(make(), LOGITS, KNOWN)
    expected, expected_gradient = compute_gradient(torch.nn.BCEWithLogitsLoss(), LOGITS, KNOWN)
    assert value == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_label_has_no_gradient_and_its_logit_does_not_matter(name):
    loss, other_logits = make(name, KNOWN.numpy()), LOGITS.clone()
    other_logits[TRUTH.isnan()] = UNKNOWN
    for logits in (LOGITS, other_logits):
        value, gradient = compute_gradient(loss, logits, TRUTH)
        assert (gradient[TRUTH.isnan()] == 0).all() and (gradient[~TRUTH.isnan()] != 0).float().mean() > 0.6
        assert value == compute_gradient(loss, LOGITS, TRUTH)[0]


def test_the_loss_is_the_mean_over_the_known_labels_alone():
    is_known = ~TRUTH.isnan()
    expected = F.binary_cross_entropy_with_logits(LOGITS[is_known], TRUTH[is_known])
    torch.testing.assert_close(torch.as_tensor(make()(LOGITS, TRUTH)), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_known_labels_has_the_loss_zero(name):
    value, gradient = compute_gradient(make(name), LOGITS, torch.full_like(TRUTH, UNKNOWN))
    assert value == 0 and gradient.eq(0).all()


def test_the_loss_of_each_image_is_the_mean_of_its_known_labels():
    loss = make()
    loss.reduction = "none"
    truth = torch.tensor([[1.0, UNKNOWN, 0.0], [UNKNOWN, UNKNOWN, UNKNOWN]])
    logits = torch.tensor([[2.0, 9.0, 1.0], [1.0, 2.0, 3.0]])
    expected = F.binary_cross_entropy_with_logits(logits[0, [0, 2]], truth[0, [0, 2]]).item()
    assert loss(logits, truth).tolist() == pytest.approx([expected, 0.0])


def test_label_smoothing_moves_both_values_by_half_of_it():
    smooth = KNOWN * 0.8 + 0.1
    value = make(label_smoothing=0.2)(LOGITS, KNOWN)
    torch.testing.assert_close(torch.as_tensor(value), F.binary_cross_entropy_with_logits(LOGITS, smooth))


def test_positive_weights_agree_with_torch():
    weights = compute_positive_weights(KNOWN.numpy())
    value = make(truth=KNOWN.numpy())(LOGITS, KNOWN)
    expected = F.binary_cross_entropy_with_logits(LOGITS, KNOWN, pos_weight=weights)
    torch.testing.assert_close(torch.as_tensor(value), expected)


def test_positive_weights_are_ratios_of_known_labels_within_limits():
    truth = np.full((50, 5), np.nan)
    for column, (positives, negatives) in enumerate([(10, 20), (1, 49), (49, 1), (0, 50), (0, 0)]):
        truth[:positives, column], truth[positives : positives + negatives, column] = 1, 0
    assert compute_positive_weights(truth).tolist() == pytest.approx([2, 10, 0.1, 10, 10])


def test_focal_loss_agrees_with_its_definition():
    p = torch.where(KNOWN == 1, LOGITS.sigmoid(), 1 - LOGITS.sigmoid())
    value = make("focal", focal_gamma=3.0)(LOGITS, KNOWN)
    torch.testing.assert_close(torch.as_tensor(value), (-((1 - p) ** 3) * p.log()).mean())


def test_asymmetric_loss_agrees_with_timm():
    value, gradient = compute_gradient(make("asymmetric"), LOGITS, KNOWN)
    # timm adds the losses of the findings of an image
    timm = AsymmetricLossMultiLabel(gamma_neg=4, gamma_pos=1, clip=0.05)
    expected, expected_gradient = compute_gradient(lambda *parts: timm(*parts) / 5, LOGITS, KNOWN)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_for_confident_wrong_predictions(name):
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]])
    value, gradient = compute_gradient(make(name), logits, torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    assert np.isfinite(value) and gradient.isfinite().all()


def test_activations_are_independent_probabilities_and_decisions_compare_them_with_a_half():
    loss = make()
    torch.testing.assert_close(loss.activation(LOGITS), LOGITS.sigmoid())
    assert torch.equal(loss.decodes(loss.activation(LOGITS)), LOGITS > 0)


def test_mixup_mixes_labels_and_keeps_unknown_ones():
    seen = []
    loaders = DataLoaders(*[DataLoader(list(zip(LOGITS, TRUTH, strict=True)), bs=20) for _ in range(2)])
    loss = make()
    learner = Learner(loaders, torch.nn.Linear(5, 5), lambda *parts: seen.append(parts[1]) or loss(*parts), cbs=MixUp())
    learner.loss_func.y_int = loss.y_int
    with learner.no_bar(), learner.no_logging():
        learner.fit(1)
    mixed = torch.cat(seen[:2])
    assert mixed.isnan().float().mean() > TRUTH.isnan().float().mean()
    assert ((mixed > 0.01) & (mixed < 0.99)).any()
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())


@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_validation_loss_counts_each_known_label_once(size):
    metric, loss = WeightedAvgLoss(), make("focal", KNOWN.numpy())
    metric.reset()
    for logits, truth in zip(LOGITS.split(size), TRUTH.split(size), strict=True):
        metric.accumulate(SimpleNamespace(loss=loss(logits, truth), loss_func=loss, yb=(truth,)))
    assert float(metric.value) == pytest.approx(float(loss(LOGITS, TRUTH)), rel=1e-5)


def test_the_validation_loss_without_known_labels_is_zero():
    metric, loss, truth = WeightedAvgLoss(), make(), torch.full_like(TRUTH, UNKNOWN)
    metric.reset()
    metric.accumulate(SimpleNamespace(loss=loss(LOGITS, truth), loss_func=loss, yb=(truth,)))
    assert float(metric.value) == 0


def test_the_weight_of_an_image_is_that_of_its_rarest_finding():
    truth = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [np.nan, 0], [np.nan, np.nan], [0, np.nan]])
    assert weigh_rows(truth) == pytest.approx([1 / 3, 1 / 3, 1, 1 / 4, 1 / 4, 1 / 4, 1 / 4])


def test_no_image_without_a_finding_needs_no_weight():
    assert weigh_rows(np.array([[1.0], [1.0]])) == [0.5, 0.5]


def test_the_macro_auroc_is_the_mean_over_findings_with_both_values_of_their_known_labels():
    truth = TRUTH.clone()
    truth[:, 1], truth[:, 2] = 0, UNKNOWN
    expected = []
    for finding in (0, 3, 4):
        is_known = ~truth[:, finding].isnan()
        expected.append(roc_auc_score(truth[is_known, finding], LOGITS[is_known, finding]))
    assert compute_finding_auroc_from_logits(LOGITS, truth) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "truth"), [(LOGITS, torch.ones(40, 5)), (LOGITS * UNKNOWN, TRUTH)], ids=["one", "nan"]
)
def test_the_macro_auroc_is_undefined_without_two_values_or_with_undefined_logits(logits, truth):
    assert np.isnan(compute_finding_auroc_from_logits(logits, truth))
