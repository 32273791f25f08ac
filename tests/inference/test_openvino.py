"""The compiled graph gives the predictions of the network; a missing extra is an error with a fix."""

import sys

import numpy as np
import pytest
import torch
from tiny_network import NAME

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ModelError
from fastcxr.inference.openvino import to_openvino
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

pytestmark = pytest.mark.needs("openvino")
RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, strategy="full", precision="fp32")


def make_classifier(manifest, recipe):
    """Return a classifier with a random instead of a zero head."""
    torch.manual_seed(0)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    head = learner.model.get_classifier()
    torch.nn.init.normal_(getattr(head, "linear", head).weight)
    return extract_classifier(learner)


@pytest.mark.parametrize("strategy", ["full", pytest.param("linear_probe", marks=pytest.mark.slow)])  # a MultiScaleHead
def test_the_graph_gives_the_predictions_of_the_network(toy_manifest, strategy):
    classifier = make_classifier(toy_manifest, RECIPE.replace(strategy=strategy))
    eager = predict(classifier, toy_manifest, splits=None).probability
    graph = predict(to_openvino(classifier), toy_manifest, splits=None).probability
    assert np.ptp(eager) > 0.1
    np.testing.assert_allclose(graph, eager, atol=1e-4)


@pytest.mark.slow
def test_the_given_network_does_not_change(toy_manifest):
    classifier = make_classifier(toy_manifest, RECIPE)
    classifier.network.train()
    assert to_openvino(classifier).network.network is not classifier.network
    assert classifier.network.training


@pytest.mark.slow
def test_the_graph_uses_bf16_if_the_classifier_does(toy_manifest, monkeypatch):
    import openvino

    configs = []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda *args: (configs.append(args[3]), compile_model(*args))[1]
    )
    for precision in ("fp32", "bf16"):
        classifier = make_classifier(toy_manifest, RECIPE.replace(precision=precision))
        assert to_openvino(classifier).precision == "fp32", "no autocast by torch"
    assert [config["INFERENCE_PRECISION_HINT"] for config in configs] == ["f32", "bf16"]


def test_without_openvino_the_error_names_the_command_that_installs_it(toy_manifest, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"pip install 'fastcxr\[openvino\]'"):
        to_openvino(make_classifier(toy_manifest, RECIPE))


def test_a_failed_conversion_is_an_error_of_one_line(toy_manifest, monkeypatch):
    import openvino

    def fail(*args, **options):
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(openvino, "convert_model", fail)
    with pytest.raises(ModelError, match="cannot convert this network .no such operation.. Predict with PyTorch"):
        to_openvino(make_classifier(toy_manifest, RECIPE))
