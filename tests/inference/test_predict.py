"""One row an image in the manifest's order, the same whatever stands beside it, a row with a reason for a bad file."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fastcxr.data.images import fit_square, read_image
from fastcxr.inference import predict as module
from fastcxr.inference.bundle import Classifier
from fastcxr.inference.predict import predict
from fastcxr.recipe import Recipe
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import Pixels, make_loaders


class Mean(nn.Module):
    """Answers with the mean of each channel, so that a test can tell what it saw."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


CLASSIFIER = Classifier(
    network=Mean(), labels=("a", "b", "c"), pixels=Pixels(image_size=64, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25))
)


def test_the_network_sees_the_picture_normalized(toy_manifest):
    table = toy_manifest.assign(label="a")
    predictions = predict(CLASSIFIER, table, splits=None)
    gray = np.array([fit_square(read_image(file), 64).mean() / 255 for file in toy_manifest["file"]])
    logits = np.stack([(gray - m) / s for m, s in zip((0.1, 0.2, 0.3), (1.0, 0.5, 0.25), strict=True)], axis=1)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.probability, expected, atol=1e-6)
    assert predictions.table["path"].tolist() == toy_manifest["path"].tolist()


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_a_bad_file_costs_one_row_wherever_it_stands(toy_manifest, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(module, "BATCH", batch)
    monkeypatch.setattr(module, "AHEAD", batch)
    table = toy_manifest.assign(label="a")
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = pd.concat([table[:5], table[5:6].assign(file=str(tmp_path / "bad.png")), table[5:]], ignore_index=True)
    whole, broken = predict(CLASSIFIER, table, splits=None), predict(CLASSIFIER, bad, splits=None)
    assert broken.table["error"].ne("").tolist() == [row == 5 for row in range(len(bad))]
    assert "FCX-E102" in broken.table.loc[5, "error"]
    np.testing.assert_array_equal(np.delete(broken.probability, 5, axis=0), whole.probability)


def test_train_rows_are_scored_only_when_asked(toy_manifest):
    table = toy_manifest.assign(label="a")
    assert set(predict(CLASSIFIER, table).table["split"]) == {"valid", "test"}
    assert set(predict(CLASSIFIER, table, splits=("train",)).table["split"]) == {"train"}


def test_predictions_are_those_of_fastai_itself(toy_manifest):
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    nn.init.normal_(learner.model.classifier.weight, std=0.05)
    with learner.no_bar(), learner.no_logging():
        theirs, _ = learner.get_preds()
    ours = predict(learner, toy_manifest, splits=("valid",))
    np.testing.assert_allclose(ours.probability, theirs.numpy(), atol=1e-5)


def test_probabilities_sum_to_one_in_double_precision(toy_manifest):
    sums = predict(CLASSIFIER, toy_manifest.assign(label="a"), splits=None).probability.sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, atol=1e-12)
