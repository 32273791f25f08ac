"""A run folder becomes a fastai Learner, with or without its images."""

import json
import shutil

import numpy as np
import pytest
from fastai.learner import load_learner
from tiny_network import NAME
from toy_images import write_toys

from fastcxr import load_learner_from_run, load_model, predict, read_manifest, train, write_report
from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, InputMissingError
from fastcxr.models.state import get_loaders_state
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures", "without_pages", "without_maps", "few_draws")


@pytest.fixture(scope="module", params=["full", "linear_probe"])
def trained(request, tmp_path_factory):
    """The folder of a run, and its data."""
    folder = tmp_path_factory.mktemp("learner")
    options = {"weights": "none", "image_size": 64, "epochs": 1, "batch_size": 8, "class_weights": "balanced"}
    recipe = Recipe(NAME, data=str(write_toys(folder / "toys", per_class=18)), strategy=request.param, **options)
    run(recipe.replace(precision="fp32", hflip_tta=False), folder / "run")
    return folder / "run", folder / "toys"


def test_the_learner_has_the_weights_and_the_preprocessing_of_the_run(trained):
    folder, data = trained
    learner, classifier = load_learner_from_run(folder), load_model(folder)
    table = read_manifest(data)
    file = table["file"].iloc[0]
    label, _, probability = learner.predict(file)
    expected = predict(classifier, table[:1], splits=None).probability[0]
    unscaled = expected**classifier.temperature / (expected**classifier.temperature).sum()
    np.testing.assert_allclose(probability.numpy(), unscaled, atol=1e-5)
    assert label == classifier.labels[int(unscaled.argmax())]
    np.testing.assert_allclose(predict(learner, table[:1], splits=None).probability[0], unscaled, atol=1e-5)
    assert len(learner.dls.train_ds) == 0


def test_a_run_keeps_its_own_normalization(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    model = json.loads((folder / "model.json").read_text())
    model["input_spec"]["mean"] = [0.4, 0.4, 0.4]  # of an older version
    (folder / "model.json").write_text(json.dumps(model))
    for data in (None, trained[1]):
        assert get_loaders_state(load_learner_from_run(folder, data).dls).input_spec.mean == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    "use",
    [
        lambda learner: learner.fine_tune(1),
        lambda learner: learner.fit_one_cycle(1),
        lambda learner: learner.lr_find(),
        lambda learner: learner.show_results(),
        lambda learner: learner.get_preds(),
        lambda learner: learner.validate(),
        lambda learner: learner.dls.show_batch(),
        lambda learner: learner.summary(),
        lambda learner: train(learner, Recipe(NAME)),
        lambda learner: write_report("out", Recipe(NAME), learner),
    ],
)
def test_without_the_images_every_use_of_the_loaders_names_the_argument(trained, tmp_path, monkeypatch, use):
    monkeypatch.chdir(tmp_path)
    learner = load_learner_from_run(trained[0])
    expected = "no images, .* Pass `data=FOLDER` to load_learner_from_run"
    with learner.no_bar(), learner.no_logging(), pytest.raises(InputMissingError, match=expected):
        use(learner)
    assert not (tmp_path / "out").exists()


def test_without_the_images_the_learner_can_be_exported(trained, tmp_path):
    learner = load_learner_from_run(trained[0])
    learner.export(tmp_path / "learner.pkl")
    file = read_manifest(trained[1])["file"].iloc[0]
    assert load_learner(tmp_path / "learner.pkl").predict(file)[0] == learner.predict(file)[0]


def test_with_the_images_the_learner_has_the_splits_of_the_run_and_can_be_trained(trained):
    folder, data = trained
    learner = load_learner_from_run(folder, data)
    saved = learner.dls.fastcxr.manifest
    assert set(learner.dls.valid.items["path"]) == set(saved.loc[saved["split"] == "valid", "path"])
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1)
        assert np.isfinite(learner.validate()).all()


def test_images_missing_from_the_data_and_a_folder_without_a_model_raise(trained, tmp_path):
    folder, data = trained
    fewer = shutil.copytree(data, tmp_path / "toys")
    next((fewer / "haze").glob("*.png")).unlink()
    with pytest.raises(DataError, match="1 of 54 images of the run not found in the data. Pass the data that the run"):
        load_learner_from_run(folder, fewer)
    with pytest.raises(InputMissingError, match="no model.json in this folder"):
        load_learner_from_run(tmp_path)
