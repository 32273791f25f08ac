"""From a classifier and images to maps, a table and a page; maps that failed their check are shown nowhere."""

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
from fastcxr.inference.explain import SaliencyMap, compute_border_share, overlay_saliency
from fastcxr.inference.predict import predict
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier
from fastcxr.models.heads import HeadConfig, find_head
from fastcxr.models.preprocessing import InputSpec
from fastcxr.progress.base import Progress
from fastcxr.workflows.explain import write_explanation


def make_classifier(plan=None):
    torch.manual_seed(0)
    backbone = find_backbone("mobilenetv2_035", "none")
    network = make_network(backbone, 3, "none", 64, plan or HeadConfig())
    head = find_head(network)
    nn.init.normal_(getattr(head, "linear", head).weight)
    pixels = InputSpec(image_size=64, mean=backbone.mean, std=backbone.std)
    return Classifier(network=network, labels=("clear", "haze", "opacity"), input_spec=pixels)


@pytest.fixture
def some(toy_manifest):
    return toy_manifest.iloc[[0, 10, 20, 25]].reset_index(drop=True)


@pytest.mark.parametrize("plan", [HeadConfig(), HeadConfig(multi_scale=True)])
def test_each_image_has_a_map_of_its_predicted_class_and_of_those_that_are_named(some, plan):
    found = explain(make_classifier(plan), some, classes=["haze"])
    own = [heat for heat in found.maps if heat.label == heat.predicted]
    assert [heat.path for heat in own] == some["path"].tolist()
    assert {heat.path for heat in found.maps if heat.label == "haze"} == set(some["path"])
    for heat in found.maps:
        assert heat.image.shape == heat.saliency.shape == (64, 64)
        if heat.normalized is not None:
            assert heat.normalized.max() == 1 and 0 <= heat.border_share <= 1
    assert any(heat.normalized is not None for heat in found.maps)
    assert found.table["class"].tolist() == [heat.label for heat in found.maps]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_probability_beside_a_map_is_the_one_that_predict_gives(some, precision):
    classifier = replace(make_classifier(), temperature=25.0, hflip_tta=True, precision=precision)
    expected = predict(classifier, some, splits=None)
    found = explain(classifier, some, classes=["haze"]).table
    for row, probability in zip(expected.table.itertuples(), expected.probability, strict=True):
        maps = found[found["path"] == row.path].set_index("class")["probability"]
        assert {row.predicted, "haze"} == set(maps.index)
        assert maps[row.predicted] == pytest.approx(probability.max(), abs=1e-9)
        assert maps["haze"] == pytest.approx(probability[1], abs=1e-9)


def test_the_given_network_can_still_be_taught(some):
    classifier = make_classifier(HeadConfig(multi_scale=True))
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    explain(classifier, some)
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.network.state_dict().items())


def test_an_unknown_class_is_named_with_those_that_are_known(some):
    with pytest.raises(RecipeError, match="no class called 'hase'. Did you mean 'haze'. It knows clear, haze, opacity"):
        explain(make_classifier(), some, classes=["hase"])


def test_a_bad_file_costs_one_row(some, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = some.assign(file=[str(tmp_path / "bad.png"), *some["file"][1:]])
    table = explain(make_classifier(), bad).table
    assert table["error"].str.contains("FCX-E102").tolist() == [True, False, False, False]
    whole = explain(make_classifier(), some.iloc[1:]).table
    pd.testing.assert_series_equal(table["probability"][1:].reset_index(drop=True), whole["probability"])


def test_images_that_can_none_of_them_be_read_leave_rows_with_reasons(some, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    page, bad = write_explanation(
        make_classifier(), some.assign(file=str(tmp_path / "bad.png")), tmp_path / "maps", progress=Progress()
    )
    assert bad == 4
    assert "No saliency map of 4 images" in page.read_text(encoding="utf-8")


def edges(network, layers, images, classes):
    """A map that knows nothing of the network."""
    return images.mean(dim=1).abs()


def test_maps_that_failed_the_check_are_shown_nowhere(some, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "grad_cam", edges)
    found = explain(make_classifier(), some)
    assert not found.check.is_passed
    assert all(heat.normalized is None and np.isnan(heat.border_share) for heat in found.maps)
    assert "data:image" not in found._repr_html_() and "rank correlation 1.00" in found._repr_html_()
    page, _ = write_explanation(make_classifier(), some, tmp_path / "maps", progress=Progress())
    text = page.read_text(encoding="utf-8")
    assert "Saliency maps withheld" in text and "hardly changes when the weights are random" in text
    assert "data:image" not in text and not list((tmp_path / "maps").rglob("*.jpg"))
    facts = json.loads((tmp_path / "maps" / "explain.json").read_text())
    assert facts["border_share"] == {} and not facts["check"]["passed"]


def test_a_notebook_shows_the_maps_and_nothing_of_a_file_name_becomes_markup(some):
    html = explain(make_classifier(), some.assign(path="<script>.png"))._repr_html_()
    assert "data:image/jpeg" in html and "<script>" not in html


def test_an_even_map_has_half_of_its_heat_in_the_border():
    assert compute_border_share(np.ones((100, 100))) == pytest.approx(0.51)
    middle = np.zeros((100, 100))
    middle[15:85, 15:85] = 1
    assert compute_border_share(middle) == 0
    assert compute_border_share(1 - middle) == 1


def test_a_map_of_nothing_is_not_shown_and_says_so():
    heat = SaliencyMap(source="a", path="b", label="haze", image=np.zeros((8, 8), np.uint8), saliency=np.zeros((8, 8)))
    assert heat.normalized is None and heat.note == "nothing in the image speaks for this class"


def test_where_there_is_no_heat_the_picture_is_as_it_was():
    square = np.arange(64, dtype=np.uint8).reshape(8, 8)
    heat = np.zeros((8, 8))
    heat[0, 0] = 1
    picture = overlay_saliency(square, heat)
    assert (picture[1:] == square[1:, :, None]).all()
    assert picture[0, 0, 0] > picture[0, 0, 2], "warm"


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_without_the_extra_it_says_how_to_get_it(some, monkeypatch, tmp_path, method):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModelError, match=rf"--method {method} needs captum.*pip install 'fastcxr\[explain\]'"):
        write_explanation(make_classifier(), some, tmp_path / "maps", method=method, progress=Progress())
    assert not (tmp_path / "maps").exists()


class Gradient:
    """Stands where captum's methods stand: the gradient of the logit times the picture."""

    def __init__(self, network):
        self.network = network

    def attribute(self, images, *words, target, **options):
        images = images.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = self.network(images).gather(1, target[:, None]).sum()
        return torch.autograd.grad(logits, images)[0] * images


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_maps_of_captum_go_the_same_way(some, monkeypatch, method):
    stand_in = types.SimpleNamespace(IntegratedGradients=Gradient, Occlusion=Gradient)
    monkeypatch.setitem(sys.modules, "captum", types.ModuleType("captum"))
    monkeypatch.setitem(sys.modules, "captum.attr", stand_in)
    found = explain(make_classifier(), some, method=method)
    assert len(found.maps) == 4 and all(heat.saliency.shape == (64, 64) for heat in found.maps)
    assert all(heat.saliency.min() >= 0 for heat in found.maps)
