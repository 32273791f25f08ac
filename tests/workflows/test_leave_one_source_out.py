"""Every source is held out once; the report gives what is lost there, for each source with an interval."""

import json
import shutil

import pandas as pd
import pytest
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, OutputError, RecipeError
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.load import assign_recipe_splits, read_recipe_manifest
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("without_figures")

RECIPE = Recipe(NAME, weights="none", image_size=64, strategy="linear_probe", leave_one_source_out=True)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    write_toys(place / "clinic", per_class=24)
    write_toys(place / "ward", per_class=16, first=50)
    cross_validate(RECIPE.replace(data=(str(place / "clinic"), str(place / "ward"))), place / "run")
    return place / "run"


def test_every_image_is_scored_once_by_a_model_that_never_saw_its_source(pooled):
    table = pd.read_csv(pooled / "predictions.csv", dtype={"error": str})
    outside = table[table["split"] == "oof"]
    assert len(outside) == 3 * (24 + 16) and not outside.duplicated(["source", "path"]).any()
    assert (outside["fold"] == outside["source"]).all()
    inside = table[table["split"] == "internal_test"]
    assert (inside["fold"] != inside["source"]).all()
    for place in ("source-1", "source-2"):
        manifest = pd.read_csv(pooled / place / "manifest.csv", dtype=str)
        held = set(manifest.loc[manifest["split"] == "test", "source"])
        assert len(held) == 1 and not held & set(manifest.loc[manifest["split"] != "test", "source"])


def test_the_pooled_report_gives_the_drop_of_each_source(pooled):
    metrics = json.loads((pooled / "metrics.json").read_text())
    assert list(metrics["external_drop"]) == ["clinic", "ward"]
    for place, name in (("source-1", "clinic"), ("source-2", "ward")):
        alone = json.loads((pooled / place / "metrics.json").read_text())
        assert metrics["external_drop"][name]["figures"] == alone["external_drop"][name]["figures"]
    page = (pooled / "report.html").read_text()
    assert "Leave-one-source-out validation with 2 sources" in page and "Internal and external test" in page
    assert "External validity: unknown" not in page
    assert verify(pooled)[0] == []


def test_data_of_one_place_is_refused_before_anything_is_written(pooled, tmp_path):
    data = str(pooled.parent / "ward")
    with pytest.raises(DataError, match="the data has one source"):
        cross_validate(RECIPE.replace(data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "choices", [{"folds": 3}, {"split": "image"}, {"reuse_split": "runs/x"}, {"test_source": "ward"}]
)
def test_wishes_that_exclude_each_other_are_refused(choices):
    with pytest.raises(RecipeError, match="Leave out"):
        RECIPE.replace(**choices)


def test_a_source_is_redone_alone_on_the_same_images_and_no_others(tmp_path):
    write_toys(tmp_path / "clinic", per_class=8)
    write_toys(tmp_path / "ward", per_class=8, first=50)
    file = next((tmp_path / "ward" / "haze").iterdir())
    file.rename(file.with_name("00001000_009.png"))  # a patient of the clinic: left out where the clinic is held out
    recipe = RECIPE.replace(data=(str(tmp_path / "clinic"), str(tmp_path / "ward")))
    cross_validate(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "predictions.csv").read_bytes()
    cross_validate(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "source-2")
    cross_validate(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == before
    write_toys(tmp_path / "ward" / "clear", per_class=1, labels=("clear",), first=90)
    with pytest.raises(OutputError, match=r"a run of other images is here \(1 of the data"):
        cross_validate(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "source-2")
    with pytest.raises(DataError, match="source clinic was run on other images: 1 of the data"):
        cross_validate(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "source-2").exists()


def test_that_a_held_out_source_overrides_given_splits_is_said(tmp_path, caplog):
    for place, first in (("clinic", 0), ("ward", 50)):
        write_toys(tmp_path / place / "train", per_class=6, first=first)
        write_toys(tmp_path / place / "test", per_class=4, first=first + 20)
    data = (str(tmp_path / "clinic"), str(tmp_path / "ward"))
    recipe = RECIPE.replace(data=data, leave_one_source_out=False, test_source="ward")
    with caplog.at_level("INFO", "fastcxr"):
        assign_recipe_splits(read_recipe_manifest(recipe), recipe)
    assert "the splits that the data gives are not used: whole sources are held out" in caplog.text
