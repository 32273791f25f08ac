"""Prediction reads images of more than 8 bits with the bit depth that training chose."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from device_results import assert_identical
from PIL import Image
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import COLUMN, BitDepths, find_depths
from fastcxr.data.image_table import make_image_table
from fastcxr.data.manifest import read_manifest
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import load_model, save_model
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.load import Dataset, load_dataset
from fastcxr.workflows.run_dir import OutputDir

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, precision="fp32")


def write_deep(folder: Path, divisor: int = 1) -> Path:
    """Write the toy images as 12-bit images in 16-bit files, the first one underexposed."""
    for number, file in enumerate(sorted(write_toys(folder, per_class=4).glob("*/*.png"))):
        values = np.asarray(Image.open(file)).astype(np.uint16) * 16
        Image.fromarray(values // (4 if number == 0 else divisor)).save(file)
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
    folder = tmp_path_factory.mktemp("run")
    save_model(folder, learner, RECIPE, {"precision": "fp32"})
    return folder


def test_training_writes_the_bit_depth_into_the_manifest_and_the_model(learner, folder):
    assert learner.dls.fastcxr.manifest[COLUMN].tolist() == ["12"] * 12
    assert json.loads((folder / "model.json").read_text())["bit_depths"] == {"sources": {"toys": 12}, "default": 12}
    assert load_model(folder).bit_depths == BitDepths({"toys": 12}, 12)


def test_prediction_and_training_use_the_same_pixels(learner, folder, deep, tmp_path, monkeypatch):
    shutil.copy(deep["file"][0], tmp_path / "dark.png")  # a single image, for which 10 bits would be chosen
    table, classifier = make_image_table([tmp_path / "dark.png"]), load_model(folder)
    (image,) = read_fitted_images(table["file"].tolist(), 64, None, find_depths(table, classifier.bit_depths))
    assert np.array_equal(image, learner.dls.fastcxr.image_cache.read([0])[0])
    before = predict(learner, deep, splits=None).probability
    after = predict(classifier, deep[["source", "path", "file"]], splits=None).probability
    assert_identical(before, after)
    assert_identical(predict(classifier, table, splits=None).probability, before[:1])


def test_a_training_batch_read_from_files_has_the_same_bit_depth(learner, deep):
    dataset = learner.dls.train.dataset
    first = learner.dls.fastcxr.manifest[learner.dls.fastcxr.manifest["split"].isin(["train", "valid"])].iloc[0]
    image = next(
        np.asarray(dataset[i][0]) for i in range(len(dataset)) if dataset.items.iloc[i]["file"] == first["file"]
    )
    assert image.max() < 64, "the underexposed image is dark"


def test_an_evaluation_uses_the_bit_depth_of_the_model(folder, tmp_path):
    recipe = RECIPE.replace(data=(str(write_deep(tmp_path / "other", divisor=4)),))
    record = OutputDir(tmp_path / "record")
    record.acquire()
    from_images = load_dataset(recipe, record, Dataset(recipe, only_test=True))
    from_model = load_dataset(recipe, record, Dataset(recipe, only_test=True, depths=load_model(folder).bit_depths))
    assert from_images[COLUMN].tolist() == ["10"] * 12 and from_model[COLUMN].tolist() == ["12"] * 12


def test_an_unknown_source_is_a_warning_if_the_known_sources_differ_in_bit_depth(folder, deep, tmp_path, caplog):
    folder = shutil.copytree(folder, tmp_path / "run")
    facts = json.loads((folder / "model.json").read_text())
    facts["bit_depths"] = {"sources": {"a": 12, "b": 14}, "default": 14}
    (folder / "model.json").write_text(json.dumps(facts))
    predict(load_model(folder), deep, splits=["test"])
    assert "FCX-W213 3 images: the file states no bit depth; read with 14 bits" in caplog.text
    caplog.clear()
    predict(load_model(folder), deep.assign(source="a"), splits=["test"])
    assert "W213" not in caplog.text
