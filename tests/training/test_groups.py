"""Three to five groups hold every parameter once, from stem to head, whatever the head."""

import pytest
from torch import nn

from fastcxr.training.backbones import find_backbone, make_network
from fastcxr.training.groups import layer_groups
from fastcxr.training.heads import LINEAR, HeadPlan, head_of

NAMES = [
    "efficientnet_b0", "resnet34", "resnet50", "densenet121", "mobilenetv2_100", "vit_tiny_patch16_224",
    "convnext_atto", pytest.param("vgg16", marks=pytest.mark.slow), "torchvision:mobilenet_v3_small",
    "torchvision:squeezenet1_1", "torchvision:resnet18",
    "torchvision:densenet121", "torchvision:swin_t", "torchvision:vit_b_16",
]  # fmt: skip


def build(name: str, head: HeadPlan = LINEAR) -> nn.Module:
    return make_network(find_backbone(name, "none"), 3, "none", 224, head)


def check(network: nn.Module) -> None:
    groups = layer_groups(network)
    assert 3 <= len(groups) <= 5
    numbers = [id(parameter) for group in groups for parameter in group]
    assert sorted(numbers) == sorted(map(id, network.parameters()))
    assert {id(parameter) for parameter in groups[-1]} == {id(parameter) for parameter in head_of(network).parameters()}
    assert max(len(group) for group in groups[:-1]) < 0.6 * len(numbers), "rates must reach inside the body"


@pytest.mark.parametrize("name", NAMES)
def test_three_to_five_groups_hold_every_parameter_once_and_end_in_the_head(name):
    check(build(name))


@pytest.mark.parametrize("name", ["resnet34", "densenet121", "vit_tiny_patch16_224", "torchvision:mobilenet_v3_small"])
def test_a_head_of_several_layers_is_one_group(name):
    network = build(name, HeadPlan(hidden=(32, 16), dropout=0.1))
    check(network)
    assert len(layer_groups(network)[-1]) == 6


def test_the_baseline_has_a_group_for_either_convolution_and_one_for_the_head():
    network = build("fastcxr:baseline_cnn", HeadPlan(hidden=(16,)))
    assert [len(group) for group in layer_groups(network)] == [2, 2, 4]
    shapes = [{tuple(parameter.shape) for parameter in group} for group in layer_groups(network)]
    assert (32, 1, 5, 5) in shapes[0] and (64, 32, 5, 5) in shapes[1] and (16, 1024) in shapes[2]
