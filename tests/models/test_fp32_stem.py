"""The first convolutions compute in float32, where they are small; everything else is left as it was."""

import copy

import pytest
import timm
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.models.precision import Fp32Conv2d, autocast, keep_stem_fp32
from fastcxr.models.preprocessing import InputSpec
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

PIXELS = InputSpec(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def exact_ones(network: nn.Module) -> list[str]:
    """Names of the convolutions that compute in float32."""
    return [name for name, module in network.named_modules() if isinstance(module, Fp32Conv2d)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv2_100", ["conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw"]),
        ("efficientnet_b0", ["conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw"]),
        ("resnet18", []),  # 147 multiplications for a value
        ("convnext_atto", []),  # no batch norm
    ],
)
def test_small_convolutions_at_the_beginning_are_exact(name, expected):
    network = timm.create_model(name, num_classes=2).train()
    before = copy.deepcopy(network.state_dict())
    keep_stem_fp32(network, PIXELS)
    assert exact_ones(network) == expected and network.training
    assert all(torch.equal(now, before[key]) for key, now in network.state_dict().items())


@pytest.mark.parametrize(("precision", "count"), [("bf16", 3), ("fp32", 0)])
def test_a_learner_begins_exactly_in_bfloat16(precision, count, toy_manifest):
    recipe = Recipe("mobilenetv2_100", weights="none", image_size=64, batch_size=6, precision=precision)
    assert len(exact_ones(make_learner(make_loaders(toy_manifest, recipe), recipe).model)) == count


@pytest.mark.parametrize("groups", [1, 4])
def test_they_learn_and_answer_in_float32_in_the_midst_of_bfloat16(groups):
    layer, maps = nn.Conv2d(4, 4, 3, groups=groups), torch.rand(1, 4, 8, 8)
    expected = layer(maps)
    layer.__class__ = Fp32Conv2d
    with autocast("bf16", torch.device("cpu")):
        found = layer(maps)
        assert torch.relu(nn.Conv2d(4, 4, 1)(found)).dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
