"""What a reader must know before believing a figure, on the page and in the terminal alike."""

import io

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import LABELS, build_run, make_manifest

from fastcxr.cli.tables import show_headline
from fastcxr.io.files import read_json
from fastcxr.metrics.predictions import make_predictions, write_predictions
from fastcxr.report.notices import make_notices, read_critical_notices
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


def build_blind(folder, seen=(), chosen="label != ''", **choices):
    """The run of a model that calls every image Pneumonia, but those of the classes that it has `seen`."""
    manifest = make_manifest(n=400).query(chosen).reset_index(drop=True)
    answers = manifest["label"].where(manifest["label"].isin(seen), "Pneumonia")
    probability = np.where(answers.to_numpy()[:, None] == np.array(LABELS), 0.8, 0.1)
    build_run(folder, manifest, **choices)
    write_predictions(make_predictions(manifest, probability, LABELS), folder / "predictions.csv")
    write_run_report(folder)
    return folder


def find_called(folder):
    found = make_notices(read_run_record(folder), read_json(folder / "metrics.json"))
    return [notice for notice in found if "called" in notice.title]


def test_a_model_with_one_answer_to_everything_is_stamped(tmp_path):
    (found,) = find_called(build_blind(tmp_path))
    images = read_json(tmp_path / "metrics.json")["test"]["n_images"]
    assert (found.level, found.title) == ("critical", "Every image is called Pneumonia")
    assert f"all {images} images of the test split" in found.text
    assert found in read_critical_notices(tmp_path)


def test_a_single_class_that_is_always_right_says_nothing_of_the_others(tmp_path):
    (found,) = find_called(build_blind(tmp_path, chosen="label == 'Pneumonia'"))
    assert (found.level, "would reach the same" in found.text) == ("critical", True)


@pytest.mark.parametrize(
    ("choices", "cure"),
    [
        ({}, "Try --class-weights balanced"),
        ({"recipe": {"class_weights": "balanced"}}, "Try more epochs"),
        ({"run": {"tested": {"run": "home", "failed": []}}}, "all the same."),
    ],
)
def test_the_stamp_advises_what_was_not_tried(tmp_path, choices, cure):
    (found,) = find_called(build_blind(tmp_path, **choices))
    assert found.text.split("AUROC")[1].endswith(cure) or cure in found.text
    assert ("Try" in found.text) == cure.startswith("Try")


def test_a_class_that_is_never_named_is_a_warning(tmp_path):
    (found,) = find_called(build_blind(tmp_path, seen=("No_findings",)))
    support = read_json(tmp_path / "metrics.json")["test"]["per_class"]["Covid-19"]["support"]
    assert (found.level, found.title) == ("warning", "No image is called Covid-19")
    assert f"Covid-19 {support}" in found.text
    assert not read_critical_notices(tmp_path)


def test_nothing_is_said_of_a_model_that_names_every_class(tmp_path):
    assert not find_called(build_blind(tmp_path, seen=LABELS))


@pytest.mark.parametrize(("seen", "stamped"), [((), True), (("No_findings",), False)])
def test_the_terminal_repeats_what_doubts_the_figures_below_them(tmp_path, seen, stamped):
    console = Console(file=io.StringIO(), width=80)
    show_headline(console, build_blind(tmp_path, seen))
    shown = console.file.getvalue()
    assert ("\nEvery image is called Pneumonia. That is the answer to all" in shown) == stamped


def show(folder):
    console = Console(file=io.StringIO(), width=80)
    show_headline(console, folder)
    return console.file.getvalue()


def test_the_terminal_repeats_the_warnings_of_the_report_but_those_that_it_has_printed(tmp_path):
    said = [{"level": "warning", "text": "3 images have no patient"}]
    shown = show(build_blind(tmp_path, ("No_findings",), run={"messages": said}))
    assert "\nwarning: No image is called Covid-19. Images in the test split: Covid-19" in shown
    assert "3 images have no patient" not in shown
    assert "External validity: unknown" not in shown  # a note


def build_pool(folder, blind, recipe=()):
    """Two pooled folds, of which those that are `blind` call every image No_findings and the others none wrongly."""
    manifest = make_manifest(n=200)
    fold = np.array(["1", "2"])[np.arange(len(manifest)) % 2]
    answers = manifest["label"].mask(np.isin(fold, blind), "No_findings")
    probability = np.where(answers.to_numpy()[:, None] == np.array(LABELS), 0.8, 0.1)
    build_run(folder, manifest, recipe=recipe)
    pooled = make_predictions(manifest.assign(split="oof", fold=fold), probability, LABELS)
    write_predictions(pooled, folder / "predictions.csv")
    write_run_report(folder)
    return folder


def test_a_fold_with_one_answer_to_everything_is_stamped_on_the_pool(tmp_path):
    (found,) = find_called(build_pool(tmp_path, blind=["1"]))
    assert (found.level, found.title) == ("critical", "Every image of fold 1 is called No_findings")
    assert "1 model of 2 learned to give one answer" in found.text
    assert found in read_critical_notices(tmp_path)


def test_a_source_with_one_answer_is_named_as_a_source(tmp_path):
    (found,) = find_called(build_pool(tmp_path, blind=["2"], recipe={"leave_one_source_out": True}))
    assert found.title == "Every image of source 2 is called No_findings"


def test_folds_that_all_give_the_same_answer_are_stamped_once_as_held_out_images(tmp_path):
    (found,) = find_called(build_pool(tmp_path, blind=["1", "2"]))
    assert found.title == "Every image is called No_findings"
    assert "all 200 held-out images, so" in found.text and "oof" not in found.text


def test_nothing_is_said_of_folds_that_name_every_class(tmp_path):
    assert not find_called(build_pool(tmp_path, blind=[]))
