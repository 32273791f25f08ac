"""The road of a notebook, call by call, ends where the command line ends."""

import json

import pandas as pd
import pytest

import fastcxr
from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train, write_report
from fastcxr.errors import OutputError


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    from toy_images import write_toys

    place = tmp_path_factory.mktemp("road")
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, epochs=1, strategy="full", batch_size=8)
    manifest = split_by_patient(read_manifest(write_toys(place / "toys", per_class=20)))
    loaders = make_loaders(manifest, recipe)
    learner = make_learner(loaders, recipe)
    training = train(learner, recipe)
    predictions = predict(learner, manifest)
    page = write_report(place / "run", recipe, learner, training, predictions)
    return page, recipe, learner, training, predictions


def test_seven_calls_leave_a_report_and_its_files(road):
    folder = road[0].parent
    assert road[0].name == "report.html"
    assert json.loads((folder / "metrics.json").read_text())["test"]["n_images"] == 12
    assert len(pd.read_csv(folder / "manifest.csv")) == 60
    assert json.loads((folder / "recipe.json").read_text())["backbone"] == "mobilenetv2_035"


def test_the_data_are_checked_on_this_road_too(road):
    checks = {row["check"] for row in json.loads((road[0].parent / "audit.json").read_text())["findings"]}
    assert {"patients", "sources"} <= checks


def test_a_report_never_overwrites_another_run(road):
    page, *values = road
    with pytest.raises(OutputError, match="this folder is not empty. Choose another --out"):
        write_report(page.parent, *values)
    assert page.exists()


def test_every_promised_name_is_there_and_no_other():
    for name in fastcxr.__all__:
        assert getattr(fastcxr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        fastcxr.fit  # noqa: B018
    assert set(dir(fastcxr)) == set(fastcxr.__all__)
