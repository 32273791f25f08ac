"""Folding: the same answers without batch norms, or the network as it was where they would not be the same."""

import copy

import pytest
import timm
import torch
from torch import nn

from fastcxr.training.arithmetic import computing
from fastcxr.training.folding import quicken
from fastcxr.training.heads import HeadPlan, head_of, replace_head
from fastcxr.training.pixels import Pixels
from fastcxr.training.stages import look

PIXELS = Pixels(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def make(name: str) -> nn.Module:
    """A network of random weights whose batch norms do something."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.train()


def count_folded(network: nn.Module) -> int:
    """How many batch norms hand their input on."""
    return sum("forward" in vars(module) for module in network.modules() if isinstance(module, nn.BatchNorm2d))


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "folded"),
    [("mobilenetv2_035", 52), ("resnet18", 20), ("densenet121", 59), ("vgg11_bn", 8), ("vit_tiny_patch16_224", 0)],
)
@torch.no_grad()
def test_the_same_comes_out_and_the_network_itself_stays(name, folded):
    network = make(name)
    if name.startswith("vit"):
        network = timm.create_model(name, num_classes=3, img_size=64)
    before = copy.deepcopy(network.state_dict())
    quick = quicken(network, PIXELS, "fp32")
    assert count_folded(quick) == folded
    assert network.training and not quick.training
    assert all(torch.equal(now, before[key]) for key, now in network.state_dict().items())
    torch.testing.assert_close(quick(IMAGES), network.eval()(IMAGES), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_convolution_that_others_read_too_keeps_its_batch_norm():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_mean += 1

        def forward(self, images):
            answer = self.convolution(images)
            return (self.norm(answer) + answer).mean(dim=(2, 3))

    network = Shared()
    quick = quicken(network, PIXELS, "fp32")
    assert count_folded(quick) == 0
    torch.testing.assert_close(quick(IMAGES), network.eval()(IMAGES))


@torch.no_grad()
def test_stages_and_a_head_over_depths_see_what_they_saw():
    network = make("resnet18")
    replace_head(network.eval(), 3, HeadPlan(depths=True), torch.zeros(1, 3, 64, 64))
    nn.init.normal_(head_of(network).linear.weight)
    quick = quicken(network, PIXELS, "fp32")
    depths = dict(zip(head_of(network).stages, head_of(network).channels, strict=True))
    for found, expected in zip(look(quick, IMAGES, depths), look(network, IMAGES, depths), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert head_of(quick) is not head_of(network)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035"])
@torch.no_grad()
def test_in_bfloat16_batch_norm_stays_nothing_is_done_in_place_and_no_bit_changes(name):
    network = make(name).eval().to(memory_format=torch.channels_last)
    quick = quicken(network, PIXELS, "bf16")
    assert any(getattr(module, "inplace", False) for module in network.modules())
    assert not any(getattr(module, "inplace", False) for module in quick.modules())
    assert count_folded(quick) == 0
    with computing("bf16", torch.device("cpu")):
        assert torch.equal(quick(IMAGES), network(IMAGES))


@torch.no_grad()
def test_who_counts_on_what_is_done_in_place_keeps_it():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.activation = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

        def forward(self, images):
            answer = self.convolution(images)
            self.activation(answer)
            return answer.mean(dim=(2, 3))

    assert quicken(Counting(), PIXELS, "bf16").activation.inplace


def test_folding_draws_no_random_number():
    network = make("mobilenetv2_035")
    state = torch.get_rng_state()
    quicken(network, PIXELS, "fp32")
    assert torch.equal(state, torch.get_rng_state())
