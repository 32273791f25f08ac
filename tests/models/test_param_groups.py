"""Layer groups contain each parameter once, from stem to head: three to five, or one for each block."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.ops import StochasticDepth

from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig, find_head
from fastcxr.models.param_groups import layer_groups, merged_layer_groups
from fastcxr.training.learner import FrozenModulesEval

NAMES = [
    "efficientnet_b0", "resnet34", "resnet50", "densenet121", "mobilenetv2_100", "vit_tiny_patch16_224",
    "convnext_atto", pytest.param("vgg16", marks=pytest.mark.slow), "torchvision:mobilenet_v3_small",
    "torchvision:squeezenet1_1", "torchvision:resnet18",
    "torchvision:densenet121", "torchvision:swin_t", "torchvision:vit_b_16",
]  # fmt: skip


def build(name: str, head: HeadConfig = LINEAR_HEAD) -> nn.Module:
    return make_network(find_backbone(name, "none"), 3, "none", 224, head)


def check_groups(network: nn.Module) -> None:
    groups = merged_layer_groups(network)
    assert 3 <= len(groups) <= 5
    check_order(network, groups)
    if not hasattr(network, "patch_embed"):
        assert list(map(list_ids, layer_groups(network))) == list(map(list_ids, groups))


def list_ids(group: list[nn.Parameter]) -> list[int]:
    return [id(parameter) for parameter in group]


def check_order(network: nn.Module, groups: list[list[nn.Parameter]]) -> None:
    ids = [id(parameter) for group in groups for parameter in group]
    assert sorted(ids) == sorted(map(id, network.parameters()))
    assert {id(parameter) for parameter in groups[-1]} == {
        id(parameter) for parameter in find_head(network).parameters()
    }
    assert max(len(group) for group in groups[:-1]) < 0.6 * len(ids), "one group contains most of the backbone"


@pytest.mark.parametrize("name", NAMES)
def test_three_to_five_groups_contain_each_parameter_once_and_the_last_is_the_head(name):
    check_groups(build(name))


@pytest.mark.parametrize("name", ["resnet34", "densenet121", "vit_tiny_patch16_224", "torchvision:mobilenet_v3_small"])
def test_a_head_of_several_layers_is_one_group(name):
    network = build(name, HeadConfig(hidden=(32, 16), dropout=0.1))
    check_groups(network)
    assert len(layer_groups(network)[-1]) == 6


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("rad-dino", 12), ("eva-x-tiny", 12), ("chexfound", 24), ("medsiglip", 27), ("ark6", 2 + 2 + 18 + 2)],
)
def test_a_transformer_has_a_group_for_each_block(name, blocks):
    with torch.device("meta"):
        network = make_encoder_network(ENCODERS[name], 3, ENCODERS[name].image_size)
    groups = layer_groups(network)
    assert len(groups) == 1 + blocks + 1, "embeddings, blocks, head"
    check_order(network, groups)
    name_by_id = {id(parameter): name for name, parameter in network.named_parameters()}
    names = [[name_by_id[id(parameter)] for parameter in group] for group in groups]
    assert any(name.startswith("patch_embed") for name in names[0])
    assert {name.partition(".")[0] for name in names[1]} <= {"blocks", "layers"}
    assert {name.partition(".")[0] for group in names[2:-2] for name in group} <= {"blocks", "layers"}
    assert all(name.startswith("head.") for name in names[-1]), "the attention pool is not part of the head"
    assert 3 <= len(merged_layer_groups(network)) <= 5


def test_a_ratio_gives_the_rates_of_layer_wise_decay():
    n_groups, decay = len(layer_groups(build("vit_tiny_patch16_224"))), 0.8
    rates = np.geomspace(1 / decay ** -(n_groups - 1), 1, n_groups)  # as compute_group_rates
    np.testing.assert_allclose(rates, decay ** np.arange(n_groups - 1, -1, -1.0))


def test_the_baseline_cnn_has_one_group_for_each_convolution_and_one_for_the_head():
    network = build("fastcxr:baseline_cnn", HeadConfig(hidden=(16,)))
    assert [len(group) for group in layer_groups(network)] == [2, 2, 4]
    shapes = [{tuple(parameter.shape) for parameter in group} for group in layer_groups(network)]
    assert (32, 1, 5, 5) in shapes[0] and (64, 32, 5, 5) in shapes[1] and (16, 1024) in shapes[2]


def find_training_modes(network: nn.Module, trained: tuple[str, ...]) -> dict[str, bool]:
    """Return whether each module is in training mode if only parameters with the prefixes `trained` are trained."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    callback = FrozenModulesEval()
    callback.learn = SimpleNamespace(model=network.train())
    callback.before_train()
    return {name: module.training for name, module in network.named_modules()}


def test_dropout_and_stochastic_depth_are_off_only_in_frozen_layers():
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 3, "num_heads": 2, "num_classes": 3}
    network = VisionTransformer(**sizes, drop_rate=0.1, pos_drop_rate=0.1, drop_path_rate=0.2, proj_drop_rate=0.1)
    modes = find_training_modes(network, ("blocks.2", "norm", "head"))
    frozen = ["patch_embed", "pos_drop", "blocks.1.drop_path1", "blocks.1.mlp.drop1", "blocks.1.attn.proj_drop"]
    assert not any(modes[name] for name in frozen)
    assert all(modes[name] for name in ["blocks.2.drop_path1", "blocks.2.mlp.drop1", "norm", "head_drop", "head"])
    modes = find_training_modes(network, ("head",))
    assert [name for name, is_training in modes.items() if is_training and name] == ["fc_norm", "head_drop", "head"]


@pytest.mark.parametrize("name", ["torchvision:swin_t", "densenet121"])
def test_a_frozen_backbone_is_in_evaluation_mode_and_its_head_in_training_mode(name):
    network = build(name, HeadConfig(dropout=0.5))
    head = find_head(network)
    head_ids = {id(parameter) for parameter in head.parameters()}
    names = tuple(name for name, parameter in network.named_parameters() if id(parameter) in head_ids)
    find_training_modes(network, names)
    head_modules = set(head.modules())
    with_effect = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, StochasticDepth, DropPath)
    found = [module for module in network.modules() if isinstance(module, with_effect) and getattr(module, "p", 1)]
    assert [module.training for module in found] == [module in head_modules for module in found]
    assert any(module in head_modules for module in found)
