"""A head as it was described, in place of the network's own, even at its start and rebuilt from its description."""

import pytest
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import (
    LINEAR_HEAD,
    Head,
    HeadConfig,
    find_head,
    find_head_modules,
    find_head_parameters,
    replace_head,
)
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

PLAN = HeadConfig(hidden=(32, 16), dropout=0.25)
# a linear head in both libraries, one behind a pooling of its own, one that is a convolution, two at once
KINDS = [
    "mobilenetv2_035", "convnext_atto", "deit_tiny_distilled_patch16_224", "fastcxr:baseline_cnn",
    "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:resnet18",
]  # fmt: skip


def build(name: str, head: HeadConfig = LINEAR_HEAD, size: int = 64) -> nn.Module:
    return make_network(find_backbone(name, "none"), 3, "none", size, head)


def see(network: nn.Module, name: str, size: int = 64) -> torch.Tensor:
    return network(torch.rand(4, len(find_backbone(name, "none").mean), size, size))


@pytest.mark.parametrize("name", KINDS)
def test_a_described_head_trains_and_predicts_and_starts_even(name):
    network = build(name, PLAN)
    with torch.no_grad():
        torch.testing.assert_close(see(network.eval(), name).softmax(dim=1), torch.full((4, 3), 1 / 3))
    heads = [module for module in network.modules() if isinstance(module, Head)]
    assert all([type(m) for m in head][1::3] == [nn.ReLU, nn.ReLU] for head in heads)
    assert all(isinstance(head[i], nn.Dropout) and head[i].p == 0.25 for head in heads for i in (2, 5))
    nn.init.normal_(heads[0][-1].weight)
    out = see(network.train(), name)
    out = out[0] if isinstance(out, tuple) else out  # distilled networks train two heads
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in heads[0].parameters())


def test_hidden_layers_start_at_random_and_from_the_seed(toy_manifest):
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, head_hidden=(32,), dropout=0.1)
    loaders = make_loaders(toy_manifest, recipe)
    first, same, other = (find_head(make_learner(loaders, recipe.replace(seed=s)).model)[0].weight for s in (1, 1, 2))
    assert first.std() > 0.01
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_dropout_without_hidden_layers_stands_before_the_classes():
    head = find_head(build("mobilenetv2_035", HeadConfig(dropout=0.5)))
    assert [type(module) for module in head] == [nn.Dropout, nn.Linear]


def test_without_a_description_the_head_is_the_one_linear_layer():
    assert type(find_head(build("mobilenetv2_035"))) is nn.Linear
    assert type(find_head(build("torchvision:resnet18"))) is nn.Linear


@pytest.mark.parametrize("name", ["mobilenetv2_035", "torchvision:mobilenet_v3_small"])
def test_a_new_head_gives_every_class_the_same_probability(name):
    probability = build(name).eval()(torch.rand(8, 3, 64, 64)).softmax(dim=1)
    torch.testing.assert_close(probability, torch.full((8, 3), 1 / 3))


def test_head_keys_name_the_head_in_the_state_dict():
    assert find_head_parameters(build("mobilenetv2_035")) == {"classifier.weight", "classifier.bias"}
    keys = {f"classifier.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert find_head_parameters(build("mobilenetv2_035", HeadConfig(hidden=(8,)))) == keys
    assert find_head_modules(build("deit_tiny_distilled_patch16_224")) == ["head", "head_dist"]


def test_a_head_that_cannot_be_replaced_is_refused_with_the_way_out():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Identity()

        def get_classifier(self):
            return self.last

    with pytest.raises(RecipeError, match="Leave --head-hidden and --dropout out"):
        replace_head(Odd(), 3, PLAN)
