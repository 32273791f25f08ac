"""Each loss against a second implementation, and its predictions as probabilities that sum to one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastcxr.recipe import Recipe
from fastcxr.training.losses import class_weights, make_loss

COUNTS = np.array([10, 30, 60])
LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
TRUTH = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1])
WEIGHTS = torch.tensor(COUNTS.sum() / (3 * COUNTS), dtype=torch.float32)


@pytest.mark.parametrize("weighted", ["none", "balanced"])
@pytest.mark.parametrize(("name", "epsilon"), [("cross_entropy", 0.0), ("label_smoothing", 0.1)])
def test_cross_entropy_agrees_with_the_definition(name, epsilon, weighted):
    ours = make_loss(Recipe(loss=name, class_weights=weighted), COUNTS)(LOGITS, TRUTH)
    target = torch.full((8, 3), epsilon / 3)
    target[torch.arange(8), TRUTH] += 1 - epsilon
    each = -(target * LOGITS.log_softmax(dim=1)).sum(dim=1)
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(ours), (each * weight).sum() / weight.sum())


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_focal_loss_focuses_on_the_probability_of_the_truth_whatever_the_weights(weighted):
    ours = make_loss(Recipe(loss="focal", focal_gamma=2.0, class_weights=weighted), COUNTS)(LOGITS, TRUTH)
    p = LOGITS.softmax(dim=1)[torch.arange(8), TRUTH]
    weight = WEIGHTS[TRUTH] if weighted == "balanced" else torch.ones(8)
    torch.testing.assert_close(torch.as_tensor(ours), (-((1 - p) ** 2) * p.log() * weight).sum() / weight.sum())


def test_focal_loss_without_focus_is_cross_entropy():
    ours = make_loss(Recipe(loss="focal", focal_gamma=0.0), COUNTS)(LOGITS, TRUTH)
    torch.testing.assert_close(torch.as_tensor(ours), F.cross_entropy(LOGITS, TRUTH))


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    truth = np.repeat([0, 1, 2], COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=truth)
    np.testing.assert_allclose(class_weights(COUNTS).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["label_smoothing", "focal", "cross_entropy"])
def test_every_loss_ends_in_probabilities_that_sum_to_one(name):
    loss = make_loss(Recipe(loss=name), COUNTS)
    torch.testing.assert_close(loss.activation(LOGITS).sum(dim=1), torch.ones(8))
    assert torch.equal(loss.decodes(LOGITS), LOGITS.argmax(dim=1))


def test_reductions_are_those_that_fastai_asks_for():
    loss = make_loss(Recipe(), COUNTS)
    loss.reduction = "none"
    assert loss(LOGITS, TRUTH).shape == (8,)
