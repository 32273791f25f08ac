"""Saliency maps, their table and their page; maps that fail the sanity check are never shown."""

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fastcxr import explain
from fastcxr.errors import ModelError, RecipeError
from fastcxr.inference import explain as module
from fastcxr.inference.predict import predict
from fastcxr.inference.saliency_maps import SaliencyMap, compute_border_share, overlay_saliency
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier
from fastcxr.models.heads import HeadConfig, find_head
from fastcxr.models.preprocessing import InputSpec
from fastcxr.progress.base import Progress
from fastcxr.workflows.explain import write_explanation


def make_classifier(config=None):
    torch.manual_seed(0)
    backbone = find_backbone("mobilenetv2_035", "none")
    network = make_network(backbone, 3, "none", 64, config or HeadConfig())
    head = find_head(network)
    nn.init.normal_(getattr(head, "linear", head).weight)
    input_spec = InputSpec(image_size=64, mean=backbone.mean, std=backbone.std)
    return Classifier(network=network, labels=("clear", "haze", "opacity"), input_spec=input_spec)


@pytest.fixture
def manifest(toy_manifest):
    return toy_manifest.iloc[[0, 10, 20, 25]].reset_index(drop=True)


@pytest.mark.parametrize("config", [HeadConfig(), HeadConfig(multi_scale=True)])
def test_each_image_has_a_map_of_its_predicted_class_and_of_the_named_classes(manifest, config):
    found = explain(make_classifier(config), manifest, classes=["haze"])
    assert [m.path for m in found.maps if m.class_name == m.predicted] == manifest["path"].tolist()
    assert {m.path for m in found.maps if m.class_name == "haze"} == set(manifest["path"])
    for saliency_map in found.maps:
        assert saliency_map.image.shape == saliency_map.saliency.shape == (64, 64)
        if saliency_map.normalized is not None:
            assert saliency_map.normalized.max() == 1 and 0 <= saliency_map.border_share <= 1
    assert any(m.normalized is not None for m in found.maps)
    assert not hasattr(found.maps[0], "label"), "no label of an image, which a file may not have"
    assert found.table["class"].tolist() == [m.class_name for m in found.maps]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_probability_of_a_map_equals_that_of_predict(manifest, precision):
    classifier = replace(make_classifier(), temperature=25.0, hflip_tta=True, precision=precision)
    expected = predict(classifier, manifest, splits=None)
    found = explain(classifier, manifest, classes=["haze"]).table
    for row, probability in zip(expected.table.itertuples(), expected.probability, strict=True):
        maps = found[found["path"] == row.path].set_index("class")["probability"]
        assert {row.predicted, "haze"} == set(maps.index)
        assert maps[row.predicted] == pytest.approx(probability.max(), abs=1e-9)
        assert maps["haze"] == pytest.approx(probability[1], abs=1e-9)


def test_the_given_network_remains_trainable(manifest):
    classifier = make_classifier(HeadConfig(multi_scale=True))
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    explain(classifier, manifest)
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.network.state_dict().items())


def test_an_unknown_class_raises_an_error_with_the_known_classes(manifest):
    with pytest.raises(RecipeError, match="class called 'hase'. Did you mean 'haze'. Choose from clear, haze, opacity"):
        explain(make_classifier(), manifest, classes=["hase"])


def test_an_unreadable_file_yields_one_row_with_an_error(manifest, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = manifest.assign(file=[str(tmp_path / "bad.png"), *manifest["file"][1:]])
    table = explain(make_classifier(), bad).table
    assert table["error"].str.contains("FCX-E102").tolist() == [True, False, False, False]
    whole = explain(make_classifier(), manifest.iloc[1:]).table
    pd.testing.assert_series_equal(table["probability"][1:].reset_index(drop=True), whole["probability"])


def test_without_any_readable_image_every_row_has_an_error(manifest, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    page, bad = write_explanation(
        make_classifier(), manifest.assign(file=str(tmp_path / "bad.png")), tmp_path / "maps", progress=Progress()
    )
    assert bad == 4
    assert "No saliency map of 4 images" in page.read_text(encoding="utf-8")


def make_edge_map(network, layers, images, classes):
    """Return a map that does not depend on the network."""
    return images.mean(dim=1).abs()


def test_maps_that_fail_the_check_are_withheld_everywhere(manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "grad_cam", make_edge_map)
    found = explain(make_classifier(), manifest)
    assert not found.check.is_passed
    assert all(m.normalized is None and np.isnan(m.border_share) for m in found.maps)
    assert "data:image" not in found._repr_html_() and "rank correlation 1.00" in found._repr_html_()
    page, _ = write_explanation(make_classifier(), manifest, tmp_path / "maps", progress=Progress())
    text = page.read_text(encoding="utf-8")
    assert "Saliency maps withheld" in text and "hardly changes when the weights are random" in text
    assert "data:image" not in text and not list((tmp_path / "maps").rglob("*.jpg"))
    metadata = json.loads((tmp_path / "maps" / "explain.json").read_text())
    assert metadata["border_share"] == {} and not metadata["check"]["passed"]


def test_a_notebook_shows_the_maps_with_escaped_file_names(manifest):
    html = explain(make_classifier(), manifest.assign(path="<script>.png"))._repr_html_()
    assert "data:image/jpeg" in html and "<script>" not in html


def test_a_constant_map_has_51_percent_in_the_border():
    assert compute_border_share(np.ones((100, 100))) == pytest.approx(0.51)
    center = np.zeros((100, 100))
    center[15:85, 15:85] = 1
    assert compute_border_share(center) == 0
    assert compute_border_share(1 - center) == 1


def test_an_empty_map_is_not_shown_and_has_a_note():
    blank = np.zeros((8, 8), np.uint8)
    saliency_map = SaliencyMap(source="a", path="b", class_name="haze", image=blank, saliency=blank)
    assert saliency_map.normalized is None and saliency_map.note == "no evidence for haze in the image"


def test_the_overlay_keeps_the_image_where_saliency_is_zero():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    saliency = np.zeros((8, 8))
    saliency[0, 0] = 1
    overlay = overlay_saliency(image, saliency)
    assert (overlay[1:] == image[1:, :, None]).all()
    assert overlay[0, 0, 0] > overlay[0, 0, 2], "more red than blue"


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_without_captum_the_error_names_the_command_that_installs_it(manifest, monkeypatch, tmp_path, method):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModelError, match=rf"`method='{method}'` requires captum.*pip install 'fastcxr\[explain\]'"):
        write_explanation(make_classifier(), manifest, tmp_path / "maps", method=method, progress=Progress())
    assert not (tmp_path / "maps").exists()


class FakeMethod:
    """Replacement for the captum methods: gradient of the logit times the image."""

    def __init__(self, network):
        self.network = network

    def attribute(self, images, *args, target, **options):
        images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = self.network(images).gather(1, target[:, None]).sum()
        return torch.autograd.grad(logits, images)[0] * images


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_captum_methods_return_maps_of_the_same_shape(manifest, monkeypatch, method):
    fake_captum = types.SimpleNamespace(IntegratedGradients=FakeMethod, Occlusion=FakeMethod)
    monkeypatch.setitem(sys.modules, "captum", types.ModuleType("captum"))
    monkeypatch.setitem(sys.modules, "captum.attr", fake_captum)
    found = explain(make_classifier(), manifest, method=method)
    assert len(found.maps) == 4 and all(m.saliency.shape == (64, 64) for m in found.maps)
    assert all(m.saliency.min() >= 0 for m in found.maps)
