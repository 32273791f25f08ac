"""One row an image in the manifest's order, the same whatever stands beside it, a row with a reason for a bad file."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.inference import predict as module
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import Classifier, extract_classifier
from fastcxr.models.preprocessing import InputSpec
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders


class Mean(nn.Module):
    """Answers with the mean of each channel, so that a test can tell what it saw."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


CLASSIFIER = Classifier(
    network=Mean(),
    labels=("a", "b", "c"),
    input_spec=InputSpec(image_size=64, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)),
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
    monkeypatch.setattr(module, "BATCH_SIZE", batch)
    monkeypatch.setattr(module, "N_IMAGES_AHEAD", batch)
    table = toy_manifest.assign(label="a")
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = pd.concat([table[:5], table[5:6].assign(file=str(tmp_path / "bad.png")), table[5:]], ignore_index=True)
    whole, broken = predict(CLASSIFIER, table, splits=None), predict(CLASSIFIER, bad, splits=None)
    assert broken.table["error"].ne("").tolist() == [row == 5 for row in range(len(bad))]
    assert "FCX-E102" in broken.table.loc[5, "error"]
    np.testing.assert_array_equal(np.delete(broken.probability, 5, axis=0), whole.probability)


@pytest.mark.parametrize(("cores", "most"), [(1, 1), (5, 5), (1000, 32)])
def test_files_are_read_by_as_many_threads_as_there_are_cores_and_not_far_ahead(monkeypatch, cores, most):
    begun, taken, ahead, readers, pool = [], [], [], [], module.ThreadPoolExecutor

    def read(file, size, depth):
        begun.append(file)
        ahead.append(len(begun) - len(taken))
        return file, Remarks()

    monkeypatch.setattr(module, "_read_fitted_image", read)
    monkeypatch.setattr(module, "ThreadPoolExecutor", lambda count: (readers.append(count), pool(count))[1])
    monkeypatch.setattr(module, "count_cpus", lambda: cores)
    files = [str(number) for number in range(400)]
    for square in module.read_fitted_images(files, 64, None):
        taken.append(square)
    assert taken == files
    assert readers == [most]
    assert max(ahead) <= module.N_IMAGES_AHEAD + 1


def test_train_rows_are_scored_only_when_asked(toy_manifest):
    table = toy_manifest.assign(label="a")
    assert set(predict(CLASSIFIER, table).table["split"]) == {"valid", "test"}
    assert set(predict(CLASSIFIER, table, splits=("train",)).table["split"]) == {"train"}


def test_predictions_are_those_of_fastai_itself(learner, toy_manifest):
    with learner.no_bar(), learner.no_logging():
        theirs, _ = learner.get_preds()
    ours = predict(learner, toy_manifest, splits=("valid",))
    np.testing.assert_allclose(ours.probability, theirs.numpy(), atol=1e-5)


RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, strategy="full", precision="fp32")


@pytest.fixture
def learner(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    nn.init.normal_(learner.model.classifier.weight, std=0.05)
    return learner


@pytest.mark.parametrize("splits", [("valid", "test"), ("train",), None])
def test_pictures_from_the_store_and_from_their_files_are_predicted_alike(learner, toy_manifest, monkeypatch, splits):
    expected = predict(extract_classifier(learner), toy_manifest, splits=splits)
    monkeypatch.setattr(module, "read_image", None)
    found = predict(learner, toy_manifest, splits=splits)
    np.testing.assert_array_equal(found.probability, expected.probability)
    assert found.table["path"].tolist() == expected.table["path"].tolist()


def test_files_of_another_cohort_are_read_though_the_learner_has_pictures(learner, toy_manifest, tmp_path):
    shutil.copy(toy_manifest["file"][3], tmp_path / "other.png")
    table = toy_manifest[:5].assign(file=[*toy_manifest["file"][:4], str(tmp_path / "other.png")])
    expected = predict(extract_classifier(learner), table, splits=None)
    found = predict(learner, table, splits=None)
    np.testing.assert_array_equal(found.probability, expected.probability)
    np.testing.assert_allclose(found.probability[3], found.probability[4])


def test_a_stored_picture_of_another_size_is_not_taken(learner, toy_manifest):
    expected = predict(extract_classifier(learner), toy_manifest).probability
    learner.dls.fastcxr.image_cache = open_image_cache(toy_manifest["file"], 32)
    np.testing.assert_array_equal(predict(learner, toy_manifest).probability, expected)


def test_a_picture_that_the_store_has_lost_and_whose_file_is_gone_costs_one_row(learner, toy_manifest, tmp_path):
    table = toy_manifest.assign(
        file=[shutil.copy(file, tmp_path / f"{n}.png") for n, file in enumerate(toy_manifest["file"])]
    )
    table = table.assign(file=table["file"].map(str))
    pictures = open_image_cache(table["file"], 64)
    expected = predict(extract_classifier(learner), table, splits=None)
    (tmp_path / "4.png").unlink()
    learner.dls.fastcxr.image_cache = replace(pictures, mapped=None, locations=np.zeros_like(pictures.locations))
    found = predict(learner, table, splits=None)
    assert found.table["error"].ne("").tolist() == [row == 4 for row in range(30)]
    assert "FCX-E113" in found.table.loc[4, "error"]
    np.testing.assert_array_equal(np.delete(found.probability, 4, axis=0), np.delete(expected.probability, 4, axis=0))


def test_probabilities_sum_to_one_in_double_precision(toy_manifest):
    sums = predict(CLASSIFIER, toy_manifest.assign(label="a"), splits=None).probability.sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, atol=1e-12)


class OnAppleGpu(torch.Tensor):
    """What an Apple GPU answers with: there are no float64 numbers until they are brought to the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return found


def test_a_device_without_double_precision_is_not_asked_for_it(toy_manifest):
    class Far(Mean):
        def forward(self, images):
            return super().forward(images).as_subclass(OnAppleGpu)

    table = toy_manifest.assign(label="a")
    found = predict(replace(CLASSIFIER, network=Far(), hflip_tta=True), table, splits=None)
    expected = predict(replace(CLASSIFIER, hflip_tta=True), table, splits=None)
    np.testing.assert_array_equal(found.probability, expected.probability)
