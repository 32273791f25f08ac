"""Tests for notices.py and model_notices.py: notices in the report and in the terminal."""

import io

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import LABELS, build_run, make_manifest

from fastcxr.cli.tables import show_headline
from fastcxr.io.files import read_json, write_json
from fastcxr.metrics.predictions import make_predictions, write_predictions
from fastcxr.report import run_reader
from fastcxr.report.notices import RULES, make_notices, read_critical_notices
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


def build_constant(folder, detected=(), query="label != ''", **choices):
    """Write the run of a model that predicts Pneumonia for all images except those of the classes `detected`."""
    manifest = make_manifest(n=400).query(query).reset_index(drop=True)
    predicted = manifest["label"].where(manifest["label"].isin(detected), "Pneumonia")
    probability = np.where(predicted.to_numpy()[:, None] == np.array(LABELS), 0.8, 0.1)
    build_run(folder, manifest, **choices)
    write_predictions(make_predictions(manifest, probability, LABELS), folder / "predictions.csv")
    write_run_report(folder)
    return folder


def find_prediction_notices(folder):
    found = make_notices(read_run_record(folder), read_json(folder / "metrics.json"))
    return [notice for notice in found if "predict" in notice.title]


def test_own_calls_of_fit_are_a_note_and_the_recipe_does_not_describe_the_training(tmp_path):
    build_run(tmp_path, recipe={"strategy": "lp_ft", "weights": "pretrained"})
    write_run_report(tmp_path)
    metrics = read_json(tmp_path / "metrics.json")
    fitted = {notice.title for notice in make_notices(read_run_record(tmp_path), metrics)}
    model = read_json(tmp_path / "model.json")
    write_json(tmp_path / "model.json", model | {"choices": model["choices"] | {"own_training": True}})
    own = {notice.title for notice in make_notices(read_run_record(tmp_path), metrics)}
    assert "Trained by own calls of fastai" in own - fitted
    assert not any("both orientations" in title for title in own)


def test_the_classes_that_a_property_identifies_are_computed_once_for_all_rules(run_folder, monkeypatch):
    properties, find = [], run_reader.find_exclusive_classes

    def find_and_count(table, column, **options):
        properties.append(column)
        return find(table, column, **options)

    monkeypatch.setattr(run_reader, "find_exclusive_classes", find_and_count)
    write_run_report(run_folder)
    properties.clear()
    make_notices(read_run_record(run_folder), read_json(run_folder / "metrics.json"))
    assert properties == ["source", "kind", "size"]


def test_the_rules_are_ordered_by_level():
    levels = [rule.level for rule in RULES]
    assert levels == sorted(levels, key=("critical", "warning", "note").index)


def test_a_model_that_predicts_one_class_is_critical(tmp_path):
    (found,) = find_prediction_notices(build_constant(tmp_path))
    images = read_json(tmp_path / "metrics.json")["test"]["n_images"]
    assert (found.level, found.title) == ("critical", "The model predicts Pneumonia for all images")
    assert f"all {images} images of the test split equals the prevalence of Pneumonia." in found.text
    assert found in read_critical_notices(tmp_path)


def test_a_correct_prediction_of_the_only_class_is_critical(tmp_path):
    (found,) = find_prediction_notices(build_constant(tmp_path, query="label == 'Pneumonia'"))
    assert (found.level, "Test on other classes too." in found.text) == ("critical", True)


@pytest.mark.parametrize(
    ("choices", "fix"),
    [
        ({}, "Try --class-weights balanced"),
        ({"recipe": {"class_weights": "balanced"}}, "Try more epochs"),
        ({"run": {"tested": {"run": "home", "failed": []}}}, "separate the classes."),
    ],
)
def test_the_notice_suggests_what_was_not_tried(tmp_path, choices, fix):
    (found,) = find_prediction_notices(build_constant(tmp_path, **choices))
    assert fix in found.text
    assert ("Try" in found.text) == fix.startswith("Try")


def test_a_class_that_is_never_predicted_is_a_warning(tmp_path):
    (found,) = find_prediction_notices(build_constant(tmp_path, detected=("No_findings",)))
    support = read_json(tmp_path / "metrics.json")["test"]["per_class"]["Covid-19"]["support"]
    assert (found.level, found.title) == ("warning", "No image is predicted as Covid-19")
    assert f"Covid-19 {support}" in found.text
    assert not read_critical_notices(tmp_path)


def test_a_model_that_predicts_every_class_has_no_notice(tmp_path):
    assert not find_prediction_notices(build_constant(tmp_path, detected=LABELS))


def show(folder):
    console = Console(file=io.StringIO(), width=80)
    show_headline(console, folder)
    return console.file.getvalue()


@pytest.mark.parametrize(("detected", "is_critical"), [((), True), (("No_findings",), False)])
def test_the_terminal_prints_critical_notices_below_the_headline(tmp_path, detected, is_critical):
    shown = show(build_constant(tmp_path, detected))
    assert ("\nThe model predicts Pneumonia for all images. Accuracy on all" in shown) == is_critical


def test_the_terminal_prints_the_warnings_of_the_report_except_logged_ones(tmp_path):
    messages = [{"level": "warning", "text": "3 images have no patient"}]
    shown = show(build_constant(tmp_path, ("No_findings",), run={"messages": messages}))
    assert "\nwarning: No image is predicted as Covid-19. In the test split: Covid-19" in shown
    assert "3 images have no patient" not in shown
    assert "External validity: unknown" not in shown  # a note


def build_folds(folder, constant, recipe=()):
    """Write two pooled folds: those in `constant` predict No_findings for all images, the others are correct."""
    manifest = make_manifest(n=200)
    fold = np.array(["1", "2"])[np.arange(len(manifest)) % 2]
    predicted = manifest["label"].mask(np.isin(fold, constant), "No_findings")
    probability = np.where(predicted.to_numpy()[:, None] == np.array(LABELS), 0.8, 0.1)
    build_run(folder, manifest, recipe=recipe)
    pooled = make_predictions(manifest.assign(split="oof", fold=fold), probability, LABELS)
    write_predictions(pooled, folder / "predictions.csv")
    write_run_report(folder)
    return folder


def test_a_fold_that_predicts_one_class_is_critical(tmp_path):
    (found,) = find_prediction_notices(build_folds(tmp_path, constant=["1"]))
    assert (found.level, found.title) == ("critical", "All images of fold 1 are predicted as No_findings")
    assert "1 model of 2 always predicts one class" in found.text
    assert found in read_critical_notices(tmp_path)


def test_a_held_out_source_that_is_predicted_as_one_class_is_named(tmp_path):
    (found,) = find_prediction_notices(build_folds(tmp_path, constant=["2"], recipe={"leave_one_source_out": True}))
    assert found.title == "All images of source 2 are predicted as No_findings"


def test_folds_that_all_predict_the_same_class_have_one_notice(tmp_path):
    (found,) = find_prediction_notices(build_folds(tmp_path, constant=["1", "2"]))
    assert found.title == "The model predicts No_findings for all images"
    assert "all 200 images of the pooled folds" in found.text and "oof" not in found.text


def test_folds_that_predict_every_class_have_no_notice(tmp_path):
    assert not find_prediction_notices(build_folds(tmp_path, constant=[]))


def test_the_page_shows_a_repeated_warning_once_with_its_number(tmp_path):
    messages = [{"level": "warning", "text": text} for text in ("no spacing", "other", "no spacing")]
    build_run(tmp_path, run={"messages": messages})
    page = write_run_report(tmp_path).read_text()
    notices = [
        notice.text
        for notice in make_notices(read_run_record(tmp_path), page="describe")
        if notice.title == "Logged warning"
    ]
    assert notices == ["no spacing (2 times)", "other"]
    assert page.count("no spacing (2 times)") == page.count("no spacing") == 2  # a notice and a message of the run
