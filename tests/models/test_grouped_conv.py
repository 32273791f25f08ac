"""Convolutions with few channels a group: the same answers, the same gradients, by a quicker road."""

import pytest
import torch
from torch import nn

from fastcxr.models.grouped_conv import MIN_FAST_GROUP_CHANNELS
from fastcxr.models.precision import autocast

CPU = torch.device("cpu")

FORMS = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 5, "stride": 2, "padding": 2, "bias": False},
    {"kernel_size": 5, "stride": 1, "padding": 2},
    {"kernel_size": 7, "stride": 3, "padding": 0},
    {"kernel_size": 3, "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"kernel_size": (1, 3), "stride": (1, 2), "padding": 0, "dilation": 2},
    {"kernel_size": 2, "stride": 2, "padding": 0},
    {"kernel_size": 1, "stride": 2, "padding": 0, "bias": False},
]


def learn(layer: nn.Module, images: torch.Tensor, arithmetic) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Its answer, and the gradients of the images and of all weights for a sum with fixed factors."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with arithmetic:
        answer = layer(images)
    factors = torch.linspace(-1, 1, answer.numel()).view_as(answer)
    (answer.float() * factors).sum().backward()
    return answer, [images.grad, *(weight.grad.clone() for weight in layer.parameters())]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 12), (13, 16)])
def test_gradients_are_those_of_autocast_within_rounding(form, width, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(6 * width, 6 * width, groups=6, **form).to(memory_format=torch.channels_last)
    images = torch.randn(4, 6 * width, *size).to(memory_format=torch.channels_last)
    answer, gradients = learn(layer, images, autocast("bf16", CPU))
    theirs, expected = learn(layer, images, torch.autocast("cpu", torch.bfloat16))
    assert "_GroupedConv2d" in type(answer.grad_fn).__name__
    assert torch.equal(answer, theirs)
    for found, wanted in zip(gradients, expected, strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype == torch.float32
        assert (found - wanted).norm() <= 0.01 * wanted.norm()


def is_mended(layer: nn.Module, precision: str, images: torch.Tensor) -> bool:
    """Whether its answer would learn by the quicker road."""
    with autocast(precision, CPU):
        return "_GroupedConv2d" in type(layer(images).grad_fn).__name__


def test_only_few_channels_a_group_in_bfloat16_are_concerned():
    depthwise, images = nn.Conv2d(16, 16, 3, groups=16), torch.rand(2, 16, 8, 8)
    assert is_mended(depthwise, "bf16", images)
    assert not is_mended(depthwise, "fp32", images)
    assert is_mended(nn.Conv2d(16, 16, 3, groups=4), "bf16", images)
    assert not is_mended(nn.Conv2d(16, 16, 3, groups=16 // MIN_FAST_GROUP_CHANNELS), "bf16", images)
    assert not is_mended(nn.Conv2d(16, 16, 3), "bf16", images)
    assert not is_mended(nn.Conv2d(16, 16, 3, groups=16, padding="same"), "bf16", images)


def test_what_does_not_learn_is_not_concerned():
    depthwise, images = nn.Conv2d(4, 4, 3, stride=2, groups=4), torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        assert not is_mended(depthwise, "bf16", images)
    for parameter in depthwise.parameters():
        parameter.requires_grad_(False)
    seen = images.clone().requires_grad_()
    with autocast("bf16", CPU):
        depthwise(seen).float().sum().backward()
    assert seen.grad.abs().sum() > 0 and depthwise.weight.grad is None


def test_a_frozen_input_costs_no_gradient_of_its_own():
    depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4)
    with autocast("bf16", CPU):
        depthwise(torch.rand(2, 4, 8, 8)).float().sum().backward()
    assert depthwise.weight.grad is not None and depthwise.bias.grad is not None
