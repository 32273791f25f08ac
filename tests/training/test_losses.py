"""Losses agree with their definitions, and activations are probabilities."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import AvgLoss, AvgSmoothLoss

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import SINGLE_LABEL, resolve_task
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.losses import SmoothLoss, WeightedAvgLoss, compute_class_weights, make_loss

COUNTS = np.array([10, 30, 60])
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
TRUTH = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1])
WEIGHTS = torch.tensor(COUNTS.sum() / (3 * COUNTS), dtype=torch.float32)


@pytest.mark.parametrize("weighted", ["none", "balanced"])
@pytest.mark.parametrize(("name", "epsilon"), [("cross_entropy", 0.0), ("label_smoothing", 0.1)])
def test_cross_entropy_agrees_with_its_definition(name, epsilon, weighted):
    recipe = resolve_task(Recipe(loss=name, class_weights=weighted), SINGLE_LABEL)
    loss = make_loss(recipe, COUNTS)(LOGITS, TRUTH)
    target = torch.full((8, 3), epsilon / 3)
    target[torch.arange(8), TRUTH] += 1 - epsilon
    losses = -(target * LOGITS.log_softmax(dim=1)).sum(dim=1)
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(loss), (losses * weight).sum() / weight.sum())


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_class_weights_do_not_change_the_focus_of_the_focal_loss(weighted):
    loss = make_loss(Recipe(loss="focal", focal_gamma=2.0, class_weights=weighted), COUNTS)(LOGITS, TRUTH)
    p = LOGITS.softmax(dim=1)[torch.arange(8), TRUTH]
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(loss), (-((1 - p) ** 2) * p.log() * weight).sum() / weight.sum())


def test_focal_loss_with_gamma_zero_is_cross_entropy():
    loss = make_loss(Recipe(loss="focal", focal_gamma=0.0), COUNTS)(LOGITS, TRUTH)
    torch.testing.assert_close(torch.as_tensor(loss), F.cross_entropy(LOGITS, TRUTH))


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_mean_squared_error_compares_probabilities_with_one_hot_targets(weighted):
    loss = make_loss(Recipe(loss="mse", class_weights=weighted), COUNTS)(LOGITS, TRUTH)
    losses = ((LOGITS.softmax(dim=1) - torch.eye(3)[TRUTH]) ** 2).mean(dim=1)
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(loss), (losses * weight).sum() / weight.sum())


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_binary_cross_entropy_is_the_mean_over_one_vs_rest(weighted):
    loss = make_loss(Recipe(loss="binary_cross_entropy", class_weights=weighted), COUNTS)(LOGITS, TRUTH)
    p, y = LOGITS.softmax(dim=1), torch.eye(3)[TRUTH]
    losses = F.binary_cross_entropy(p, y, reduction="none").mean(dim=1)
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(loss), (losses * weight).sum() / weight.sum())


@pytest.mark.parametrize(
    ("name", "definition"), [("binary_cross_entropy", F.binary_cross_entropy), ("mse", F.mse_loss)]
)
def test_with_two_classes_the_loss_is_that_of_a_single_sigmoid(name, definition):
    logits, truth = LOGITS[:, :2], TRUTH % 2
    single = torch.sigmoid(logits[:, 1] - logits[:, 0])
    loss = make_loss(Recipe(loss=name), COUNTS[:2])
    torch.testing.assert_close(torch.as_tensor(loss(logits, truth)), definition(single, truth.float()))
    torch.testing.assert_close(loss.activation(logits)[:, 1], single)


@pytest.mark.parametrize("name", ["mse", "binary_cross_entropy", "focal", "cross_entropy"])
def test_gradients_are_finite_for_confident_wrong_predictions(name):
    logits = torch.tensor([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]], requires_grad=True)
    make_loss(Recipe(loss=name), COUNTS)(logits, torch.tensor([1, 1])).backward()
    assert torch.isfinite(logits.grad).all()


def test_balanced_class_weights_agree_with_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    truth = np.repeat([0, 1, 2], COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    np.testing.assert_allclose(compute_class_weights(COUNTS).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy"])
def test_activations_sum_to_one_and_decisions_are_the_argmax(name):
    loss = make_loss(Recipe(loss=name), COUNTS)
    torch.testing.assert_close(loss.activation(LOGITS).sum(dim=1), torch.ones(8))
    assert torch.equal(loss.decodes(LOGITS), LOGITS.argmax(dim=1))


def test_fastai_can_set_the_reduction():
    loss = make_loss(Recipe(), COUNTS)
    loss.reduction = "none"
    assert loss(LOGITS, TRUTH).shape == (8,)


def test_the_validation_loss_does_not_depend_on_the_batches(toy_manifest):
    recipe = Recipe("fastcxr:baseline_cnn", weights="none", image_size=64, class_weights="balanced", loss="focal")
    rows = toy_manifest["split"] == "valid"
    table = pd.concat([toy_manifest, toy_manifest[rows & (toy_manifest["label"] == "clear")]], ignore_index=True)
    losses = []
    for size in (1, 2, 500):
        learner = make_learner(make_loaders(table.sort_values("label"), recipe.replace(batch_size=size)), recipe)
        learner.loss_func.func.weight = torch.tensor([0.2, 1.0, 6.0])
        with learner.no_bar():
            losses.append(learner.validate()[0])
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize(("own", "of_fastai"), [(SmoothLoss, AvgSmoothLoss), (WeightedAvgLoss, AvgLoss)])
def test_mean_losses_equal_those_of_fastai_bit_for_bit(own, of_fastai):
    metrics = own(), of_fastai()
    for _ in range(2):  # epochs
        for metric in metrics:
            metric.reset()
        for loss in torch.rand(9, generator=torch.Generator().manual_seed(0), requires_grad=True):
            learner = SimpleNamespace(
                loss=loss, loss_func=None, yb=(torch.zeros(6),), to_detach=lambda value: value.detach()
            )
            for metric in metrics:
                metric.accumulate(learner)
            assert metrics[0].value.item() == metrics[1].value.item()
            assert not metrics[0].value.requires_grad


def test_the_weighted_mean_loss_is_undefined_without_a_batch():
    metric = WeightedAvgLoss()
    metric.reset()
    assert metric.value is None


@pytest.mark.gpu
def test_after_a_fit_on_a_gpu_the_recorded_losses_are_on_the_cpu(toy_manifest):
    recipe = Recipe("fastcxr:baseline_cnn", weights="none", image_size=64, batch_size=6, device="cuda")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    with learner.no_bar(), learner.no_logging():
        learner.fit(2)
    assert len(learner.recorder.losses) == 6
    assert all(loss.is_cpu for loss in learner.recorder.losses)
    learner.recorder.plot_loss()
