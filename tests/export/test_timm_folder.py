"""A trained network in a folder of timm: the outputs of the run, or the reason why timm cannot have the network."""

import re
from contextlib import chdir
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_encoders import TINY_ENCODERS

from fastcxr.data.imaging.read import fit_square
from fastcxr.errors import ModelError
from fastcxr.export import timm_folder
from fastcxr.export.timm_folder import write_timm_folder
from fastcxr.io.files import compute_sha256, read_json
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier, Ensemble, load_model
from fastcxr.models.heads import HeadConfig, find_head_modules
from fastcxr.models.preprocessing import InputSpec, normalize

SIZE = 64  # pixels
LABELS = ("clear", 'haze "left" {0}', "opacity")
IMAGES = np.concatenate([
    np.zeros((1, SIZE, SIZE), np.uint8),
    np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8),
])  # fmt: skip


def make_classifier(name: str, head: HeadConfig, channels: int = 3) -> Classifier:
    """Return a classifier with random weights, also in the head."""
    torch.manual_seed(0)
    backbone = find_backbone(name, "none")
    backbone = replace(backbone, mean=backbone.mean[:channels], std=backbone.std[:channels])
    network = make_network(backbone, len(LABELS), "none", SIZE, head).eval()
    for head_name in find_head_modules(network):
        for parameter in network.get_submodule(head_name).parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return Classifier(
        network=network, labels=LABELS, input_spec=InputSpec(image_size=SIZE, mean=backbone.mean, std=backbone.std)
    )


def export(classifier: Classifier, folder, name: str, images=IMAGES, **facts) -> dict:
    library, _, base_name = name.rpartition(":")
    backbone = {"library": library or "timm", "name": base_name, **facts}
    return write_timm_folder(classifier, folder, {"backbone": backbone}, images)


def run_timm(folder, classifier: Classifier, images=IMAGES) -> np.ndarray:
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return network(normalize(torch.from_numpy(images)[:, None], classifier.input_spec)).numpy()


@pytest.fixture(params=["timm:resnet10t", "timm:vit_tiny_patch16_224"], scope="module")
def linear(request, tmp_path_factory):
    """A network with a linear head, and its export."""
    folder, classifier = tmp_path_factory.mktemp("linear"), make_classifier(request.param, HeadConfig())
    return folder, classifier, export(classifier, folder, request.param, licence="MIT")


def test_timm_loads_the_network_and_gives_the_logits_of_the_run(linear):
    folder, classifier, entries = linear
    with torch.no_grad():
        expected = classifier.network(normalize(torch.from_numpy(IMAGES)[:, None], classifier.input_spec)).numpy()
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(run_timm(folder, classifier), expected, atol=1e-6)
    assert entries["content"] == "classifier"
    assert entries["outputs"]["logits"]["shape"] == ["n", 3]
    assert 0 <= entries["check"]["max_difference"] < entries["check"]["tolerance"] < 1e-4
    assert entries["check"]["same_class"] == entries["check"]["images"] == len(IMAGES)
    assert entries["files"] == {name: compute_sha256(folder / name) for name in entries["files"]}


def test_the_settings_of_timm_are_those_of_the_run(linear):
    folder, classifier, _ = linear
    network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    settings = timm.data.resolve_model_data_config(network)
    assert list(settings["input_size"]) == [3, SIZE, SIZE]
    assert tuple(settings["mean"]) == classifier.input_spec.mean
    assert tuple(settings["std"]) == classifier.input_spec.std
    assert (settings["crop_pct"], settings["interpolation"]) == (1.0, "bilinear")
    assert tuple(network.pretrained_cfg["label_names"]) == LABELS
    assert timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).num_classes == 7


def test_the_code_in_the_readme_gives_the_logits_of_the_run(linear, capsys, monkeypatch):
    folder, classifier, _ = linear
    gray = np.random.default_rng(1).integers(0, 256, (90, 120), dtype=np.uint8)
    Image.fromarray(gray).save(folder / "image.png")
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.setitem(torch.__dict__, "found", None)
    with chdir(folder):
        exec(code.replace("print(", "torch.found = ("), {})
    expected = run_timm(folder, classifier, fit_square(gray, SIZE)[None])
    np.testing.assert_allclose(torch.found.numpy(), expected, atol=1e-6)
    assert "not for diagnosis" in text
    assert "Terms of the initial weights: MIT." in text
    assert '"haze \\"left\\" {0}"' in text


@pytest.mark.parametrize(
    ("name", "head", "n_features"),
    [
        ("timm:mobilenetv2_035", HeadConfig(multi_scale=True), 1280),
        ("timm:resnet10t", HeadConfig(hidden=(8,), dropout=0.1), 512),
        ("timm:deit_tiny_distilled_patch16_224", HeadConfig(hidden=(8,)), 192),
    ],
)
def test_a_head_that_timm_does_not_have_is_left_out(tmp_path, caplog, name, head, n_features):
    classifier = make_classifier(name, head)
    entries = export(classifier, tmp_path, name)
    assert entries["content"] == "backbone"
    assert entries["outputs"]["features"]["shape"] == ["n", n_features]
    assert run_timm(tmp_path, classifier).shape == (len(IMAGES), n_features)
    assert entries["check"]["same_class"] is None
    assert entries["check"]["max_difference"] <= 1e-5
    assert "label_names" not in read_json(tmp_path / "config.json")
    assert "the export holds the backbone" in caplog.text


@pytest.mark.parametrize(
    ("head", "channels"), [(HeadConfig(dropout=0.2), 3), (HeadConfig(), 1)], ids=["dropout", "one channel"]
)
def test_dropout_and_one_channel_are_exported_with_the_head(tmp_path, head, channels):
    classifier = make_classifier("timm:resnet10t", head, channels)
    entries = export(classifier, tmp_path, "timm:resnet10t")
    assert entries["content"] == "classifier"
    assert entries["input"]["shape"] == ["n", channels, SIZE, SIZE]
    assert entries["check"]["same_class"] == len(IMAGES)


@pytest.mark.parametrize("name", ["rad-dino", "eva-x-tiny", "medsiglip", "ark6"])
def test_a_chest_encoder_is_constructed_from_its_options(tmp_path, monkeypatch, name):
    for module in ("models.backbones", "export.timm_folder"):
        monkeypatch.setattr(f"fastcxr.{module}.ENCODERS", TINY_ENCODERS)
    entries = export(make_classifier(f"chest:{name}", HeadConfig()), tmp_path, f"chest:{name}")
    assert entries["content"] == "classifier"
    assert entries["check"]["max_difference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1 is not a network of timm"),
        ("fastcxr:baseline_cnn", "fastcxr:baseline_cnn is not a network of timm"),
        ("chest:chexfound", "class token and the mean of the patches"),
    ],
)
def test_a_network_that_timm_does_not_have_is_refused_before_anything_is_written(tmp_path, monkeypatch, name, problem):
    for module in ("models.backbones", "export.timm_folder"):
        monkeypatch.setattr(f"fastcxr.{module}.ENCODERS", TINY_ENCODERS)
    with pytest.raises(ModelError, match=problem) as error:
        export(make_classifier(name, HeadConfig()), tmp_path, name)
    assert "to='onnx'" in error.value.fix
    assert list(tmp_path.iterdir()) == []


def test_an_ensemble_is_refused(tmp_path):
    classifier = make_classifier("timm:resnet10t", HeadConfig())
    with pytest.raises(ModelError, match="mean of 2 networks"):
        export(Ensemble(members=(classifier,) * 2), tmp_path, "timm:resnet10t")


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_other_outputs_are_refused(tmp_path, monkeypatch, value):
    def make_other_state(network, content):
        state = dict(network.state_dict())
        return state | {"fc.bias": state["fc.bias"] + value}

    monkeypatch.setattr(timm_folder, "make_state", make_other_state)
    with pytest.raises(ModelError, match="differ from those of the run") as error:
        export(make_classifier("timm:resnet10t", HeadConfig()), tmp_path, "timm:resnet10t")
    assert error.value.code == "E315"


def test_weights_that_timm_cannot_load_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(timm_folder, "make_state", lambda network, content: {"conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="cannot load the exported network") as error:
        export(make_classifier("timm:resnet10t", HeadConfig()), tmp_path, "timm:resnet10t")
    assert error.value.code == "E315"
    assert "\n" not in str(error.value)


def test_a_run_of_findings_is_exported(tmp_path, finding_run):
    run_folder, _ = finding_run
    model = load_model(run_folder, precision="fp32", device="cpu")
    size = model.input_spec.image_size
    images = np.random.default_rng(0).integers(0, 256, (4, size, size), dtype=np.uint8)
    entries = write_timm_folder(model, tmp_path, read_json(run_folder / "model.json"), images)
    assert entries["check"]["images"] == 4
    assert entries["content"] == "classifier"
    assert read_json(tmp_path / "config.json")["label_names"] == list(model.labels)
