"""The list of backbones agrees with the libraries, and stored parameter counts with the networks."""

import pytest

from fastcxr.models import registry
from fastcxr.models.registry import count_parameters, list_backbones


@pytest.mark.parametrize(
    ("name", "library"), [("resnet18", "timm"), ("vit_tiny_patch16_224", "timm"), ("mobilenet_v3_small", "torchvision")]
)
def test_stored_parameter_counts_agree_with_the_networks(name, library):
    assert registry._read_parameter_counts()[library, name] == count_parameters(name, library)


def test_parameters_of_a_network_without_a_stored_count_are_counted(monkeypatch):
    monkeypatch.setattr(registry, "_read_parameter_counts", dict)
    (row,) = list_backbones("resnet1[8]")
    assert row == {
        "name": "resnet18",
        "library": "timm",
        "parameters": 11_689_512,
        "native_size": 224,
        "pretrained": True,
    }


def test_a_part_of_a_name_matches_both_libraries_and_torchvision_names_get_a_prefix():
    names = [row["name"] for row in list_backbones("vgg16")]
    assert names[0] == "vgg16"
    assert {"torchvision:vgg16", "torchvision:vgg16_bn"} <= set(names)


def test_a_network_without_pretrained_weights_is_marked():
    row = {row["name"]: row for row in list_backbones("efficientnet_b7")}["efficientnet_b7"]
    assert row["pretrained"] is False
    assert row["native_size"] == 600


def test_the_baseline_cnn_is_listed():
    assert list(list_backbones("baseline")) == [
        {
            "name": "fastcxr:baseline_cnn",
            "library": "fastcxr",
            "parameters": 1_077_096,
            "native_size": 128,
            "pretrained": False,
        }
    ]
