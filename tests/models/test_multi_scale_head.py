"""MultiScaleHead: features of convolutional and transformer stages, standardization, copies and saved weights."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import (
    HeadConfig,
    MultiScaleHead,
    find_head,
    find_head_modules,
    find_head_state_keys,
    head_config,
    pool_features,
    uses_feature_cache,
)
from fastcxr.models.weights import load_weights
from fastcxr.training.feature_cache import output_head_features

MULTI_SCALE = HeadConfig(multi_scale=True)
# image size, stages, features; channels second, channels last (two), tokens, no stages in timm, several maps per stage
BACKBONES = {
    "mobilenetv2_035": (64, 5, 8 + 8 + 16 + 32 + 112 + 1280),
    "resnet18": (64, 5, 64 + 64 + 128 + 256 + 512 + 512),
    "mambaout_femto": (64, 4, 48 + 96 + 192 + 288 + 1152),
    "swin_tiny_patch4_window7_224": (64, 4, 96 + 192 + 384 + 768 + 768),
    "vit_tiny_patch16_224": (64, 12, 13 * 192),
    "torchvision:mobilenet_v3_small": (64, 0, 1024),
    "hrnet_w18_small": (64, 0, 2048),
    "pit_ti_224": (224, 0, 256),
}


def build(name: str, head: HeadConfig = MULTI_SCALE, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return make_network(find_backbone(name, "none"), 3, "none", size, head)


def compute_features(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), output_head_features(find_head(network)):
        return network.eval()(images)


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    network = build("mobilenetv2_035")
    nn.init.normal_(find_head(network).linear.weight)
    return network


@pytest.mark.parametrize("name", BACKBONES)
def test_all_stages_of_each_architecture_are_used(name):
    size, n_stages, n_features = BACKBONES[name]
    network = build(name, size=size)
    head = find_head(network)
    assert isinstance(head, MultiScaleHead) and len(head.channels) == n_stages
    assert compute_features(network, torch.rand(2, 3, size, size)).shape == (2, n_features)
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(network(images).detach(), torch.zeros(2, 3))
    nn.init.normal_(head.linear.weight)
    network(images).sum().backward()
    assert head.linear.weight.grad.shape == (3, n_features)
    assert next(network.parameters()).grad is not None, "the backbone has no gradient"


def test_features_are_the_pooled_stages_and_the_input_of_the_original_head(mobilenet):
    images, maps = torch.rand(2, 3, 64, 64), {}
    hooks = [
        mobilenet.get_submodule(stage["module"]).register_forward_hook(
            lambda module, inputs, output, name=stage["module"]: maps.update({name: output})
        )
        for stage in mobilenet.feature_info
    ]
    found = compute_features(mobilenet, images)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        last = mobilenet.forward_head(mobilenet.forward_features(images), pre_logits=True)
    expected = [maps[stage["module"]].mean(dim=(2, 3)) for stage in mobilenet.feature_info]
    torch.testing.assert_close(found, torch.cat([*expected, last], dim=1))


def test_features_are_standardized_before_the_linear_layer(mobilenet):
    network, images = deepcopy(mobilenet), torch.rand(2, 3, 64, 64)
    head, features = find_head(network), compute_features(network, images)
    head.mean.copy_(torch.rand_like(head.mean))
    head.std.copy_(torch.rand_like(head.mean) + 0.5)
    expected = ((features - head.mean) / head.std) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(network(images), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "n_channels", "channels_last", "positions"),
    [
        ((2, 5, 3, 4), 5, False, (2, 3)),
        ((2, 3, 4, 5), 5, True, (1, 2)),
        ((2, 3, 4, 5), 5, False, (1, 2)),
        ((2, 5, 5, 5), 5, False, (2, 3)),
        ((2, 5, 5, 5), 5, True, (1, 2)),  # height equals channels: swin_tiny at 384 px
        ((2, 7, 5), 5, False, (1,)),
    ],
)
def test_feature_maps_are_averaged_over_positions_in_each_layout(shape, n_channels, channels_last, positions):
    maps = torch.rand(shape)
    torch.testing.assert_close(pool_features(maps, n_channels, channels_last), maps.mean(dim=positions))


def test_channels_last_is_read_from_the_network():
    assert find_head(build("mambaout_femto")).channels_last
    assert not find_head(build("mobilenetv2_035")).channels_last


def test_making_a_multi_scale_head_does_not_change_the_backbone():
    plain, network = build("mobilenetv2_035", HeadConfig()), build("mobilenetv2_035")
    state = network.state_dict()
    backbone = [name for name in plain.state_dict() if "classifier" not in name]
    assert all(torch.equal(plain.state_dict()[name], state[name]) for name in backbone), (
        "batch norm statistics included"
    )
    assert all(module.training for module in network.modules())
    assert max(len(module._forward_hooks) for module in network.modules()) == 1, (
        "hooks of the trial forward pass remain"
    )


def test_a_deep_copy_shares_nothing_with_the_original(mobilenet):
    copy, images = deepcopy(mobilenet), torch.rand(2, 3, 64, 64)
    expected = mobilenet.eval()(images)
    nn.init.zeros_(find_head(mobilenet).linear.bias)
    torch.testing.assert_close(copy.eval()(images), expected)
    copy.forward_features(images)
    assert find_head(mobilenet).stage_features == []
    nn.init.zeros_(find_head(copy).linear.weight)
    torch.testing.assert_close(mobilenet(images), expected)


def test_features_of_a_failed_batch_are_not_used(mobilenet):
    images = torch.rand(2, 3, 64, 64)
    expected = mobilenet.eval()(images)

    def fail(*_):
        raise RuntimeError("out of memory")

    hook = mobilenet.blocks[4].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        mobilenet(torch.rand(5, 3, 64, 64))
    hook.remove()
    assert find_head(mobilenet).stage_features != []
    torch.testing.assert_close(mobilenet(images), expected)


def test_repeated_forward_features_do_not_accumulate(mobilenet):
    images = torch.rand(2, 3, 64, 64)
    expected = mobilenet.eval()(images)
    for _ in range(3):
        maps = mobilenet.forward_features(images)
    torch.testing.assert_close(mobilenet.forward_head(maps), expected)
    torch.testing.assert_close(mobilenet(images), expected)


def test_the_state_keys_of_the_head_include_its_buffers(mobilenet):
    assert find_head_modules(mobilenet) == ["classifier"]
    names = {f"classifier.{name}" for name in ("mean", "std", "linear.weight", "linear.bias")}
    assert find_head_state_keys(mobilenet) == names


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(hidden=(8,)), MULTI_SCALE])
def test_weights_saved_with_a_multi_scale_head_fill_the_backbone_under_any_head(mobilenet, tmp_path, head):
    torch.save(mobilenet.state_dict(), tmp_path / "saved.pth")
    network = make_network(find_backbone("mobilenetv2_035", "none"), 4, "none", 64, head)
    load_weights(network, tmp_path / "saved.pth")
    assert torch.equal(network.conv_stem.weight, mobilenet.conv_stem.weight)
    torch.testing.assert_close(network.eval()(torch.rand(1, 3, 64, 64)), torch.zeros(1, 4))


def test_weights_saved_with_a_linear_head_fill_the_backbone_under_a_multi_scale_head(tmp_path):
    saved = build("mobilenetv2_035", HeadConfig())
    torch.save(saved.state_dict(), tmp_path / "saved.pth")
    network = build("mobilenetv2_035")
    nn.init.zeros_(network.conv_stem.weight)
    load_weights(network, tmp_path / "saved.pth")
    assert torch.equal(network.conv_stem.weight, saved.conv_stem.weight)


@pytest.mark.parametrize("strategy", ["linear_probe", "lp_ft"])
@pytest.mark.parametrize("options", [{"head_hidden": (32,)}, {"dropout": 0.1}])
def test_hidden_layers_and_dropout_are_rejected_by_strategies_that_fit_the_head(strategy, options):
    with pytest.raises(RecipeError, match=f"{strategy} fits one linear layer.*Remove `head_hidden` and `dropout`"):
        head_config(Recipe(strategy=strategy, **options))


def test_the_head_depends_on_the_strategy_and_the_weights():
    assert head_config(Recipe(strategy="linear_probe", weights="none")) == MULTI_SCALE
    assert head_config(Recipe(strategy="lp_ft")) == MULTI_SCALE
    assert head_config(Recipe(strategy="lp_ft", weights="none", head_hidden=(8,))) == HeadConfig(hidden=(8,))
    assert not uses_feature_cache(Recipe(strategy="gradual"))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "torchvision:squeezenet1_1"])
def test_backbones_without_exactly_one_linear_head_raise_an_error_with_the_fix(name):
    with pytest.raises(RecipeError, match="Pass `strategy='gradual'`"):
        build(name)
