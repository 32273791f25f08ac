"""Folds of two cohorts are never pooled: what changed is told before anything is trained."""

import shutil

import pandas as pd
import pytest
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, OutputError
from fastcxr.metrics.predictions import Predictions
from fastcxr.workflows.cross_validate import cross_validate, reject_inconsistent_folds

pytestmark = pytest.mark.usefixtures("without_figures")


RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=8, folds=2, strategy="linear_probe")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cohort and two folds of it, which no test changes."""
    place = tmp_path_factory.mktemp("kept")
    data = write_toys(place / "toys", per_class=8)
    cross_validate(RECIPE.replace(data=str(data)), place / "run")
    return place


@pytest.fixture
def changing(kept, tmp_path):
    """A copy of both that a test may change."""
    for name in ("toys", "run"):
        shutil.copytree(kept / name, tmp_path / name)
    return RECIPE.replace(data=str(tmp_path / "toys")), tmp_path / "toys", tmp_path / "run"


def add(data):
    shutil.copy(data / "haze" / "00001000_000.png", data / "haze" / "00001900_000.png")


def take_away(data):
    (data / "clear" / "00000001_000.png").unlink()


def relabel(data):
    (data / "clear" / "00000001_000.png").rename(data / "haze" / "00000001_000.png")


@pytest.mark.parametrize(
    ("change", "counts"), [(add, "1 of the data .* 0 are"), (take_away, "0 .* 1 are"), (relabel, "1 .* 1 are")]
)
def test_a_fold_is_not_redone_among_folds_of_other_images(changing, monkeypatch, change, counts):
    recipe, data, folder = changing
    change(data)
    with pytest.raises(OutputError, match=rf"a run of other images is here \({counts} not in the data\)"):
        cross_validate(recipe, folder)
    shutil.rmtree(folder / "fold-1")
    before = (folder / "predictions.csv").read_bytes()
    with pytest.raises(DataError, match=rf"fold 2 was run on other images: {counts} not .*choose another --out"):
        cross_validate(recipe, folder)
    assert not (folder / "fold-1").exists(), "refused before anything is trained"
    assert (folder / "predictions.csv").read_bytes() == before


def test_folds_of_other_patients_are_not_pooled(changing, tmp_path):
    recipe, data, folder = changing
    table = pd.DataFrame({"filename": [file.name for file in sorted(data.glob("*/*.png"))]})
    owners = tmp_path / "owners.csv"
    for count in (2, 4):
        table.assign(patient=[f"p{i // count}" for i in table.index]).to_csv(owners, index=False)
        named = recipe.replace(patient_table=str(owners))
        if count == 2:
            cross_validate(named, tmp_path / "named")
    shutil.rmtree(tmp_path / "named" / "fold-2")
    with pytest.raises(DataError, match="fold 1 was run on other images: 0 .* 0 are .* have another label, patient"):
        cross_validate(named, tmp_path / "named")


def test_folds_that_hold_out_an_image_twice_or_never_are_not_pooled(tmp_path):
    images = pd.DataFrame({"source": "s", "path": ["a.png", "b.png", "c.png"]})
    written = dict.fromkeys("12", images)

    def hold(*paths):
        rows = pd.DataFrame({"source": "s", "path": paths, "patient": "", "label": "x", "split": "oof"})
        return Predictions(rows.assign(predicted="x", error="", prob_x=1.0, prob_y=0.0), ("x", "y"))

    reject_inconsistent_folds(hold("a.png", "b.png", "c.png"), written, "fold", tmp_path)
    reject_inconsistent_folds(hold("a.png"), written, "source", tmp_path)
    with pytest.raises(DataError, match="1 are held out twice, and 1 never. Remove the folders"):
        reject_inconsistent_folds(hold("a.png", "a.png", "b.png"), written, "fold", tmp_path)


def test_folds_with_patients_apart_of_other_images_are_refused_before_the_others_run(changing, tmp_path):
    recipe, data, _ = changing
    folder, recipe = tmp_path / "image", recipe.replace(split="image")
    cross_validate(recipe, folder)
    add(data)
    for number in (1, 2):
        shutil.rmtree(folder / f"fold-{number}")
    with pytest.raises(DataError, match="patient_split/fold-1: fold 1 was run on other images: 1 of the data"):
        cross_validate(recipe, folder)
    assert not (folder / "fold-1").exists()
