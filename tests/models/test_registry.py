"""The list of backbones agrees with the libraries, and stored parameter counts with the networks."""

from pathlib import Path

import pytest

from fastcxr.models import encoder_files, registry
from fastcxr.models.encoders import ENCODERS, READ_DATE
from fastcxr.models.registry import count_parameters, find_read_facts, list_backbones, list_encoders


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("resnet18", "timm"),
        ("vit_tiny_patch16_224", "timm"),
        ("mobilenet_v3_small", "torchvision"),
        ("eva-x-tiny", "chest"),
        ("densenet121-res224-all", "chest"),
    ],
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


def test_encoders_are_listed_before_the_networks_of_timm():
    rows = list(list_backbones("*dino*"))
    assert [row["name"] for row in rows[:3]] == ["rad-dino", "rad-dino-maira-2", "xray-dino"]
    assert rows[3]["library"] == "timm"
    assert [row["native_size"] for row in rows[:3]] == [518, None, 512], "none where the size was not read"


def test_every_encoder_has_a_stored_number_of_parameters():
    assert all(registry.find_known_parameters(name, "chest") for name in ENCODERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_fact_of_an_encoder_that_was_not_read_has_no_value(name):
    encoder, facts = ENCODERS[name], find_read_facts(ENCODERS[name])
    for fact, entry in facts.items():
        if fact in encoder.read_on:
            assert entry == {"value": entry["value"], "page": encoder.read_on[fact], "read": READ_DATE}
            assert entry["value"] is not None
        else:
            assert (entry["value"], entry["page"], entry["read"]) == (
                encoder.access if fact == "access" and encoder.access in ("page", "package") else None,
                encoder.page,
                None,
            )


@pytest.mark.needs("torchxrayvision")
def test_the_files_of_torchxrayvision_are_found_in_its_folder(tmp_path, monkeypatch):
    from torchxrayvision.models import model_urls

    monkeypatch.setattr(encoder_files, "XRV_FOLDER", tmp_path)
    packaged = [encoder for encoder in ENCODERS.values() if encoder.access == "package"]
    assert [row["cached"] for row in list_encoders("*res224*")] == [False] * (len(packaged) - 1)
    for encoder in packaged:
        file = tmp_path / Path(model_urls[encoder.name]["weights_url"]).name
        file.touch()
        assert encoder_files.find_cached_file(encoder) == file


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
