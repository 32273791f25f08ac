"""The table of chest encoders: names, pixels, licences, image sizes, and weights files that cannot be fetched."""

import json
import socket

import pytest
import torch
from safetensors.torch import save_file

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, RecipeError, WeightsError
from fastcxr.models import encoder_files
from fastcxr.models.backbones import describe_backbone, find_backbone, make_network, validate_pretrained
from fastcxr.models.encoder_files import describe_pixels, describe_terms, validate_pixels
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS, find_image_size, find_patch_size
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.training.learner import validate_model_options

GRAY = 128
SAME_NETWORKS = [name for name in ENCODERS if name.startswith("densenet121-res224-") and not name.endswith("-all")]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def fail(*arguments):
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(encoder_files, "get_token", lambda: None)
    monkeypatch.setattr(encoder_files, "try_to_load_from_cache", lambda *arguments: None)
    monkeypatch.setattr(encoder_files.urllib.request, "getproxies", dict)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in SAME_NETWORKS])
def test_the_network_of_an_encoder_has_its_input_and_a_new_head(name):
    encoder = ENCODERS[name]
    backbone = find_backbone(name, "none")
    assert (backbone.library, backbone.name, backbone.native_size) == ("chest", name, encoder.image_size)
    with torch.device("meta"):
        network = make_encoder_network(encoder, 3, encoder.image_size)
        images = torch.zeros(2, len(encoder.mean), encoder.image_size, encoder.image_size)
        assert network(images).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rad-dino", (128 / 255 - 0.5307) / 0.2583),
        ("eva-x-small", (128 / 255 - 0.5056) / 0.252),
        ("chexfound", (128 / 255 - 0.485) / 0.229),
        ("medsiglip", 2 * 128 / 255 - 1),
        ("densenet121-res224-all", 2048 * 128 / 255 - 1024),
    ],
)
def test_a_constant_gray_image_reaches_the_network_with_the_normalization_of_the_encoder(name, expected):
    backbone = find_backbone(name, "none")
    spec = InputSpec(image_size=4, mean=backbone.mean, std=backbone.std)
    images = normalize(torch.full((1, 1, 4, 4), GRAY, dtype=torch.uint8), spec)
    assert images.shape == (1, len(backbone.mean), 4, 4)
    torch.testing.assert_close(images[0, 0, 0, 0].item(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 224), ({"image_size": 320}, 320), ({"backbone": "rad-dino"}, 518), ({"backbone": "chest:ark6"}, 768),
        ({"backbone": "rad-dino", "image_size": 224}, 224), ({"backbone": "chexnet", "image_size": 300}, 300),
        ({"backbone": "resnet50", "weights": "xrv:resnet50-res512-all"}, 512),
    ],
)  # fmt: skip
def test_the_image_size_is_that_of_the_weights_unless_it_is_given(options, expected):
    assert find_image_size(Recipe(**options)) == expected


@pytest.mark.parametrize(("name", "size", "reason"), [("rad-dino", 256, "multiple of 14"), ("ark6", 384, "windows")])
def test_an_image_size_that_the_weights_cannot_have_is_refused(name, size, reason):
    with pytest.raises(RecipeError, match=reason):
        find_image_size(Recipe(backbone=name, image_size=size))


def test_the_patch_size_is_that_of_the_options_or_of_the_name():
    sizes = {name: find_patch_size(ENCODERS[name]) for name in ("rad-dino", "chexfound", "chexzero", "medsiglip")}
    assert sizes == {"rad-dino": 14, "chexfound": 16, "chexzero": 32, "medsiglip": 14}


def test_facts_that_were_not_read_are_not_shown():
    for encoder in ENCODERS.values():
        assert set(encoder.read_on) <= {"licence", "access", "image_size", "normalization", "interpolation"}
        assert ("licence" in encoder.read_on) == bool(encoder.licence)
    assert describe_terms(ENCODERS["biomedclip"]).startswith(
        "weights of biomedclip: licence see https://huggingface.co/"
    )
    assert "licence MIT" in describe_terms(ENCODERS["rad-dino"]) and "not gated" in describe_terms(ENCODERS["rad-dino"])
    assert describe_pixels(ENCODERS["rad-dino"], 518) == []
    assert "normalization of medsiglip" in describe_pixels(ENCODERS["medsiglip"], 448)[0]
    assert describe_pixels(ENCODERS["rad-dino"], 224)[0].startswith("rad-dino was trained at 518 px, here 224 px")
    assert describe_pixels(ENCODERS["chexzero"], 96)[0].startswith("chexzero is used at 224 px by default, here 96 px")
    assert "normalization of chexnet was not read" in describe_pixels(ENCODERS["chexnet"], 224)[0]


def test_the_file_of_an_encoder_under_the_name_of_its_network_is_a_warning(tmp_path, caplog):
    file = tmp_path / "mae.pth"
    torch.manual_seed(0)
    state = make_encoder_network(ENCODERS["medical-mae-small"], 2, 224).state_dict()
    encoder_state = {key: value for key, value in state.items() if not key.startswith("head.")}
    torch.save({"model": encoder_state | {"decoder_embed.weight": torch.zeros(8, 384)}}, file)
    make_network(find_backbone("vit_small_patch16_224", str(file)), 2, str(file), 224)
    assert "pass its name as the backbone" in caplog.text and "medical-mae-small" in caplog.text


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rad-dino", ["not reachable", "model.safetensors", "huggingface.co/microsoft/rad-dino", "weights=FILE"]),
        ("medsiglip", ["gated", "model.safetensors", "huggingface.co/google/medsiglip-448", "weights=FILE"]),
        ("chexfound", ["teacher_checkpoint.pth", "github.com/RPIDIAL/CheXFound", "weights=FILE"]),
    ],
)
def test_weights_out_of_reach_name_the_page_and_the_file(name, words):
    with pytest.raises(WeightsError) as error:
        validate_pretrained(find_backbone(name))
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_weights_of_another_encoder_of_torchxrayvision_are_refused():
    with pytest.raises(RecipeError, match="not weights of rad-dino"):
        find_backbone("rad-dino", "xrv:densenet121-res224-all")


def test_pixels_beside_the_weights_that_contradict_the_encoder_are_refused(tmp_path):
    encoder, file = ENCODERS["rad-dino"], tmp_path / "model.safetensors"
    validate_pixels(encoder, file)  # no file beside it
    config = {"crop_size": {"height": 518, "width": 518}, "image_mean": [0.5307] * 3, "image_std": [0.2583] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    validate_pixels(encoder, file)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.485, 0.456, 0.406]}))
    with pytest.raises(WeightsError, match=r"image_mean \[0.485"):
        validate_pixels(encoder, file)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {"crop_size": {"height": 224}}))
    with pytest.raises(WeightsError, match="size 224"):
        validate_pixels(encoder, file)


def test_weights_in_the_names_of_timm_are_loaded_with_licence_and_pixels_stated(tmp_path, caplog):
    encoder = ENCODERS["eva-x-tiny"]
    file = tmp_path / "eva.safetensors"
    state = make_encoder_network(encoder, 3, 224).state_dict()
    save_file({key: value for key, value in state.items() if not key.startswith("head.")}, file)
    recipe = Recipe(backbone="eva-x-tiny", weights=str(file))
    with caplog.at_level("INFO", "fastcxr"):
        validate_model_options(recipe)
    backbone = find_backbone("eva-x-tiny", str(file))
    network = make_network(backbone, 2, str(file), 224)
    record = describe_backbone(backbone, str(file), network)
    assert record["licence"].startswith("MIT") and record["weights"] == file.name
    assert torch.equal(network.state_dict()["blocks.0.attn.proj.weight"], state["blocks.0.attn.proj.weight"])
    assert "licence MIT" in caplog.text


def test_the_name_of_an_encoder_as_weights_is_suggested_as_the_backbone():
    with pytest.raises(InputMissingError, match="Pass rad-dino as the backbone"):
        validate_model_options(Recipe(backbone="resnet18", weights="rad-dino"))
