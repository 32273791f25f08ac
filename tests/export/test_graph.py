"""The module that is exported computes the scores of TorchScorer, in float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_classifiers import HIDDEN, LABELS, LINES, MULTI_SCALE, make_random_classifier, make_random_images
from tiny_encoders import TINY_ENCODERS
from tiny_network import NAME

from fastcxr.export.check import compare_scorers
from fastcxr.export.graph import Calibration, ModelGraph, OODScore
from fastcxr.inference.scores import Scorer, Scores
from fastcxr.inference.torch_scorer import TorchScorer, compute_probability
from fastcxr.models.bundle import Ensemble
from fastcxr.models.heads import LINEAR_HEAD
from fastcxr.models.ood import OODDetector

SIZE = 64


class GraphScorer(Scorer):
    """The module without conversion."""

    batch_size = 5

    def __init__(self, model):
        self.graph, self.labels, self.task = ModelGraph(model, with_ood=True).eval(), model.labels, model.task
        self.image_size, self.thresholds = model.input_spec.image_size, model.thresholds
        self.bit_depths, self.has_ood_detector = model.bit_depths, model.has_ood_detector

    def score(self, images):
        with torch.no_grad():
            probability, *ood_scores = (part.double().numpy() for part in self.graph(torch.from_numpy(images)))
        return Scores(probability, ood_scores[0] if ood_scores else None)


def compare(model, n=9):
    images = make_random_images(n, model.input_spec.image_size)
    expected = TorchScorer(model)
    assert np.ptp(expected.score(images).probability, axis=0).max() > 0.01, "the images differ"
    return compare_scorers(expected, GraphScorer(model), images)


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        (NAME, LINEAR_HEAD, {}),
        (NAME, MULTI_SCALE, {"hflip_tta": True}),
        (NAME, HIDDEN, {"has_lines": True}),
        ("test_convnext", LINEAR_HEAD, {"has_lines": True, "hflip_tta": True}),
        ("test_efficientnet", MULTI_SCALE, {}),
        ("test_vit", MULTI_SCALE, {"hflip_tta": True}),
        ("torchvision:mobilenet_v3_small", LINEAR_HEAD, {}),
        ("torchvision:squeezenet1_0", LINEAR_HEAD, {}),
        ("baseline_cnn", LINEAR_HEAD, {"has_lines": True}),
    ],
)
def test_the_module_agrees_with_the_classifier(name, head, options):
    classifier = make_random_classifier(name, SIZE, head, **options)
    check = compare(classifier)
    assert check["max_difference"] < 1e-5
    assert (check["max_ood_difference"] is not None) == (classifier.ood_detector is not None)


@pytest.mark.parametrize("name", TINY_ENCODERS)
def test_the_module_agrees_with_a_chest_encoder(name, monkeypatch):
    monkeypatch.setattr("fastcxr.models.backbones.ENCODERS", TINY_ENCODERS)
    assert compare(make_random_classifier(f"chest:{name}", SIZE, MULTI_SCALE, hflip_tta=True))["max_difference"] < 1e-5


def test_an_ensemble_is_the_mean_of_its_members():
    members = tuple(make_random_classifier(seed=seed, hflip_tta=bool(seed)) for seed in range(2))
    members = (members[0], replace(members[1], temperature=0.7))
    assert compare(Ensemble(members=members))["max_difference"] < 1e-5
    without = Ensemble(members=(members[0], replace(members[1], ood_detector=None)))
    assert compare(without)["max_ood_difference"] is None


def test_the_network_of_the_classifier_does_not_change():
    classifier = make_random_classifier()
    classifier.network.train()
    classes = [type(module) for module in classifier.network.modules()]
    ModelGraph(classifier, with_ood=True)
    assert classifier.network.training
    assert [type(module) for module in classifier.network.modules()] == classes


def test_the_module_computes_in_float32():
    graph = ModelGraph(make_random_classifier(head=MULTI_SCALE), with_ood=True)
    dtypes = {tensor.dtype for name, tensor in graph.state_dict().items() if "num_batches" not in name}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("has_lines", [False, True])
def test_extreme_logits_have_the_probabilities_of_the_classifier(has_lines):
    classifier = make_random_classifier(has_lines=has_lines)
    values = torch.tensor([-1e4, -800.0, -300.0, -40.0, -1.0, 0.0, 1.0, 40.0, 300.0, 1e4])
    logits = torch.stack([values, values.flip(0), values * 0.1], dim=1)
    found = Calibration(classifier)(logits).numpy()
    np.testing.assert_allclose(found, compute_probability(logits, classifier), atol=1e-6)
    if has_lines:  # the slope 0.6 makes the limit of the log odds visible
        unlimited = (logits[:, 1] * LINES["haze"]["slope"] + LINES["haze"]["intercept"]).sigmoid().numpy()
        assert np.isfinite(found).all()
        assert LABELS[1] == "haze"
        assert np.abs(unlimited - found[:, 1]).max() < 1e-6


def test_the_distance_keeps_its_digits_where_a_difference_of_squares_loses_them():
    draw = np.random.default_rng(0)
    n_features, n_components = 200, 5
    directions = np.linalg.qr(draw.normal(size=(n_features, n_components)))[0].T
    # far away along the directions, near in all others
    features = draw.normal(size=(20, n_components)) * 1e4 @ directions + draw.normal(size=(20, n_features)) * 0.1
    detector = OODDetector(
        stage_channels={"layer": n_features},
        mean=np.zeros(n_features, np.float32),
        std=np.ones(n_features, np.float32),
        directions=directions.astype(np.float32),
        variances=np.full(n_components, 1e8, np.float32),
        noise=np.array([0.01], np.float32),
    )
    projected, scaled = features @ directions.T, torch.from_numpy(features).float()
    residual = features - projected @ directions
    expected = torch.from_numpy((projected**2).sum(axis=1) / 1e8 + (residual**2).sum(axis=1) / 0.01)
    projected = scaled @ torch.from_numpy(directions).float().T
    naive = projected.square().sum(1) / 1e8 + (scaled.square().sum(1) - projected.square().sum(1)) / 0.01
    error, naive_error = (
        ((score.double() - expected).abs() / expected).max() for score in (OODScore(detector)(scaled), naive)
    )
    assert error < 0.01
    assert naive_error > 10 * error
