"""The list of backbones says what the libraries say, and its stored counts are those of the networks."""

import pytest

from fastcxr.models import registry
from fastcxr.models.registry import count_parameters, list_backbones


@pytest.mark.parametrize(
    ("name", "library"), [("resnet18", "timm"), ("vit_tiny_patch16_224", "timm"), ("mobilenet_v3_small", "torchvision")]
)
def test_stored_counts_are_those_of_the_networks(name, library):
    assert registry._read_parameter_counts()[library, name] == count_parameters(name, library)


def test_a_network_that_is_not_stored_is_counted(monkeypatch):
    monkeypatch.setattr(registry, "_read_parameter_counts", dict)
    (row,) = list_backbones("resnet1[8]")
    assert row == {
        "name": "resnet18",
        "library": "timm",
        "parameters": 11_689_512,
        "native_size": 224,
        "pretrained": True,
    }


def test_a_part_of_a_name_finds_both_libraries_and_prefixes_the_second():
    names = [row["name"] for row in list_backbones("vgg16")]
    assert names[0] == "vgg16"
    assert {"torchvision:vgg16", "torchvision:vgg16_bn"} <= set(names)


def test_networks_without_weights_are_marked():
    rows = {row["name"]: row for row in list_backbones("efficientnet_b7")}
    row = rows["efficientnet_b7"]
    assert row["pretrained"] is False
    assert row["native_size"] == 600


def test_our_own_network_is_listed_too():
    assert list(list_backbones("baseline")) == [
        {
            "name": "fastcxr:baseline_cnn",
            "library": "fastcxr",
            "parameters": 1_077_096,
            "native_size": 128,
            "pretrained": False,
        }
    ]
