"""Small convolutions of the stem compute in float32 under bfloat16 autocast; the other layers do not change."""

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

INPUT_SPEC = InputSpec(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def list_fp32_convs(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, Fp32Conv2d)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv2_100", ["conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw"]),
        ("efficientnet_b0", ["conv_stem", "blocks.0.0.conv_dw", "blocks.0.0.conv_pw"]),
        ("resnet18", []),  # 147 multiplications per output value
        ("convnext_atto", []),  # no batch norm
    ],
)
def test_small_convolutions_of_the_stem_stay_in_float32(name, expected):
    network = timm.create_model(name, num_classes=2).train()
    before = copy.deepcopy(network.state_dict())
    keep_stem_fp32(network, INPUT_SPEC)
    assert list_fp32_convs(network) == expected and network.training
    assert all(torch.equal(now, before[key]) for key, now in network.state_dict().items())


@pytest.mark.parametrize(("precision", "count"), [("bf16", 3), ("fp32", 0)])
def test_a_bfloat16_learner_has_a_float32_stem_on_a_cpu(precision, count, toy_manifest):
    options = {"image_size": 64, "batch_size": 6, "precision": precision, "device": "cpu"}
    recipe = Recipe("mobilenetv2_100", weights="none", **options)
    assert len(list_fp32_convs(make_learner(make_loaders(toy_manifest, recipe), recipe).model)) == count


@pytest.mark.parametrize("groups", [1, 4])
def test_outputs_and_gradients_are_float32_under_bfloat16_autocast(groups):
    layer, maps = nn.Conv2d(4, 4, 3, groups=groups), torch.rand(1, 4, 8, 8)
    expected = layer(maps)
    layer.__class__ = Fp32Conv2d
    with autocast("bf16", torch.device("cpu")):
        found = layer(maps)
        assert torch.relu(nn.Conv2d(4, 4, 1)(found)).dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
