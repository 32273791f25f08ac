"""The compiled graph answers as the network does; without the extra there is a way out."""

import sys

import numpy as np
import pytest
import torch

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ModelError
from fastcxr.inference.openvino import to_openvino
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

pytestmark = pytest.mark.needs("openvino")
RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, strategy="full", precision="fp32")


def make_classifier(manifest, recipe):
    """A classifier whose head says something."""
    torch.manual_seed(0)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    head = learner.model.get_classifier()
    torch.nn.init.normal_(getattr(head, "linear", head).weight)
    return extract_classifier(learner)


@pytest.mark.parametrize("strategy", ["full", "linear_probe"])  # linear_probe: a head that listens to several depths
def test_the_graph_answers_as_the_network_does(toy_manifest, strategy):
    classifier = make_classifier(toy_manifest, RECIPE.replace(strategy=strategy))
    eager = predict(classifier, toy_manifest, splits=None).probability
    graph = predict(to_openvino(classifier), toy_manifest, splits=None).probability
    assert np.ptp(eager) > 0.1
    np.testing.assert_allclose(graph, eager, atol=1e-4)


def test_bf16_is_asked_for_where_the_classifier_computes_in_it(toy_manifest, monkeypatch):
    import openvino

    wishes = []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda *words: (wishes.append(words[3]), compile_model(*words))[1]
    )
    for precision in ("fp32", "bf16"):
        classifier = make_classifier(toy_manifest, RECIPE.replace(precision=precision))
        assert to_openvino(classifier).precision == "fp32", "torch is to cast nothing any more"
    assert [wish["INFERENCE_PRECISION_HINT"] for wish in wishes] == ["f32", "bf16"]


def test_without_the_extra_it_says_how_to_get_it(toy_manifest, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'fastcxr\[openvino\]'"):
        to_openvino(make_classifier(toy_manifest, RECIPE))


def test_a_network_that_cannot_be_converted_is_refused_in_one_line(toy_manifest, monkeypatch):
    import openvino

    def fail(*words, **options):
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(openvino, "convert_model", fail)
    with pytest.raises(ModelError, match="cannot convert this network .no such operation.. Leave --engine out"):
        to_openvino(make_classifier(toy_manifest, RECIPE))
