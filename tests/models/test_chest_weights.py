"""Weights of other makers fill our networks so that both give the same numbers, whatever their layout calls them."""

import importlib
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import RecipeError, WeightsError
from fastcxr.inference.predict import predict
from fastcxr.models import weights as chest_weights
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import load_model, save_model
from fastcxr.models.heads import HeadConfig
from fastcxr.models.weights import XRV_WEIGHTS, find_xrv_weights
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

NIH = "xrv:densenet121-res224-nih"


def stir(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random numbers in every tensor, batch norm's statistics included, so that no two could be exchanged unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if "running_var" in name or ("norm" in name and name.endswith("weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return network.eval()


class CheXNet(nn.Module):
    """The original: torchvision's DenseNet121 with fourteen sigmoids in place of its classifier."""

    def __init__(self):
        super().__init__()
        self.densenet121 = torchvision.models.densenet121(weights=None)
        self.densenet121.classifier = nn.Sequential(nn.Linear(1024, 14), nn.Sigmoid())

    def forward(self, images):
        return self.densenet121(images)


@pytest.fixture(scope="module")
def original() -> CheXNet:
    return stir(CheXNet())


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory):
    """A file as the public one: old names, two wrappers, torch's old format, and no batch counters."""
    state = {
        "module." + re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value
        for key, value in original.state_dict().items()
        if "num_batches" not in key
    }
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in state
    assert "module.densenet121.classifier.0.weight" in state
    file = tmp_path_factory.mktemp("chexnet") / "model.pth.tar"
    content = {"epoch": 7, "state_dict": state, "best_loss": 0.1, "optimizer": {}}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return str(file)


@pytest.mark.parametrize("name", ["densenet121", "torchvision:densenet121"])
@torch.inference_mode()
def test_chexnet_gives_its_own_numbers_in_our_networks(original, checkpoint, name, caplog):
    caplog.set_level("INFO", "fastcxr")
    network = make_network(find_backbone(name, checkpoint), 14, checkpoint, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images).sigmoid(), original(images), atol=1e-5, rtol=1e-4)
    assert "these weights are in CheXNet's layout" in caplog.text


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(hidden=(14,)), HeadConfig(dropout=0.5)])
def test_chexnets_body_takes_a_head_of_our_own(original, checkpoint, head):
    network = make_network(find_backbone("densenet121", checkpoint), 3, checkpoint, 64, head)
    state, theirs = network.state_dict(), original.densenet121.state_dict()
    body = [key for key in state if key.startswith("features.") and "num_batches" not in key]
    assert all(torch.equal(state[key], theirs[key]) for key in body)
    torch.testing.assert_close(network.eval()(torch.rand(1, 3, 64, 64)), torch.zeros(1, 3))


def test_chexnet_in_another_network_is_an_error_that_lists_the_keys(checkpoint):
    with pytest.raises(WeightsError) as caught:
        make_network(find_backbone("densenet169", checkpoint), 3, checkpoint, 64)
    assert "lacks features.denseblock3.denselayer25.norm1.weight" in str(caught.value)
    assert "Name the backbone that these weights were saved from" in str(caught.value)


def test_a_chexnet_file_that_lacks_a_layer_is_an_error(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["state_dict"]["module.densenet121.features.norm0.weight"]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match="lacks features.norm0.weight"):
        make_network(find_backbone("densenet121", "none"), 3, str(tmp_path / "short.pth"), 64)


def test_names_with_such_dots_in_other_networks_stay_as_they_are():
    state = {"features.1.conv.1.weight": torch.zeros(1)}  # torchvision's mobilenet_v2
    assert chest_weights.rename_chexnet_keys(state) == state


def stand_in(name: str) -> nn.Module:
    """torchxrayvision's networks, made again: torchvision's, with one channel and thresholds of 18 findings."""
    network = torchvision.models.get_model(name.partition("-")[0], weights=None, num_classes=18)
    if name.startswith("densenet"):
        network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return stir(network)


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture
def stand_ins(monkeypatch):
    """A torchxrayvision of stand-ins; the networks that it gave out, by name."""
    given = {}

    def get_model(name):
        print("Downloading weights...")
        given[name] = stand_in(name)
        model = Wrapped(given[name]) if name.startswith("resnet") else given[name]
        model.register_buffer("op_threshs", torch.zeros(18))
        return model

    models = types.SimpleNamespace(
        get_model=get_model, model_urls={n: {"weights_url": "https://x"} for n in XRV_WEIGHTS}
    )
    package = types.ModuleType("torchxrayvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    return given


@pytest.mark.parametrize("name", ["densenet121-res224-nih", "densenet121-res224-mimic_ch", "resnet50-res512-all"])
@torch.inference_mode()
def test_its_networks_made_again_give_the_same_numbers_in_ours(stand_ins, name, capsys):
    weights = f"xrv:{name}"
    network = make_network(find_backbone(name.partition("-")[0], weights), 18, weights, 64).eval()
    images = torch.rand(2, 1, 64, 64) * 2048 - 1024
    torch.testing.assert_close(network(images), stand_ins[name](images), atol=1e-2, rtol=1e-4)
    assert capsys.readouterr().out == ""


def test_its_pixels_are_one_channel_from_minus_to_plus_1024_in_training_and_use(stand_ins, toy_manifest, tmp_path):
    recipe = Recipe("densenet121", weights=NIH, image_size=64, batch_size=6, strategy="gradual", precision="fp32")
    loaders = make_loaders(toy_manifest, recipe)
    images, _ = loaders.valid.one_batch()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    square = fit_square(read_image(file), 64)
    assert images.shape[1:] == (1, 64, 64)
    np.testing.assert_allclose(images[0, 0].numpy(), (2 * square.astype(np.float64) / 255 - 1) * 1024, atol=0.1)

    learner = make_learner(loaders, recipe)
    nn.init.normal_(learner.model.classifier.weight, std=0.01)
    save_model(tmp_path, learner, recipe, {})
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["input_spec"] == {"image_size": 64, "mean": [0.5], "std": [1 / 2048]}
    assert facts["backbone"]["weights"] == NIH
    assert facts["backbone"]["weights_sha256"] is None
    before, after = (predict(model, toy_manifest).probability for model in (learner, load_model(tmp_path)))
    np.testing.assert_array_equal(before, after)
    assert np.ptp(before) > 0.01


@pytest.mark.needs("torchxrayvision")
@torch.inference_mode()
def test_the_real_torchxrayvision_gives_the_same_numbers(monkeypatch, tmp_path):
    xrv = importlib.import_module("torchxrayvision")
    theirs = stir(xrv.models.DenseNet(num_classes=18))
    torch.save(theirs, tmp_path / "nih.pt")  # its files are whole networks
    monkeypatch.setattr(xrv.models, "get_weights", lambda *a, **k: str(tmp_path / "nih.pt"))
    backbone = find_backbone("densenet121", NIH)
    network = make_network(backbone, 18, NIH, 224).eval()
    gray = np.random.default_rng(0).integers(0, 256, (2, 1, 224, 224)).astype(np.uint8)
    ours = network((torch.from_numpy(gray) / 255 - backbone.mean[0]) / backbone.std[0])
    torch.testing.assert_close(ours, theirs(torch.from_numpy(xrv.utils.normalize(gray, 255))), atol=1e-2, rtol=1e-4)


@pytest.mark.needs("torchxrayvision")
def test_the_names_are_those_of_torchxrayvision():
    models = importlib.import_module("torchxrayvision").models
    chest = {name for name in models.model_urls if "-res" in name}
    assert set(XRV_WEIGHTS) == chest
    assert all(models.model_urls[name]["input_resolution"] == size for name, (_, size) in XRV_WEIGHTS.items())


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(WeightsError) as caught:
        make_network(find_backbone("densenet121", NIH), 3, NIH, 64)
    assert "pip install 'fastcxr[xrv]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 69


def test_a_download_that_fails_says_where_the_file_belongs(stand_ins, monkeypatch):
    def fail(name):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(sys.modules["torchxrayvision"].models, "get_model", fail)
    with pytest.raises(WeightsError, match="Fetch https://x into ~/.torchxrayvision") as caught:
        make_network(find_backbone("densenet121", NIH), 3, NIH, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "weights", "remedy"),
    [
        ("densenet121", "xrv:densenet121-res224-nhi", "Did you mean 'xrv:densenet121-res224-nih'?"),
        ("densenet121", "xrv:", "Choose from xrv:densenet121-res224-all"),
        ("resnet18", NIH, "Name densenet121 as the backbone"),
        ("torchvision:densenet121", NIH, "Name densenet121 as the backbone"),
    ],
)
def test_weights_of_another_name_or_network_are_refused(backbone, weights, remedy):
    with pytest.raises(RecipeError) as caught:
        find_backbone(backbone, weights)
    assert remedy in str(caught.value)


def test_each_name_says_its_network_and_size():
    assert find_xrv_weights(NIH) == ("densenet121", 224)
    assert find_xrv_weights("xrv:resnet50-res512-all") == ("resnet50", 512)
