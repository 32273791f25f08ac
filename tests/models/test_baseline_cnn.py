"""BaselineCNN accepts any image size, has no pretrained weights, and can be trained, saved and loaded."""

import pytest
import torch
from device_results import assert_identical

from fastcxr.config.recipe import Recipe
from fastcxr.errors import WeightsError
from fastcxr.inference.predict import predict
from fastcxr.models.backbones import find_backbone
from fastcxr.models.baseline_cnn import BaselineCNN
from fastcxr.models.bundle import load_model, save_model
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

RECIPE = Recipe(
    "fastcxr:baseline_cnn", weights="none", image_size=64, batch_size=6, epochs=12, strategy="full", head_hidden=(64,),
    dropout=0.1, optimizer="adam", schedule="constant", loss="cross_entropy", monitor="valid_loss",
    precision="fp32",
)  # fmt: skip


@pytest.mark.parametrize("size", [16, 64, 131])
def test_any_image_size_is_accepted(size):
    assert BaselineCNN(3)(torch.rand(2, 1, size, size)).shape == (2, 3)


def test_requesting_pretrained_weights_raises_an_error():
    with pytest.raises(WeightsError, match="has no pretrained weights. Pass `weights='none'`"):
        find_backbone("fastcxr:baseline_cnn")
    assert find_backbone("baseline_cnn", "none").library == "fastcxr"


def test_training_reduces_the_loss_and_a_loaded_model_predicts_the_same(toy_manifest, tmp_path):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    history = train(learner, RECIPE).history
    assert history["train_loss"].iloc[-1] < 0.75 * history["train_loss"].iloc[0]
    save_model(tmp_path, learner, RECIPE, {})
    before, after = (predict(model, toy_manifest).probability for model in (learner, load_model(tmp_path)))
    assert_identical(before, after)
