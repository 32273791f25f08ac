"""The Python API, call by call, writes the same report and files as the command line."""

import json

import pandas as pd
import pytest

import fastcxr
from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train, write_report
from fastcxr.errors import OutputError


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    from toy_images import write_toys

    folder = tmp_path_factory.mktemp("api")
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, epochs=1, strategy="full", batch_size=8)
    manifest = split_by_patient(read_manifest(write_toys(folder / "toys", per_class=20)))
    loaders = make_loaders(manifest, recipe)
    learner = make_learner(loaders, recipe)
    training = train(learner, recipe)
    predictions = predict(learner, manifest)
    page = write_report(folder / "run", recipe, learner, training, predictions)
    return page, recipe, learner, training, predictions


def test_seven_calls_write_a_report_and_its_files(results):
    folder = results[0].parent
    assert results[0].name == "report.html"
    assert json.loads((folder / "metrics.json").read_text())["test"]["n_images"] == 12
    assert len(pd.read_csv(folder / "manifest.csv")) == 60
    assert json.loads((folder / "recipe.json").read_text())["backbone"] == "mobilenetv2_035"


def test_the_dataset_is_audited(results):
    checks = {row["check"] for row in json.loads((results[0].parent / "audit.json").read_text())["findings"]}
    assert {"patients", "sources"} <= checks


def test_a_report_never_overwrites_another_run(results):
    page, *values = results
    with pytest.raises(OutputError, match="this folder is not empty. Choose another --out"):
        write_report(page.parent, *values)
    assert page.exists()


def test_all_public_names_exist_and_no_others():
    for name in fastcxr.__all__:
        assert getattr(fastcxr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        fastcxr.fit  # noqa: B018
    assert set(dir(fastcxr)) == set(fastcxr.__all__)
