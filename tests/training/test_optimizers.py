"""Optimizer names select the optimizers that papers mean by them; unknown names are rejected."""

import pytest
import torch
from tiny_network import NAME
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.config.validation import OPTIMIZERS
from fastcxr.errors import RecipeError
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.optimizers import FASTAI_OPTIMIZERS, find_optimizer, find_weight_decay
from fastcxr.training.trainer import train

RECIPE = Recipe(NAME, weights="none", image_size=32, batch_size=6, epochs=1, strategy="full")


def minimize(make, decay: float, steps: int = 20) -> torch.Tensor:
    """Return a weight after some steps on a quadratic function."""
    weight = nn.Parameter(torch.tensor([[2.0, -1.0, 0.5]]))
    optimizer = make([weight])
    for group in getattr(optimizer, "hypers", []):
        group["wd"] = decay
    for _ in range(steps):
        ((weight - torch.tensor([[1.0, 1.0, 1.0]])) ** 2 * torch.tensor([3.0, 1.0, 0.1])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "torch_optimizer", "options"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.99), "eps": 1e-5}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.99), "eps": 1e-5, "decoupled_weight_decay": True}),
    ],
)
def test_each_optimizer_agrees_with_that_of_torch(name, torch_optimizer, options, decay):
    weight = minimize(lambda weights: find_optimizer(name)(weights, lr=0.01), decay)
    expected = minimize(lambda weights: torch_optimizer(weights, lr=0.01, weight_decay=decay, **options), decay)
    torch.testing.assert_close(weight, expected, atol=1e-4, rtol=1e-4)


def test_all_optimizer_names_of_the_recipe_are_supported():
    assert set(FASTAI_OPTIMIZERS) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("options", "decay"),
    [({}, 0.01), ({"optimizer": "adamw"}, 0.01), ({"optimizer": "adam"}, 0.0), ({"optimizer": "timm:lamb"}, 0.0),
     ({"optimizer": "adam", "weight_decay": 1e-4}, 1e-4)],
)  # fmt: skip
def test_the_default_weight_decay_depends_on_the_optimizer(options, decay):
    assert find_weight_decay(Recipe(**options)) == decay


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("adam", 1e-3),
        ("sgd", "find"),
        ("timm:adamw", 1e-3),
        pytest.param("timm:sgd", "find", marks=pytest.mark.slow),
        ("timm:adafactor", "find"),
    ],
)
def test_optimizers_support_frozen_groups_and_the_learning_rate_finder(toy_manifest, name, rate):
    recipe = RECIPE.replace(optimizer=name, learning_rate=rate, strategy="head", weight_decay=0.1)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    train(learner, recipe)
    after = learner.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_weight_decay_does_not_change_a_frozen_layer_with_an_old_gradient(toy_manifest):
    recipe = RECIPE.replace(optimizer="timm:adamw", strategy="head", weight_decay=0.1)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    stem = learner.model.conv1[0].weight
    stem.grad, before = torch.zeros_like(stem), stem.detach().clone()
    train(learner, recipe)
    assert torch.equal(stem, before)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("timm:lambb", "Did you mean 'timm:lamb'?"),
        ("timm:qqqqqqqq", "Pass a name from timm.optim.list_optimizers()"),
        ("timm:adahessian", "Choose another optimizer, such as timm:adamw"),
        ("timm:", "Pass a name from timm.optim.list_optimizers()"),
    ],
)
def test_unknown_and_unsupported_timm_optimizers_raise_with_a_fix(name, fix):
    with pytest.raises(RecipeError) as caught:
        find_optimizer(name)
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_optimizer_that_needs_a_gpu_raises_without_one():
    with pytest.raises(RecipeError, match="cannot be used on this machine.*Choose another"):
        find_optimizer("timm:fusedadam")
