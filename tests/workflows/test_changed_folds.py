"""Tests of cross-validation on changed data: folds of different images are never pooled."""

import shutil

import pandas as pd
import pytest
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, OutputError
from fastcxr.metrics.predictions import Predictions
from fastcxr.workflows.cross_validate import cross_validate, reject_inconsistent_folds

pytestmark = pytest.mark.usefixtures("without_figures", "without_pages", "without_maps", "few_draws")


RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=8, folds=2, strategy="linear_probe")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return a folder with data and a finished run of two folds, which no test changes."""
    folder = tmp_path_factory.mktemp("original")
    data = write_toys(folder / "toys", per_class=8)
    cross_validate(RECIPE.replace(data=str(data)), folder / "run")
    return folder


@pytest.fixture
def copied(original, tmp_path):
    """Copy data and run; return recipe, data folder and run folder, which a test can change."""
    for name in ("toys", "run"):
        shutil.copytree(original / name, tmp_path / name)
    return RECIPE.replace(data=str(tmp_path / "toys")), tmp_path / "toys", tmp_path / "run"


def add_image(data):
    shutil.copy(data / "haze" / "00001000_000.png", data / "haze" / "00001900_000.png")


def remove_image(data):
    (data / "clear" / "00000001_000.png").unlink()


def relabel_image(data):
    (data / "clear" / "00000001_000.png").rename(data / "haze" / "00000001_000.png")


@pytest.mark.parametrize(
    ("change", "counts"),
    [(add_image, "1 only in the data, 0"), (remove_image, "0 only in the data, 1"), (relabel_image, "1 .*, 1")],
)
def test_a_removed_fold_is_not_run_again_on_other_images(copied, monkeypatch, change, counts):
    recipe, data, folder = copied
    change(data)
    with pytest.raises(OutputError, match=rf"contains a run on other images \({counts} only in the run\)"):
        cross_validate(recipe, folder)
    shutil.rmtree(folder / "fold-1")
    before = (folder / "predictions.csv").read_bytes()
    with pytest.raises(DataError, match=rf"fold 2 was run on other images: {counts} only .*choose another `folder`"):
        cross_validate(recipe, folder)
    assert not (folder / "fold-1").exists(), "the error precedes training"
    assert (folder / "predictions.csv").read_bytes() == before


def test_folds_with_other_patients_are_not_pooled(copied, tmp_path):
    recipe, data, folder = copied
    table = pd.DataFrame({"filename": [file.name for file in sorted(data.glob("*/*.png"))]})
    patients = tmp_path / "patients.csv"
    for count in (2, 4):
        table.assign(patient=[f"p{i // count}" for i in table.index]).to_csv(patients, index=False)
        named = recipe.replace(patient_table=str(patients))
        if count == 2:
            cross_validate(named, tmp_path / "named")
    shutil.rmtree(tmp_path / "named" / "fold-2")
    with pytest.raises(DataError, match="fold 1 was run on other images: 0 .* 0 only .* with another label, patient"):
        cross_validate(named, tmp_path / "named")


def test_folds_with_an_image_held_out_twice_or_never_are_not_pooled(tmp_path):
    images = pd.DataFrame({"source": "s", "path": ["a.png", "b.png", "c.png"]})
    manifests = dict.fromkeys("12", images)

    def hold_out(*paths):
        rows = pd.DataFrame({"source": "s", "path": paths, "patient": "", "label": "x", "split": "oof"})
        return Predictions(rows.assign(predicted="x", error="", prob_x=1.0, prob_y=0.0), ("x", "y"))

    reject_inconsistent_folds(hold_out("a.png", "b.png", "c.png"), manifests, "fold", tmp_path)
    reject_inconsistent_folds(hold_out("a.png"), manifests, "source", tmp_path)
    with pytest.raises(DataError, match=r"\(1 held out twice, 1 never held out\). Remove all fold folders"):
        reject_inconsistent_folds(hold_out("a.png", "a.png", "b.png"), manifests, "fold", tmp_path)


@pytest.mark.slow
def test_patient_level_folds_on_other_images_are_rejected_before_training(copied, tmp_path):
    recipe, data, _ = copied
    folder, recipe = tmp_path / "image", recipe.replace(split="image")
    cross_validate(recipe, folder)
    add_image(data)
    for number in (1, 2):
        shutil.rmtree(folder / f"fold-{number}")
    with pytest.raises(DataError, match="patient_split/fold-1: fold 1 was run on other images: 1 only in the data"):
        cross_validate(recipe, folder)
    assert not (folder / "fold-1").exists()
