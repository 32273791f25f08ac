"""CheXNet and torchxrayvision weights have the same outputs in fastcxr's networks as in the original ones."""

import importlib
import json
import re
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from device_results import assert_identical
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import RecipeError, WeightsError
from fastcxr.inference.predict import predict
from fastcxr.models import weights as weights_module
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import load_model, save_model
from fastcxr.models.heads import HeadConfig
from fastcxr.models.weights import XRV_WEIGHTS, find_xrv_weights
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

NIH = "xrv:densenet121-res224-nih"


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill all tensors with random values, batch norm statistics included, to detect tensors that are swapped."""
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
    """The original network: torchvision's DenseNet121 with a classifier of 14 sigmoids."""

    def __init__(self):
        super().__init__()
        self.densenet121 = torchvision.models.densenet121(weights=None)
        self.densenet121.classifier = nn.Sequential(nn.Linear(1024, 14), nn.Sigmoid())

    def forward(self, images):
        return self.densenet121(images)


@pytest.fixture(scope="module")
def original() -> CheXNet:
    return randomize(CheXNet())


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory):
    """Write a file like the public one: old key names and torch format, DataParallel prefix, no num_batches_tracked."""
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
def test_chexnet_weights_have_the_same_outputs_in_timm_and_torchvision_networks(original, checkpoint, name, caplog):
    caplog.set_level("INFO", "fastcxr")
    network = make_network(find_backbone(name, checkpoint), 14, checkpoint, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(images).sigmoid(), original(images), atol=1e-5, rtol=1e-4)
    assert "the weights have CheXNet's key names" in caplog.text


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(hidden=(14,)), HeadConfig(dropout=0.5)])
def test_chexnet_weights_fill_the_backbone_under_another_head(original, checkpoint, head):
    network = make_network(find_backbone("densenet121", checkpoint), 3, checkpoint, 64, head)
    state, original_state = network.state_dict(), original.densenet121.state_dict()
    backbone_keys = [key for key in state if key.startswith("features.") and "num_batches" not in key]
    assert all(torch.equal(state[key], original_state[key]) for key in backbone_keys)
    torch.testing.assert_close(network.eval()(torch.rand(1, 3, 64, 64)), torch.zeros(1, 3))


@pytest.mark.parametrize(("n_findings", "is_replaced"), [(14, False), (8, True)])
def test_the_head_of_14_findings_is_loaded_for_as_many_and_otherwise_replaced(
    original, checkpoint, n_findings, is_replaced, caplog
):
    caplog.set_level("INFO", "fastcxr")
    network = make_network(find_backbone("densenet121", checkpoint), n_findings, checkpoint, 64)
    state, original_state = network.state_dict(), original.densenet121.state_dict()
    assert torch.equal(state["features.norm5.running_var"], original_state["features.norm5.running_var"])
    weight, original_weight = state["classifier.weight"], original_state["classifier.0.weight"]
    assert torch.equal(weight, original_weight) if not is_replaced else not weight.any()
    reported = "without its head, which differs (outputs: 14)"
    assert (reported in caplog.text) == is_replaced


def test_chexnet_weights_in_another_network_raise_an_error_that_lists_the_keys(checkpoint):
    with pytest.raises(WeightsError) as caught:
        make_network(find_backbone("densenet169", checkpoint), 3, checkpoint, 64)
    assert "missing keys: features.denseblock3.denselayer25.norm1.weight" in str(caught.value)
    assert "Pass the backbone that these weights were saved from" in str(caught.value)


def test_a_chexnet_file_without_a_layer_raises_an_error(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["state_dict"]["module.densenet121.features.norm0.weight"]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match="missing keys: features.norm0.weight"):
        make_network(find_backbone("densenet121", "none"), 3, str(tmp_path / "short.pth"), 64)


def test_similar_key_names_of_other_networks_are_not_renamed():
    state = {"features.1.conv.1.weight": torch.zeros(1)}  # torchvision's mobilenet_v2
    assert weights_module.rename_chexnet_keys(state) == state


def make_xrv_network(name: str) -> nn.Module:
    """Return a network like those of torchxrayvision: from torchvision, with one input channel and 18 findings."""
    network = torchvision.models.get_model(name.partition("-")[0], weights=None, num_classes=18)
    if name.startswith("densenet"):
        network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return randomize(network)


class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.fixture
def xrv_networks(monkeypatch):
    """Replace torchxrayvision by a fake; return the networks that it loaded, by name."""
    loaded = {}

    def get_model(name):
        print("Downloading weights...")
        loaded[name] = make_xrv_network(name)
        model = Wrapped(loaded[name]) if name.startswith("resnet") else loaded[name]
        model.register_buffer("op_threshs", torch.zeros(18))
        return model

    models = types.SimpleNamespace(
        get_model=get_model, model_urls={n: {"weights_url": "https://x"} for n in XRV_WEIGHTS}
    )
    package = types.ModuleType("torchxrayvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    return loaded


@pytest.mark.parametrize("name", ["densenet121-res224-nih", "densenet121-res224-mimic_ch", "resnet50-res512-all"])
@torch.inference_mode()
def test_xrv_weights_have_the_same_outputs_as_the_original_network(xrv_networks, name, capsys):
    weights = f"xrv:{name}"
    network = make_network(find_backbone(name.partition("-")[0], weights), 18, weights, 64).eval()
    images = torch.rand(2, 1, 64, 64) * 2048 - 1024
    torch.testing.assert_close(network(images), xrv_networks[name](images), atol=1e-2, rtol=1e-4)
    assert capsys.readouterr().out == ""


def test_the_input_of_xrv_weights_is_one_channel_from_minus_to_plus_1024(xrv_networks, toy_manifest, tmp_path):
    recipe = Recipe("densenet121", weights=NIH, image_size=64, batch_size=6, strategy="gradual", precision="fp32")
    loaders = make_loaders(toy_manifest, recipe)
    images, _ = loaders.valid.one_batch()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    image = fit_square(read_image(file), 64)
    assert images.shape[1:] == (1, 64, 64)
    np.testing.assert_allclose(images[0, 0].cpu().numpy(), (2 * image.astype(np.float64) / 255 - 1) * 1024, atol=0.1)

    learner = make_learner(loaders, recipe)
    nn.init.normal_(learner.model.classifier.weight, std=0.01)
    save_model(tmp_path, learner, recipe, {})
    model_json = json.loads((tmp_path / "model.json").read_text())
    assert model_json["input_spec"] == {"image_size": 64, "mean": [0.5], "std": [1 / 2048]}
    assert model_json["backbone"]["weights"] == NIH
    assert model_json["backbone"]["weights_sha256"] is None
    before, after = (predict(model, toy_manifest).probability for model in (learner, load_model(tmp_path)))
    assert_identical(before, after)
    assert np.ptp(before) > 0.01


@pytest.mark.needs("torchxrayvision")
@torch.inference_mode()
def test_the_real_torchxrayvision_has_the_same_outputs(monkeypatch, tmp_path):
    xrv = importlib.import_module("torchxrayvision")
    original = randomize(xrv.models.DenseNet(num_classes=18))
    torch.save(original, tmp_path / "nih.pt")  # its files are pickled networks
    monkeypatch.setattr(xrv.models, "get_weights", lambda *a, **k: str(tmp_path / "nih.pt"))
    backbone = find_backbone("densenet121", NIH)
    network = make_network(backbone, 18, NIH, 224).eval()
    gray = np.random.default_rng(0).integers(0, 256, (2, 1, 224, 224)).astype(np.uint8)
    outputs = network((torch.from_numpy(gray) / 255 - backbone.mean[0]) / backbone.std[0])
    torch.testing.assert_close(
        outputs, original(torch.from_numpy(xrv.utils.normalize(gray, 255))), atol=1e-2, rtol=1e-4
    )


@pytest.mark.needs("torchxrayvision")
def test_the_weights_names_agree_with_torchxrayvision():
    models = importlib.import_module("torchxrayvision").models
    xrv_names = {name for name in models.model_urls if "-res" in name}
    assert set(XRV_WEIGHTS) == xrv_names
    assert all(models.model_urls[name]["input_resolution"] == size for name, (_, size) in XRV_WEIGHTS.items())


def test_without_torchxrayvision_the_error_has_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchxrayvision", None)
    with pytest.raises(WeightsError) as caught:
        make_network(find_backbone("densenet121", NIH), 3, NIH, 64)
    assert "pip install 'fastcxr[xrv]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 69


def test_the_error_of_a_failed_download_has_the_url_and_the_folder(xrv_networks, monkeypatch):
    def fail(name):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(sys.modules["torchxrayvision"].models, "get_model", fail)
    with pytest.raises(WeightsError, match="Download https://x into ~/.torchxrayvision") as caught:
        make_network(find_backbone("densenet121", NIH), 3, NIH, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "weights", "fix"),
    [
        ("densenet121", "xrv:densenet121-res224-nhi", "Did you mean 'xrv:densenet121-res224-nih'?"),
        ("densenet121", "xrv:", "Choose from xrv:densenet121-res224-all"),
        ("resnet18", NIH, "Pass densenet121 as the backbone"),
        ("torchvision:densenet121", NIH, "Pass densenet121 as the backbone"),
    ],
)
def test_unknown_weights_and_weights_of_another_backbone_are_rejected(backbone, weights, fix):
    with pytest.raises(RecipeError) as caught:
        find_backbone(backbone, weights)
    assert fix in str(caught.value)


def test_a_weights_name_has_a_backbone_and_an_image_size():
    assert find_xrv_weights(NIH) == ("densenet121", 224)
    assert find_xrv_weights("xrv:resnet50-res512-all") == ("resnet50", 512)
