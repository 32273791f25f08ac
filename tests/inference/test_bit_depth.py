"""A model reads images of more than 8 bits as its training did: with the depth that it decided, and no other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import COLUMN, BitDepths, find_depths
from fastcxr.data.manifest import read_manifest, read_unlabelled
from fastcxr.inference.predict import predict, read_fitted_images
from fastcxr.models.bundle import load_model, save_model
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.load import Dataset, load_dataset
from fastcxr.workflows.run_dir import OutputDir

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, precision="fp32")


def write_deep(folder: Path, darker: int = 1) -> Path:
    """The toys as images of a 12-bit detector in files of 16 bits, the first one underexposed."""
    for number, file in enumerate(sorted(write_toys(folder, per_class=4).glob("*/*.png"))):
        values = np.asarray(Image.open(file)).astype(np.uint16) * 16
        Image.fromarray(values // (4 if number == 0 else darker)).save(file)
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> pd.DataFrame:
    table = read_manifest(write_deep(tmp_path_factory.mktemp("deep") / "toys"))
    return table.assign(split=["train", "train", "valid", "test"] * 3, split_origin="given")


@pytest.fixture(scope="module")
def learner(deep):
    return make_learner(make_loaders(deep, RECIPE), RECIPE)


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run")
    save_model(place, learner, RECIPE, {"precision": "fp32"})
    return place


def test_training_writes_its_decision_into_the_manifest_and_the_model(learner, folder):
    assert learner.dls.fastcxr.manifest[COLUMN].tolist() == ["12"] * 12
    assert json.loads((folder / "model.json").read_text())["bit_depths"] == {"sources": {"toys": 12}, "default": 12}
    assert load_model(folder).bit_depths == BitDepths({"toys": 12}, 12)


def test_prediction_sees_the_pixels_that_training_saw(learner, folder, deep, tmp_path, monkeypatch):
    shutil.copy(deep["file"][0], tmp_path / "dark.png")  # alone in its folder, and of 10 bits by itself
    table, classifier = read_unlabelled([tmp_path / "dark.png"]), load_model(folder)
    (square,) = read_fitted_images(table["file"].tolist(), 64, None, find_depths(table, classifier.bit_depths))
    assert np.array_equal(square, learner.dls.fastcxr.image_cache.read([0])[0])
    before = predict(learner, deep, splits=None).probability
    after = predict(classifier, deep[["source", "path", "file"]], splits=None).probability
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(predict(classifier, table, splits=None).probability, before[:1])


def test_a_training_batch_read_from_its_files_has_the_depth_too(learner, deep):
    dataset = learner.dls.train.dataset
    first = learner.dls.fastcxr.manifest[learner.dls.fastcxr.manifest["split"].isin(["train", "valid"])].iloc[0]
    image = next(
        np.asarray(dataset[i][0]) for i in range(len(dataset)) if dataset.items.iloc[i]["file"] == first["file"]
    )
    assert image.max() < 64, "the underexposed image is dark"


def test_an_evaluation_takes_the_depth_of_the_model_and_not_of_its_own_images(folder, tmp_path):
    recipe = RECIPE.replace(data=(str(write_deep(tmp_path / "other", darker=4)),))
    record = OutputDir(tmp_path / "record")
    record.acquire()
    own = load_dataset(recipe, record, Dataset(recipe, only_test=True))
    models = load_dataset(recipe, record, Dataset(recipe, only_test=True, depths=load_model(folder).bit_depths))
    assert own[COLUMN].tolist() == ["10"] * 12 and models[COLUMN].tolist() == ["12"] * 12


def test_predictions_of_an_unknown_source_warn_where_the_known_ones_differ(folder, deep, tmp_path, caplog):
    folder = shutil.copytree(folder, tmp_path / "run")
    facts = json.loads((folder / "model.json").read_text())
    facts["bit_depths"] = {"sources": {"a": 12, "b": 14}, "default": 14}
    (folder / "model.json").write_text(json.dumps(facts))
    predict(load_model(folder), deep, splits=["test"])
    assert "FCX-W213 3 images: the file states no bit depth; read with 14 bits" in caplog.text
    caplog.clear()
    predict(load_model(folder), deep.assign(source="a"), splits=["test"])
    assert "W213" not in caplog.text
