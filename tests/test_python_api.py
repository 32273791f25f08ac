"""The Python API, call by call, writes the same report and files as the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_network import NAME

import fastcxr
from fastcxr import (
    Recipe,
    explain,
    load_model,
    make_learner,
    make_loaders,
    predict,
    read_image,
    read_manifest,
    split_by_patient,
    train,
    write_report,
)
from fastcxr.errors import ArgumentTypeError, OutputError
from fastcxr.workflows.compare import compare


@pytest.fixture(scope="module")
def results(tmp_path_factory, without_maps):
    from toy_images import write_toys

    folder = tmp_path_factory.mktemp("api")
    recipe = Recipe(NAME, weights="none", image_size=64, epochs=1, strategy="full", batch_size=8, figures="none")
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
    assert json.loads((folder / "recipe.json").read_text())["backbone"] == NAME


def test_the_dataset_is_audited(results):
    checks = {row["check"] for row in json.loads((results[0].parent / "audit.json").read_text())["findings"]}
    assert {"patients", "sources"} <= checks


def test_a_report_never_overwrites_another_run(results):
    page, *values = results
    with pytest.raises(OutputError, match="this folder is not empty. Choose another `folder`"):
        write_report(page.parent, *values)
    assert page.exists()


def test_a_path_a_folder_arrays_and_pillow_images_are_predicted_as_the_manifest(results, tmp_path):
    learner, predictions = results[2], results[4]
    manifest = read_manifest(results[0].parents[1] / "toys").head(3)
    expected = predict(learner, manifest).probability
    files = manifest["file"].tolist()
    arrays = [read_image(file) for file in files]
    for images in (files, arrays, map(Image.open, files)):
        found = predict(learner, images)
        np.testing.assert_allclose(found.probability, expected, atol=1e-6)
        assert found.labels == predictions.labels
    assert found.table["path"].tolist() == manifest["path"].str.split("/").str[-1].tolist()
    assert predict(learner, arrays).table["path"].tolist() == ["array-0", "array-1", "array-2"]
    assert len(predict(learner, files[0]).table) == 1
    assert len(predict(learner, str(results[0].parents[1] / "toys")).table) == 60


def test_the_saved_model_predicts_and_explains_a_single_path_and_an_array(results):
    file = read_manifest(results[0].parents[1] / "toys")["file"][0]
    classifier = load_model(results[0].parent)
    predicted, explained = predict(classifier, file), explain(classifier, file)
    assert explained.table["path"].tolist() == predicted.table["path"].tolist()
    assert explain(classifier, [read_image(file), file]).table["path"].tolist() == ["array-0", Path(file).name]
    for call in (predict, explain):
        with pytest.raises(fastcxr.FastcxrError, match="no.png: no such file or folder"):
            call(classifier, [read_image(file), "no.png"])


def test_a_script_needs_only_names_of_the_package_itself():
    root = Path(fastcxr.__file__).parents[1]
    files = [root / "README.md", *root.glob("notebooks/*.ipynb")]
    assert len(files) > 1
    for file in files:
        assert not re.findall(r"(?:from|import) fastcxr\.\w+", file.read_text(encoding="utf-8")), file


def test_all_public_names_exist_and_no_others():
    for name in fastcxr.__all__:
        assert getattr(fastcxr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        fastcxr.fit  # noqa: B018
    assert set(dir(fastcxr)) == set(fastcxr.__all__)


@pytest.mark.slow
def test_no_deprecation_of_a_library_is_shown_when_a_name_is_used_and_other_warnings_are(tmp_path):
    code = (
        "import warnings; warnings.simplefilter('error', FutureWarning); before = list(warnings.filters)\n"
        "import fastcxr; [getattr(fastcxr, name) for name in fastcxr.__all__]\n"
        "print('fastai' in __import__('sys').modules, warnings.filters == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_learner_in_place_of_the_training_is_an_error_with_the_fix(results, tmp_path):
    _, recipe, learner, _, predictions = results
    fix = r"`training` is of type CxrLearner, expected TrainingResult. Pass the result of train\(learner, recipe\)"
    with pytest.raises(fastcxr.FastcxrError, match=fix):
        write_report(tmp_path / "run", recipe, learner, learner, predictions)
    assert not (tmp_path / "run").exists()


TABLE, RECIPE = pd.DataFrame(), Recipe()
NO_ROWS = pd.DataFrame(columns=["source", "path", "file"])
WRONG_CALLS = {
    "read_manifest data": (lambda: read_manifest(3), "`data` is of type int, expected a path or DataFrame. Pass"),
    "read_manifest recipe": (lambda: read_manifest("x", "csv"), "`recipe` is of type str, expected Recipe. Pass a"),
    "describe_manifest": (lambda: fastcxr.describe_manifest("x"), "`manifest` is of type str, expected DataFrame"),
    "write_manifest": (lambda: fastcxr.write_manifest("x", "m.csv"), "`manifest` is of type str"),
    "split_by_patient": (lambda: split_by_patient("x"), r"`manifest` is of type str.*read_manifest\(data\)"),
    "split_into_folds": (lambda: fastcxr.split_into_folds(["x"], 5), "`manifest` is of type list"),
    "select_fold": (lambda: fastcxr.select_fold(None, 1), "`manifest` is of type NoneType"),
    "read_image": (lambda: read_image(np.zeros((64, 64))), "`path` is of type ndarray, expected a path"),
    "make_datablock": (lambda: fastcxr.make_datablock(3, RECIPE), "`source` is of type int, expected DataFrame or a"),
    "make_loaders manifest": (lambda: make_loaders("x", RECIPE), "`manifest` is of type str"),
    "make_loaders recipe": (lambda: make_loaders(TABLE, "resnet18"), "`recipe` is of type str"),
    "make_learner": (lambda: make_learner(TABLE, RECIPE), "`loaders` is of type DataFrame, expected DataLoaders"),
    "train": (lambda: train(TABLE, RECIPE), r"`learner` is of type DataFrame.*Pass the result of make_learner"),
    "predict": (lambda: predict("runs/first", "a.png"), r"`model` is of type str.*load_model\(folder\)"),
    "explain": (lambda: explain("runs/first", NO_ROWS), "`model` is of type str"),
    "load_model": (lambda: load_model(RECIPE), "`folder` is of type Recipe, expected a path. Pass the path"),
    "load_learner": (lambda: fastcxr.load_learner_from_run(3), "`folder` is of type int"),
    "Predictions": (lambda: fastcxr.Predictions("x", ("a", "b")), "`table` is of type str, expected DataFrame"),
    "read_predictions": (lambda: fastcxr.read_predictions(TABLE), "`path` is of type DataFrame, expected a path"),
    "write_predictions": (lambda: fastcxr.write_predictions(TABLE, "p.csv"), "`predictions` is of type DataFrame"),
    "evaluate_predictions": (lambda: fastcxr.evaluate_predictions(TABLE), "expected Predictions. Pass the"),
    "evaluate": (lambda: fastcxr.evaluate("run", "x", "out"), r"`data` is of type str, expected Recipe.*Recipe\(data"),
    "plot_roc": (lambda: fastcxr.plot_roc(TABLE), "`predictions` is of type DataFrame"),
    "plot_calibration": (lambda: fastcxr.plot_calibration(TABLE), "`predictions` is of type DataFrame"),
    "plot_confusion": (lambda: fastcxr.plot_confusion(TABLE), "`predictions` is of type DataFrame"),
    "write_report": (lambda: write_report("out", "recipe", None), "`recipe` is of type str"),
    "write_report learner": (lambda: write_report("out", RECIPE, None), "`learner` is of type NoneType"),
    "study_main": (lambda: fastcxr.study_main([RECIPE]), "`recipes` is of type list, expected Mapping. Pass a dict"),
    "compare": (lambda: compare("runs/first", "out"), "`runs` is of type str.*Pass a list of run folders"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_an_argument_of_a_wrong_type_is_an_error_of_one_line_with_the_fix(call, message):
    with pytest.raises(ArgumentTypeError, match=message) as caught:
        call()
    assert isinstance(caught.value, TypeError) and "\n" not in str(caught.value)
