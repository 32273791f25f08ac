"""Convolutions with few channels per group have the same outputs and gradients as in autocast."""

import pytest
import torch
from torch import nn

from fastcxr.models.grouped_conv import MIN_FAST_GROUP_CHANNELS
from fastcxr.models.precision import autocast

CPU = torch.device("cpu")

CONV_OPTIONS = [
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


def run_backward(layer: nn.Module, images: torch.Tensor, context) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output, and the gradients of the images and all parameters for a weighted sum of the output."""
    images = images.clone().requires_grad_()
    layer.zero_grad()
    with context:
        output = layer(images)
    factors = torch.linspace(-1, 1, output.numel()).view_as(output)
    (output.float() * factors).sum().backward()
    return output, [images.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


@pytest.mark.parametrize("options", CONV_OPTIONS, ids=str)
@pytest.mark.parametrize("group_channels", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 12), (13, 16)])
def test_gradients_agree_with_autocast_within_rounding(options, group_channels, size):
    torch.manual_seed(0)
    layer = nn.Conv2d(6 * group_channels, 6 * group_channels, groups=6, **options).to(memory_format=torch.channels_last)
    images = torch.randn(4, 6 * group_channels, *size).to(memory_format=torch.channels_last)
    output, gradients = run_backward(layer, images, autocast("bf16", CPU))
    expected_output, expected = run_backward(layer, images, torch.autocast("cpu", torch.bfloat16))
    assert "_GroupedConv2d" in type(output.grad_fn).__name__
    assert torch.equal(output, expected_output)
    for found, reference in zip(gradients, expected, strict=True):
        assert found.shape == reference.shape and found.dtype == reference.dtype == torch.float32
        assert (found - reference).norm() <= 0.01 * reference.norm()


def has_fast_backward(layer: nn.Module, precision: str, images: torch.Tensor) -> bool:
    with autocast(precision, CPU):
        return "_GroupedConv2d" in type(layer(images).grad_fn).__name__


def test_only_bfloat16_convolutions_with_few_channels_per_group_have_the_fast_backward_pass():
    depthwise, images = nn.Conv2d(16, 16, 3, groups=16), torch.rand(2, 16, 8, 8)
    assert has_fast_backward(depthwise, "bf16", images)
    assert not has_fast_backward(depthwise, "fp32", images)
    assert has_fast_backward(nn.Conv2d(16, 16, 3, groups=4), "bf16", images)
    assert not has_fast_backward(nn.Conv2d(16, 16, 3, groups=16 // MIN_FAST_GROUP_CHANNELS), "bf16", images)
    assert not has_fast_backward(nn.Conv2d(16, 16, 3), "bf16", images)
    assert not has_fast_backward(nn.Conv2d(16, 16, 3, groups=16, padding="same"), "bf16", images)


def test_frozen_weights_get_no_gradient_and_no_grad_mode_does_not_change():
    depthwise, images = nn.Conv2d(4, 4, 3, stride=2, groups=4), torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        assert not has_fast_backward(depthwise, "bf16", images)
    for parameter in depthwise.parameters():
        parameter.requires_grad_(False)
    inputs = images.clone().requires_grad_()
    with autocast("bf16", CPU):
        depthwise(inputs).float().sum().backward()
    assert inputs.grad.abs().sum() > 0 and depthwise.weight.grad is None


def test_an_input_without_gradient_is_supported():
    depthwise = nn.Conv2d(4, 4, 3, stride=2, groups=4)
    with autocast("bf16", CPU):
        depthwise(torch.rand(2, 4, 8, 8)).float().sum().backward()
    assert depthwise.weight.grad is not None and depthwise.bias.grad is not None
