"""Several processes compute the batches, losses, gradients and metrics of one process."""

from itertools import chain

import numpy as np
import pytest
import torch
from fake_processes import act_as, gather_from, make_processes, one_connected_process
from tiny_network import NAME
from torch import nn

from fastcxr.config.recipe import Augmentation, Recipe, Stage
from fastcxr.errors import RecipeError
from fastcxr.models.heads import find_head
from fastcxr.training import loaders as loaders_module
from fastcxr.training.distributed import gather_rows, share_batches, synchronize_batch_norm
from fastcxr.training.finding_losses import FindingCrossEntropy
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders, select_rows
from fastcxr.training.losses import LabelSmoothingCrossEntropy
from fastcxr.training.trainer import train

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=5, epochs=2, strategy="full", device="cpu")
SAMPLERS = [{}, {"sampler": "weighted"}, {"oversample": ("haze=3",)}]


def split(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    return [rows[rank::size] for rank in range(size)]


@pytest.mark.parametrize("n_rows", [1, 2, 6, 7])
def test_gathered_rows_are_those_of_the_batch_in_order(monkeypatch, n_rows):
    logits = torch.randn(n_rows, 4)
    parts = split(logits, 3)
    gather_from(monkeypatch, parts)
    for rank, part in enumerate(parts):
        own = part if len(part) else logits[:1]  # see select_rows
        assert torch.equal(gather_rows(own, n_rows, make_processes(rank, 3)), logits)


@pytest.mark.parametrize("n_rows", [1, 5, 8])
@pytest.mark.parametrize("case", ["class weights", "unknown labels"])
def test_the_gradients_of_all_processes_sum_up_to_that_of_the_batch(monkeypatch, n_rows, case):
    torch.manual_seed(0)
    network, images = nn.Linear(6, 3), torch.randn(n_rows, 6)
    if case == "class weights":
        loss, targets = LabelSmoothingCrossEntropy(0.1, torch.tensor([0.2, 1.0, 5.0])), torch.randint(0, 3, (n_rows,))
    else:
        loss, targets = FindingCrossEntropy(torch.tensor([0.5, 1.0, 8.0])), torch.randint(0, 2, (n_rows, 3)).float()
        targets[torch.rand(n_rows, 3) < 0.4] = torch.nan
    loss(network(images), targets).backward()
    expected = network.weight.grad.clone()
    network.zero_grad()
    for rank in range(2):  # gradients accumulate
        rows = select_rows(list(range(n_rows)), slice(rank, None, 2))
        logits = network(images[rows])
        gather_from(monkeypatch, split(network(images), 2))
        loss(gather_rows(logits, n_rows, make_processes(rank, 2)), targets).backward()
    assert torch.allclose(network.weight.grad, expected, atol=1e-7)


def test_a_process_without_an_image_of_a_batch_computes_one_and_has_no_gradient(monkeypatch):
    assert select_rows([7], slice(1, None, 2)) == [7] and select_rows([7, 8], slice(1, None, 2)) == [8]
    weight = torch.ones(3, requires_grad=True)
    gather_from(monkeypatch, [torch.ones(1, 3), torch.ones(0, 3)])
    gather_rows(weight[None] * 2, 1, make_processes(1, 2)).sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3))


@pytest.mark.parametrize(("options", "is_cached"), [*((options, True) for options in SAMPLERS), ({}, False)])
def test_the_parts_of_all_processes_are_the_batches_of_one_process(toy_manifest, monkeypatch, options, is_cached):
    if not is_cached:
        monkeypatch.setattr(loaders_module, "find_cache_rows", lambda dataset, image_cache: None)
    recipe = RECIPE.replace(**options, augment=Augmentation(do_flip=True, mult=2))

    def list_epochs(part: slice | None) -> list:
        loaders = make_loaders(toy_manifest, recipe)
        batches = []
        for loader in (loaders.train, loaders.valid):
            loader.part = part
            batches += chain(loader, loader)
        return batches

    whole, *parts = (list_epochs(part) for part in (None, slice(0, None, 2), slice(1, None, 2)))
    for batch, *rank_batches in zip(whole, *parts, strict=True):
        for column, rank_columns in zip(batch, zip(*rank_batches, strict=True), strict=True):
            for own, expected in zip(rank_columns, split(column, 2), strict=True):
                if len(expected):
                    # sums in another order: the pixels are interpolated in smaller batches
                    assert torch.allclose(own.float(), expected.float(), atol=1e-5)


def train_once(manifest, recipe, *, is_connected):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    if not is_connected:
        return learner, train(learner, recipe)
    with one_connected_process():
        return learner, train(learner, recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-3, "strategy": (Stage(name="head", groups=1, epochs=1), Stage(name="all", epochs=1))},
        pytest.param({"learning_rate": "find", "precision": "bf16", "epochs": 1}, marks=pytest.mark.slow),
        pytest.param({"strategy": "lp_ft", "weights": "none", "epochs": 1}, marks=pytest.mark.slow),
    ],
    ids=["stages", "learning rate finder", "full"],
)
def test_one_process_of_torchrun_trains_as_a_plain_process(toy_manifest, changes):
    recipe = RECIPE.replace(**changes)
    (plain, plain_result), (shared, shared_result) = (
        train_once(toy_manifest, recipe, is_connected=is_connected) for is_connected in (False, True)
    )
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, shared.model.state_dict()[name]), name
    columns = [name for name in plain_result.history if name != "seconds"]
    assert plain_result.history[columns].equals(shared_result.history[columns])
    assert shared.dls.train.part is None and type(shared.model) is type(plain.model)


def test_loaders_of_the_user_are_rejected_by_several_processes(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    learner.dls.loaders[1] = object()
    with act_as(0, 2), pytest.raises(RecipeError, match="E602.*make_loaders"), share_batches(learner, RECIPE):
        pass


def test_synchronized_batch_norm_shares_weights_and_statistics_and_is_reverted(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    before = {name: type(module) for name, module in learner.model.named_modules()}
    state = learner.model.state_dict()
    with synchronize_batch_norm(learner.model):
        layers = [module for module in learner.model.modules() if isinstance(module, nn.SyncBatchNorm)]
        assert len(layers) == sum(issubclass(kind, nn.BatchNorm2d) for kind in before.values()) > 0
        layers[0].running_mean += 1
        layers[0].weight.data *= 3
        assert state.keys() == learner.model.state_dict().keys()
    assert {name: type(module) for name, module in learner.model.named_modules()} == before
    changed = [name for name, tensor in learner.model.state_dict().items() if tensor is not None and name in state]
    first = next(name for name in changed if name.endswith("running_mean"))
    assert np.allclose(learner.model.state_dict()[first], 1.0)
    assert find_head(learner.model) is not None
