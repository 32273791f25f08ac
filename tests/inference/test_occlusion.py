"""Maps of any scorer by occlusion, and of a classifier by Grad-CAM with one sanity check."""

import numpy as np
import pytest
import torch
from served_models import GrayScorer, make_png_bytes
from torch import nn

from fastcxr.config.tasks import SINGLE_LABEL
from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.errors import RecipeError
from fastcxr.inference import explain_one
from fastcxr.inference.explain import explain
from fastcxr.inference.explain_one import GradCamExplainer
from fastcxr.inference.occlusion import OCCLUSION_NOTE, OcclusionExplainer, compute_occlusion_map
from fastcxr.inference.predict import predict
from fastcxr.inference.scores import Scores
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier
from fastcxr.models.heads import find_head
from fastcxr.models.preprocessing import InputSpec


class SpotScorer(GrayScorer):
    """The probability of `bright` is a logistic function of the gray level of one spot."""

    def __init__(self, spot, weight=1.0, size=70):
        super().__init__()
        self.spot, self.weight, self.image_size = spot, weight, size

    def score(self, images):
        level = images[(slice(None), *self.spot)].reshape(len(images), -1).mean(axis=1) / 255
        probability = 1 / (1 + np.exp(-self.weight * (level - 0.5)))
        return Scores(np.stack([1 - probability, probability], axis=1), np.zeros(len(images)))


def test_the_map_is_high_where_the_probability_comes_from_and_zero_at_other_positions():
    spot = np.s_[10:20, 50:60]
    image = np.zeros((70, 70), np.uint8)
    image[spot] = 255
    found = compute_occlusion_map(SpotScorer(spot), image, 1)
    assert found.shape == image.shape and found.min() >= 0
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 8 <= row < 22 and 48 <= column < 62
    assert found[35:].max() == 0 and found[:, :35].max() == 0


def test_the_value_is_the_decrease_of_the_log_odds():
    spot = np.s_[:, :]  # each square of 10 x 10 changes the mean of the image
    image = np.full((70, 70), 200, np.uint8)
    image[:, 35:] = 100  # mean 150
    found = compute_occlusion_map(SpotScorer(spot, weight=3.0), image, 1)
    decrease = 3.0 * (200 - 150) / 255 * 100 / 4900
    assert found[30:40, 2:15] == pytest.approx(decrease, rel=1e-4)
    assert found[:, 50:].max() == 0, "there the probability increases"


@pytest.mark.parametrize("size", [33, 64, 224])
def test_a_saturated_probability_and_any_size_give_a_finite_map(size):
    image = np.random.default_rng(0).integers(0, 255, (size, size), dtype=np.uint8)
    found = compute_occlusion_map(SpotScorer(np.s_[:4, :4], weight=1e4, size=size), image, 1)
    assert found.shape == (size, size) and np.isfinite(found).all()


def test_scores_are_computed_in_batches_of_the_scorer():
    sizes, scorer = [], SpotScorer(np.s_[:4, :4])
    score = scorer.score
    scorer.score = lambda images: (sizes.append(len(images)), score(images))[1]
    compute_occlusion_map(scorer, np.zeros((70, 70), np.uint8), 0)
    assert max(sizes) == scorer.batch_size and sum(sizes) == 1 + 13 * 13


def test_the_explained_class_is_the_most_probable_one_or_the_given_one():
    explainer, file = OcclusionExplainer(GrayScorer()), FileInMemory("a.png", make_png_bytes())
    found = [explainer.explain_image(file, label) for label in (None, "bright")]
    assert [one.class_name for one in found] == ["dark", "bright"]
    row = predict(explainer.scorer, [file]).table.iloc[0]
    assert [one.probability for one in found] == [row["prob_dark"], row["prob_bright"]]
    assert found[0].predicted == row["predicted"] and found[0].in_distribution == "yes"
    assert explainer.note == OCCLUSION_NOTE and found[1].note == ""


def test_an_unreadable_file_and_an_unknown_class_state_why():
    explainer = OcclusionExplainer(GrayScorer())
    assert explainer.explain_image(FileInMemory("a.png", b"text")).note.startswith("FCX-E102")
    with pytest.raises(RecipeError, match="no class called 'brightt'. Did you mean 'bright'?"):
        explainer.explain_image(FileInMemory("a.png", make_png_bytes()), "brightt")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    backbone = find_backbone("mobilenetv2_035", "none")
    network = make_network(backbone, 3, "none", 64)
    nn.init.normal_(find_head(network).weight)
    input_spec = InputSpec(image_size=64, mean=backbone.mean, std=backbone.std)
    return Classifier(network=network, labels=("clear", "haze", "opacity"), input_spec=input_spec, task=SINGLE_LABEL)


def test_grad_cam_of_one_image_equals_explain_and_the_check_is_made_once(classifier, toy_manifest, monkeypatch):
    made, make = [], explain_one.make_explainer
    monkeypatch.setattr(explain_one, "make_explainer", lambda *arguments: (made.append(arguments), make(*arguments))[1])
    files = toy_manifest["file"].tolist()
    explainer = GradCamExplainer(TorchScorer(classifier), files[:4])
    assert explainer.explain_image(FileInMemory("a.png", b"text")).note.startswith("FCX-E102")
    for file in files[10:12]:
        found = explainer.explain_image(file, "haze")
        expected = next(one for one in explain(classifier, [file], classes=["haze"]).maps if one.class_name == "haze")
        np.testing.assert_allclose(found.saliency, expected.saliency, rtol=1e-3, atol=1e-6)
        assert found.probability == pytest.approx(expected.probability, abs=1e-9)
    assert len(made) == 1 and len(made[0][1]) == 4
    assert "Rank correlation" in explainer.note


def test_withheld_maps_state_why(classifier, toy_manifest, monkeypatch):
    monkeypatch.setattr("fastcxr.inference.sanity_check.MAX_RANK_CORRELATION", -2.0)
    explainer = GradCamExplainer(TorchScorer(classifier))
    found = explainer.explain_image(toy_manifest["file"].iloc[0])
    assert found.normalized is None and "the map hardly changes when the weights are random" in found.note
