"""A name selects a network with matching head and normalization, or raises an error with the fix."""

import hashlib
import socket

import pytest
import torch
from torch import nn

from fastcxr.errors import RecipeError, WeightsError
from fastcxr.models.backbones import describe_backbone, describe_weights_choice, find_backbone, make_network
from fastcxr.models.heads import find_head

# one small network of each architecture; benchmarks/backbones.py has the large ones
SMALL_BACKBONES = [
    "efficientnet_b0", "resnet34", "resnet50", "densenet121", "mobilenetv2_100", "vit_tiny_patch16_224",
    "convnext_atto", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:resnet18",
]  # fmt: skip


def build(name: str, size: int = 64, classes: int = 3) -> nn.Module:
    return make_network(find_backbone(name, "none"), classes, "none", size)


@pytest.mark.parametrize("name", SMALL_BACKBONES)
def test_a_training_step_and_a_prediction_succeed(name):
    network, images = build(name), torch.rand(4, 3, 64, 64)
    loss = nn.functional.cross_entropy(network.train()(images), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in find_head(network).parameters())
    with torch.no_grad():
        assert network.eval()(images).shape == (4, 3)


def test_timm_has_priority_and_a_prefix_selects_torchvision():
    assert find_backbone("resnet50").library == "timm"
    assert find_backbone("torchvision:resnet50").library == "torchvision"
    assert find_backbone("mobilenet_v3_small").library == "torchvision"


def test_a_name_without_pretrained_weights_resolves_to_the_same_architecture_with_weights():
    backbone = find_backbone("efficientnet_b7", "pretrained")
    assert (backbone.name, backbone.tag) == ("tf_efficientnet_b7", "ns_jft_in1k")
    line = describe_weights_choice("efficientnet_b7", backbone, "pretrained")
    assert line == "efficientnet_b7 has no pretrained weights; using tf_efficientnet_b7.ns_jft_in1k (same architecture)"
    assert find_backbone("efficientnet_b7", "none").name == "efficientnet_b7"


def test_the_selected_tag_of_a_plain_name_is_described():
    backbone = find_backbone("resnet50")
    assert backbone.tag == "a1_in1k"
    assert "sets of pretrained weights; using a1_in1k" in describe_weights_choice("resnet50", backbone, "pretrained")
    assert describe_weights_choice("resnet50.a1_in1k", backbone, "pretrained") is None
    assert describe_weights_choice("resnet50", backbone, "none") is None


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("mobilenetv2_100", "pretrained", "mobilenetv2_100.ra_in1k"),
        ("resnet50.a2_in1k", "pretrained", "resnet50.a2_in1k"),
        ("efficientnet_b7", "pretrained", "tf_efficientnet_b7.ns_jft_in1k"),
        ("torchvision:resnet50", "pretrained", "IMAGENET1K_V2"),
        ("mobilenetv2_100", "none", "random weights"),
        ("densenet121", "xrv:densenet121-res224-all", "xrv:densenet121-res224-all"),
    ],
)
def test_initial_weights_are_described_by_their_name(name, weights, expected):
    backbone = find_backbone(name, weights)
    described = describe_backbone(backbone, weights, torch.nn.Linear(2, 2))
    assert described["weights"] == expected
    assert described["tag"] == (backbone.tag if weights == "pretrained" else None)


def test_a_weights_file_is_described_by_its_name_and_checksum(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"abc")
    backbone = find_backbone("mobilenetv2_100", "none")
    described = describe_backbone(backbone, str(tmp_path / "w.safetensors"), torch.nn.Linear(2, 2))
    assert described["weights"] == "w.safetensors"
    assert described["weights_sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_normalization_follows_the_weights_of_both_libraries():
    assert find_backbone("vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert find_backbone("torchvision:mobilenet_v3_small").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("efficientnet_b77", "Did you mean 'efficientnet_b7'?"),
        ("timm:mobilenet_v3_small", "Did you mean 'mobilenetv3_small_100'?"),
        ("keras:resnet50", "Pass timm:NAME or torchvision:NAME"),
        ("resnet50.nonsense", "Choose from a1_in1k"),
        ("fastcxr:baseline_cn", "Did you mean 'baseline_cnn'?"),
        ("RAD-DINO", "Did you mean 'rad-dino'? Run `fastcxr models '*rad-dino*'`"),
    ],
)
def test_an_unknown_name_is_rejected_with_a_suggestion(name, fix):
    with pytest.raises(RecipeError) as caught:
        find_backbone(name)
    assert fix in str(caught.value)


def test_a_backbone_without_pretrained_weights_raises_an_error_with_the_fix():
    with pytest.raises(WeightsError, match=r"`weights=FILE` or `weights='none'`"):
        find_backbone("cspresnet50d", "pretrained")


@pytest.mark.parametrize("name", ["mobilenetv2_100", "torchvision:mobilenet_v3_small"])
def test_an_unreachable_host_raises_an_error(name, monkeypatch, tmp_path):
    def no_address(*arguments):
        raise socket.gaierror("no address")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("fastcxr.models.backbones.try_to_load_from_cache", lambda *a: None)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(WeightsError) as caught:
        make_network(find_backbone(name), 3, "pretrained", 224)
    assert "`weights=FILE`" in str(caught.value)
    assert "`weights='none'`" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 69


def test_an_unsupported_image_size_raises_an_error_with_the_fix():
    with pytest.raises(RecipeError, match="`image_size=224`"):
        make_network(find_backbone("torchvision:vit_b_16", "none"), 3, "none", 64)
