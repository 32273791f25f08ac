"""A head on features of several depths: of maps, tokens and plain networks, whole after a failure and in a copy."""

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
    uses_feature_bank,
)
from fastcxr.models.weights import load_weights
from fastcxr.training.feature_cache import output_head_features

DEPTHS = HeadConfig(multi_scale=True)
# stages and features: maps with channels second, last (two), tokens, none that timm tells of, and several maps at once
KINDS = {
    "mobilenetv2_035": (64, 5, 8 + 8 + 16 + 32 + 112 + 1280),
    "resnet18": (64, 5, 64 + 64 + 128 + 256 + 512 + 512),
    "mambaout_femto": (64, 4, 48 + 96 + 192 + 288 + 1152),
    "swin_tiny_patch4_window7_224": (64, 4, 96 + 192 + 384 + 768 + 768),
    "vit_tiny_patch16_224": (64, 12, 13 * 192),
    "torchvision:mobilenet_v3_small": (64, 0, 1024),
    "hrnet_w18_small": (64, 0, 2048),
    "pit_ti_224": (224, 0, 256),
}


def build(name: str, head: HeadConfig = DEPTHS, size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return make_network(find_backbone(name, "none"), 3, "none", size, head)


def see(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), output_head_features(find_head(network)):
        return network.eval()(images)


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    network = build("mobilenetv2_035")
    nn.init.normal_(find_head(network).linear.weight)
    return network


@pytest.mark.parametrize("name", KINDS)
def test_networks_of_every_kind_give_features_of_all_their_depths(name):
    size, depths, features = KINDS[name]
    network = build(name, size=size)
    head = find_head(network)
    assert isinstance(head, MultiScaleHead) and len(head.channels) == depths
    assert see(network, torch.rand(2, 3, size, size)).shape == (2, features)
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(network(images).detach(), torch.zeros(2, 3))
    nn.init.normal_(head.linear.weight)
    network(images).sum().backward()
    assert head.linear.weight.grad.shape == (3, features)
    assert next(network.parameters()).grad is not None, "the body can be fine-tuned through it"


def test_features_are_the_means_of_the_stages_and_then_what_the_old_head_saw(mobilenet):
    images, maps = torch.rand(2, 3, 64, 64), {}
    hooks = [
        mobilenet.get_submodule(stage["module"]).register_forward_hook(
            lambda module, inputs, output, name=stage["module"]: maps.update({name: output})
        )
        for stage in mobilenet.feature_info
    ]
    found = see(mobilenet, images)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        last = mobilenet.forward_head(mobilenet.forward_features(images), pre_logits=True)
    expected = [maps[stage["module"]].mean(dim=(2, 3)) for stage in mobilenet.feature_info]
    torch.testing.assert_close(found, torch.cat([*expected, last], dim=1))


def test_every_feature_is_standardised_before_the_layer(mobilenet):
    network, images = deepcopy(mobilenet), torch.rand(2, 3, 64, 64)
    head, features = find_head(network), see(network, images)
    head.mean.copy_(torch.rand_like(head.mean))
    head.std.copy_(torch.rand_like(head.mean) + 0.5)
    expected = ((features - head.mean) / head.std) @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(network(images), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "channels", "last", "places"),
    [
        ((2, 5, 3, 4), 5, False, (2, 3)),
        ((2, 3, 4, 5), 5, True, (1, 2)),
        ((2, 3, 4, 5), 5, False, (1, 2)),
        ((2, 5, 5, 5), 5, False, (2, 3)),
        ((2, 5, 5, 5), 5, True, (1, 2)),  # as high as it has channels: swin_tiny at 384 px
        ((2, 7, 5), 5, False, (1,)),
    ],
)
def test_a_map_is_averaged_over_its_places_wherever_its_channels_stand(shape, channels, last, places):
    maps = torch.rand(shape)
    torch.testing.assert_close(pool_features(maps, channels, last), maps.mean(dim=places))


def test_a_network_that_tells_its_channels_are_last_is_believed():
    assert find_head(build("mambaout_femto")).channels_last
    assert not find_head(build("mobilenetv2_035")).channels_last


def test_building_it_leaves_the_network_as_it_was():
    plain, network = build("mobilenetv2_035", HeadConfig()), build("mobilenetv2_035")
    state = network.state_dict()
    body = [name for name in plain.state_dict() if "classifier" not in name]
    assert all(torch.equal(plain.state_dict()[name], state[name]) for name in body), "batch norm statistics included"
    assert all(module.training for module in network.modules())
    assert max(len(module._forward_hooks) for module in network.modules()) == 1, "those of the trial are gone"


def test_a_copy_is_a_network_of_its_own(mobilenet):
    copy, images = deepcopy(mobilenet), torch.rand(2, 3, 64, 64)
    expected = mobilenet.eval()(images)
    nn.init.zeros_(find_head(mobilenet).linear.bias)
    torch.testing.assert_close(copy.eval()(images), expected)
    copy.forward_features(images)
    assert find_head(mobilenet).stage_features == []
    nn.init.zeros_(find_head(copy).linear.weight)
    torch.testing.assert_close(mobilenet(images), expected)


def test_a_batch_that_failed_in_the_middle_leaves_nothing_behind(mobilenet):
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


def test_the_body_alone_may_be_asked_again_and_again(mobilenet):
    images = torch.rand(2, 3, 64, 64)
    expected = mobilenet.eval()(images)
    for _ in range(3):
        maps = mobilenet.forward_features(images)
    torch.testing.assert_close(mobilenet.forward_head(maps), expected)
    torch.testing.assert_close(mobilenet(images), expected)


def test_its_entries_in_the_state_dict_are_all_the_heads_own(mobilenet):
    assert find_head_modules(mobilenet) == ["classifier"]
    names = {f"classifier.{name}" for name in ("mean", "std", "linear.weight", "linear.bias")}
    assert find_head_state_keys(mobilenet) == names


@pytest.mark.parametrize("plan", [HeadConfig(), HeadConfig(hidden=(8,)), DEPTHS])
def test_weights_that_were_saved_with_it_fill_the_body_under_any_head(mobilenet, tmp_path, plan):
    torch.save(mobilenet.state_dict(), tmp_path / "saved.pth")
    network = make_network(find_backbone("mobilenetv2_035", "none"), 4, "none", 64, plan)
    load_weights(network, tmp_path / "saved.pth")
    assert torch.equal(network.conv_stem.weight, mobilenet.conv_stem.weight)
    torch.testing.assert_close(network.eval()(torch.rand(1, 3, 64, 64)), torch.zeros(1, 4))


def test_weights_that_were_saved_with_a_linear_head_fill_the_body_under_it(tmp_path):
    saved = build("mobilenetv2_035", HeadConfig())
    torch.save(saved.state_dict(), tmp_path / "saved.pth")
    network = build("mobilenetv2_035")
    nn.init.zeros_(network.conv_stem.weight)
    load_weights(network, tmp_path / "saved.pth")
    assert torch.equal(network.conv_stem.weight, saved.conv_stem.weight)


@pytest.mark.parametrize("strategy", ["linear_probe", "lp_ft"])
@pytest.mark.parametrize("wish", [{"head_hidden": (32,)}, {"dropout": 0.1}])
def test_hidden_layers_and_dropout_cannot_be_fitted(strategy, wish):
    with pytest.raises(RecipeError, match=f"{strategy} fits one linear layer.*Leave --head-hidden and --dropout out"):
        head_config(Recipe(strategy=strategy, **wish))


def test_a_head_is_fitted_where_the_strategy_says_so_and_the_body_has_learned_something():
    assert head_config(Recipe(strategy="linear_probe", weights="none")) == DEPTHS
    assert head_config(Recipe(strategy="lp_ft")) == DEPTHS
    assert head_config(Recipe(strategy="lp_ft", weights="none", head_hidden=(8,))) == HeadConfig(hidden=(8,))
    assert not uses_feature_bank(Recipe(strategy="gradual"))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "torchvision:squeezenet1_1"])
def test_heads_beside_which_features_do_not_fit_are_refused_with_the_way_out(name):
    with pytest.raises(RecipeError, match="Give --strategy gradual"):
        build(name)
