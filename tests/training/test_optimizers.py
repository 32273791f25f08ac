"""A name gives the optimizer that papers mean by it; an unknown one is refused with a suggestion."""

import pytest
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.config.validation import OPTIMIZERS
from fastcxr.errors import RecipeError
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.optimizers import FASTAI_OPTIMIZERS, find_optimizer, find_weight_decay
from fastcxr.training.trainer import train

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=32, batch_size=6, epochs=1, strategy="full")


def walk(make, decay: float, steps: int = 20) -> torch.Tensor:
    """A weight after some steps down a fixed bowl."""
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
    ("name", "torchs", "options"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.99), "eps": 1e-5}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9}),
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.99), "eps": 1e-5, "decoupled_weight_decay": True}),
    ],
)
def test_each_name_walks_as_torchs_optimizer_of_that_name(name, torchs, options, decay):
    ours = walk(lambda weights: find_optimizer(name)(weights, lr=0.01), decay)
    theirs = walk(lambda weights: torchs(weights, lr=0.01, weight_decay=decay, **options), decay)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_names_of_the_recipe_are_all_here():
    assert set(FASTAI_OPTIMIZERS) == set(OPTIMIZERS)


@pytest.mark.parametrize(
    ("choices", "decay"),
    [({}, 0.01), ({"optimizer": "adamw"}, 0.01), ({"optimizer": "adam"}, 0.0), ({"optimizer": "timm:lamb"}, 0.0),
     ({"optimizer": "adam", "weight_decay": 1e-4}, 1e-4)],
)  # fmt: skip
def test_weight_decay_that_is_not_given_is_what_the_name_means(choices, decay):
    assert find_weight_decay(Recipe(**choices)) == decay


@pytest.mark.parametrize(
    ("name", "rate"),
    [("adam", 1e-3), ("sgd", "find"), ("timm:adamw", 1e-3), ("timm:sgd", "find"), ("timm:adafactor", "find")],
)
def test_a_stage_trains_with_frozen_groups_and_the_finder(toy_manifest, name, rate):
    recipe = RECIPE.replace(optimizer=name, learning_rate=rate, strategy="head", weight_decay=0.1)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    before = {key: value.clone() for key, value in learner.model.state_dict().items()}
    train(learner, recipe)
    after = learner.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_a_frozen_layer_does_not_decay_from_an_old_gradient(toy_manifest):
    recipe = RECIPE.replace(optimizer="timm:adamw", strategy="head", weight_decay=0.1)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    stem = learner.model.conv_stem.weight
    stem.grad, before = torch.zeros_like(stem), stem.detach().clone()
    train(learner, recipe)
    assert torch.equal(stem, before)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("timm:lambb", "Did you mean 'timm:lamb'?"),
        ("timm:qqqqqqqq", "timm.optim.list_optimizers() names them"),
        ("timm:adahessian", "Take another, such as timm:adamw"),
        ("timm:", "timm.optim.list_optimizers() names them"),
    ],
)
def test_what_timm_cannot_give_is_refused_with_a_remedy(name, remedy):
    with pytest.raises(RecipeError) as caught:
        find_optimizer(name)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_optimizer_that_wants_what_is_not_here_says_so():
    with pytest.raises(RecipeError, match="cannot be used here.*Take another"):
        find_optimizer("timm:fusedadam")
