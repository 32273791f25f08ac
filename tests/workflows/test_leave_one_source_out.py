"""Tests of leave-one-source-out: every source is held out once, and the report shows the external drop."""

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

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")

RECIPE = Recipe(NAME, weights="none", image_size=64, strategy="linear_probe", leave_one_source_out=True)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    write_toys(folder / "clinic", per_class=24)
    write_toys(folder / "ward", per_class=16, first=50)
    cross_validate(RECIPE.replace(data=(str(folder / "clinic"), str(folder / "ward"))), folder / "run")
    return folder / "run"


def test_every_image_is_scored_once_by_a_model_trained_without_its_source(pooled):
    table = pd.read_csv(pooled / "predictions.csv", dtype={"error": str})
    held_out = table[table["split"] == "oof"]
    assert len(held_out) == 3 * (24 + 16) and not held_out.duplicated(["source", "path"]).any()
    assert (held_out["fold"] == held_out["source"]).all()
    internal = table[table["split"] == "internal_test"]
    assert (internal["fold"] != internal["source"]).all()
    for name in ("source-1", "source-2"):
        manifest = pd.read_csv(pooled / name / "manifest.csv", dtype=str)
        sources = set(manifest.loc[manifest["split"] == "test", "source"])
        assert len(sources) == 1 and not sources & set(manifest.loc[manifest["split"] != "test", "source"])


def test_the_pooled_report_shows_the_external_drop_of_each_source(pooled):
    metrics = json.loads((pooled / "metrics.json").read_text())
    assert list(metrics["external_drop"]) == ["clinic", "ward"]
    for folder, name in (("source-1", "clinic"), ("source-2", "ward")):
        single = json.loads((pooled / folder / "metrics.json").read_text())
        assert metrics["external_drop"][name]["figures"] == single["external_drop"][name]["figures"]
    page = (pooled / "report.html").read_text()
    assert "Leave-one-source-out validation with 2 sources" in page and "Internal and external test" in page
    assert "External validity: unknown" not in page
    assert verify(pooled)[0] == []


def test_a_single_source_is_rejected_before_any_file_is_written(pooled, tmp_path):
    data = str(pooled.parent / "ward")
    with pytest.raises(DataError, match="the data has one source"):
        cross_validate(RECIPE.replace(data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{"folds": 3}, {"split": "image"}, {"reuse_split": "runs/x"}, {"test_source": "ward"}]
)
def test_conflicting_options_are_rejected(options):
    with pytest.raises(RecipeError, match="Leave out"):
        RECIPE.replace(**options)


@pytest.mark.slow
def test_a_removed_source_is_run_again_only_on_the_same_images(tmp_path):
    write_toys(tmp_path / "clinic", per_class=8)
    write_toys(tmp_path / "ward", per_class=8, first=50)
    file = next((tmp_path / "ward" / "haze").iterdir())
    file.rename(file.with_name("00001000_009.png"))  # a patient of the clinic: left out if the clinic is held out
    recipe = RECIPE.replace(data=(str(tmp_path / "clinic"), str(tmp_path / "ward")))
    cross_validate(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "predictions.csv").read_bytes()
    cross_validate(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "source-2")
    cross_validate(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == before
    write_toys(tmp_path / "ward" / "clear", per_class=1, labels=("clear",), first=90)
    with pytest.raises(OutputError, match=r"contains a run on other images \(1 only in the data"):
        cross_validate(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "source-2")
    with pytest.raises(DataError, match="source clinic was run on other images: 1 only in the data"):
        cross_validate(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "source-2").exists()


def test_ignored_given_splits_are_logged_for_a_held_out_source(tmp_path, caplog):
    for source, first in (("clinic", 0), ("ward", 50)):
        write_toys(tmp_path / source / "train", per_class=6, first=first)
        write_toys(tmp_path / source / "test", per_class=4, first=first + 20)
    data = (str(tmp_path / "clinic"), str(tmp_path / "ward"))
    recipe = RECIPE.replace(data=data, leave_one_source_out=False, test_source="ward")
    with caplog.at_level("INFO", "fastcxr"):
        assign_recipe_splits(read_recipe_manifest(recipe), recipe)
    assert "given splits are not used: whole sources are held out" in caplog.text
