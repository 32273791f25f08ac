"""Tests for run_page.py: reports of complete and incomplete run folders."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from synthetic_run import LABELS, RECIPE, RUN, build_run, make_history, make_manifest

from fastcxr.errors import DataError, InputMissingError, OutputError
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import read_predictions
from fastcxr.report import data_figures, figures
from fastcxr.report.headline import make_headline_table
from fastcxr.report.run_page import render_report, write_run_report
from fastcxr.report.run_reader import read_run_record

RESEARCH = "For research, not for diagnosis."


def write_page(folder):
    return Page(write_run_report(folder).read_text(encoding="utf-8"))


def read_text(folder):
    """Return the text of the report without figures, which take most of the time."""
    record = read_run_record(folder)
    return Page(render_report(record, evaluate_predictions(record.predictions), {})).text


@pytest.fixture
def few_elements(monkeypatch):
    """Plot all figures, and write them without the layout of texts and axes, which takes most of the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **_: file.write("<svg/>"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return a complete run folder with its report."""
    folder = build_run(tmp_path_factory.mktemp("whole") / "run")
    write_run_report(folder)
    return folder


def test_a_report_without_figures_has_all_numbers_and_states_how_to_draw_them(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    metrics, text = (folder / "metrics.json").read_bytes(), (folder / "report.html").read_text(encoding="utf-8")
    for drawn in (folder / "figures").glob("*.svg"):
        drawn.unlink()
    bare_text = write_run_report(folder, figures=False).read_text(encoding="utf-8")
    page = Page(bare_text)
    assert "svg" not in page.tags
    assert not list((folder / "figures").glob("*.svg"))
    assert "This page has no figures. To draw them: fastcxr report FOLDER , with the folder of this page." in page.text
    assert (folder / "metrics.json").read_bytes() == metrics
    assert re.findall("<table.*?</table>", bare_text, re.DOTALL) == re.findall("<table.*?</table>", text, re.DOTALL)
    assert "Most frequent confusions" in page.text
    assert not {"histogram", "Ring:", "Dashed:", "Dotted:"} & set(page.text.split())


@pytest.fixture
def page(run_folder):
    return Page((run_folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_self_contained(page, run_folder):
    assert not page.open and not {"script", "link", "iframe", "object", "base"} & page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources) and len(page.sources) == 20
    text = re.sub(r'xmlns(:xlink)?="http[^"]*"', "", (run_folder / "report.html").read_text(encoding="utf-8"))
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text


def test_ids_are_unique_and_references_have_a_target(page):
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_the_research_notice_is_at_top_and_bottom(page):
    assert page.text.count(RESEARCH) == 2
    assert page.text.index(RESEARCH) < 200 and page.text.rindex(RESEARCH) > len(page.text) - 300


def test_the_headline_agrees_with_the_terminal_table(page, run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for name, test, interval, valid in make_headline_table(metrics)[:4]:
        assert f"{name} {test} {interval} validation {valid}" in page.text
    assert f"{metrics['test']['n_images']} images of {metrics['test']['n_patients']} patients" in page.text


def test_the_page_describes_the_run(page):
    for words in (
        "mobilenetv2_100 on ozturk",
        "Classification of chest radiographs into 3 classes: Covid-19, No_findings and Pneumonia.",
        "mobilenetv2_100 has several pretrained tags: ra_in1k was taken",
        "Horizontal flip: off.",
        "NIH file names",
        "7 epochs in 3 stages: head (1–2), upper (3–4), all (5–7).",
        "Ring: epoch 7, the best by macro AUROC.",
        "head: learning rate 0.0024 (valley)",
        RUN["command"],
        "label_smoothing",
        "2,227,715",
        "Linux x86_64, 2 cores, no GPU",
        "4 min 13 s",
    ):
        assert words in page.text
    assert "Files missing from the run folder" not in page.text


def test_metrics_json_is_strict_json_with_the_evaluated_metrics(run_folder):
    def refuse(name):
        raise AssertionError(name)

    metrics = json.loads((run_folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert metrics == evaluate_predictions(read_predictions(run_folder / "predictions.csv"))


def test_the_output_does_not_depend_on_the_location_of_the_folder(run_folder, tmp_path):
    other = shutil.copytree(run_folder, tmp_path / "other")
    write_run_report(other)
    for name in ("report.html", "metrics.json", "figures/roc.svg", "figures/loss.svg", "figures/learning_rate_1.svg"):
        assert (other / name).read_bytes() == (run_folder / name).read_bytes()
    assert not list(other.rglob("*.part"))


def test_predictions_are_sufficient_for_a_page_that_names_missing_files(run_folder, tmp_path):
    shutil.copy(run_folder / "predictions.csv", tmp_path)
    page = write_page(tmp_path)
    assert "recipe.json, manifest.csv, history.csv, model.json, run.json and figures/images.csv" in page.text
    assert "no thumbnail" in page.text and "There is no manifest.csv" in page.text and RESEARCH in page.text
    assert (tmp_path / "figures" / "confusion_matrix.svg").is_file()


def test_the_page_shows_the_dataset(page, run_folder):
    for words in (
        "Images per class and split",
        "Mean gray value histograms",
        "sampled evenly over the training patients",
        "1,024 × 900",
    ):
        assert words in page.text
    assert {"histogram_1-figure_1", "histogram_3-figure_1", "classes-figure_1"} <= set(page.ids)
    assert (run_folder / "figures" / "histograms.svg").is_file()


@pytest.mark.parametrize(
    "missing", ["manifest.csv", "history.csv", "model.json", "learning_rate.csv", "histograms.csv", "file_stats.csv"]
)
def test_any_optional_file_may_be_missing(run_folder, tmp_path, missing):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / missing).unlink()
    page = write_run_report(folder, figures=False)  # the figures of missing files are left out in another test
    assert not Page(page.read_text(encoding="utf-8")).open


def test_an_image_level_split_is_a_critical_warning_with_the_shared_patients(tmp_path):
    manifest = make_manifest(n=200)
    split = np.random.default_rng(0).choice(["train", "valid", "test"], 200)
    folder = build_run(tmp_path, manifest.assign(split=split, split_origin="image"), recipe={"split": "image"})
    text = read_text(folder)
    assert "Image-level split Images of one patient may be in several splits; the metrics are optimistic." in text
    assert re.search(r"\d+ of the \d+ patients in the test split also have training images", text)


def test_given_splits_that_share_patients_are_a_critical_warning(tmp_path):
    manifest = make_manifest(n=200).assign(split_origin="given")
    manifest.loc[manifest["split"] == "test", "patient"] = manifest.loc[manifest["split"] == "train", "patient"].iloc[0]
    assert "1 of the 1 patient in the test split also have training images" in read_text(build_run(tmp_path, manifest))


def test_without_a_test_split_the_headline_is_the_validation_split(tmp_path):
    manifest = make_manifest(n=200)
    text = read_text(build_run(tmp_path, manifest[manifest["split"] != "test"].reset_index(drop=True)))
    assert "The validation split selected the model and also provides the metrics" in text
    assert "Results on the validation split" in text


def test_unreadable_images_are_counted_and_listed_with_their_reasons(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    rows = [("a/1.png", "E101", "empty file (0 bytes)"), ("a/<i>2.png", "E104", "corrupt image data")]
    pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv", index=False)
    text = read_text(folder)
    assert "2 images left out" in text and "FCX-E104" in text and "a/<i>2.png : corrupt image data" in text


def test_html_in_names_is_escaped(tmp_path):
    labels = ("<script>alert(1)</script>", 'a"b&$c$', "\u202etxt_under", "中文, NA")
    manifest = make_manifest(labels, 200)
    manifest = manifest.assign(path=[f"{i}<img src=x onerror=y>.png" for i in range(200)])
    recipe = {"backbone": "<u>x</u>", "data": "d/<s>.csv", "further": [{"<k>": "</style>"}]}
    page = write_page(build_run(tmp_path, manifest, labels, recipe=recipe))
    assert not page.open and not {"script", "u", "s", "k"} & page.tags
    assert "<script>alert(1)</script>" in page.text and "<u>x</u> on <s>" in page.text and "\u202e" not in page.text
    assert all(source.startswith("data:") for source in page.sources)


def test_a_test_split_with_one_class_has_a_report_without_curves(few_elements, tmp_path):
    labels = ("NORMAL", "PNEUMONIA")
    manifest = make_manifest(labels, 200)
    keep = (manifest["split"] != "test") | (manifest["label"] == "NORMAL")
    text = write_page(build_run(tmp_path, manifest[keep].reset_index(drop=True), labels)).text
    assert "No test image of PNEUMONIA" in text and "all images have the same class (test split)" in text
    assert "Top-2" not in text and "every image of this split is NORMAL" in text


def test_many_classes_and_a_history_with_gaps_are_plotted(few_elements, tmp_path):
    labels = tuple(f"class_{i}" for i in range(16))
    history = make_history((("head", 1), ("a long name", 1), ("all", 30)), top2=False)
    history = history.assign(accuracy=np.nan, best=False)
    history.loc[3:5, "valid_loss"] = np.nan
    folder = build_run(tmp_path, make_manifest(labels, 400), labels, history=history, thumbnails=False)
    assert "32 epochs in 3 stages" in write_page(folder).text
    assert not (folder / "figures" / "accuracy.svg").exists()


def test_a_thumbnail_outside_the_run_folder_is_not_embedded(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    shutil.copy(folder / "figures" / "images" / "0.jpg", tmp_path / "secret.jpg")
    (folder / "note.txt").write_text("no image")
    images = pd.read_csv(folder / "figures" / "images.csv")
    bad = ["../secret.jpg", str(tmp_path / "secret.jpg"), "note.txt", "figures/missing.jpg"]
    images.assign(file=(bad * len(images))[: len(images)]).to_csv(folder / "figures" / "images.csv", index=False)
    assert (read_run_record(folder).thumbnails["uri"] == "").all()


def test_a_folder_without_predictions_is_an_error(tmp_path):
    for folder, what in ((tmp_path, "no predictions.csv"), (tmp_path / "none", "the folder does not exist")):
        with pytest.raises(InputMissingError, match=f"{what}.*Pass the folder of a finished run"):
            write_run_report(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "{"),
        ("model.json", "[]"),
        ("run.json", "\xff"),
        ("manifest.csv", ""),
        ("manifest.csv", "a,b\n1,2\n"),
        ("history.csv", "epoch,stage,auroc\nx,head,0.5\n"),
    ],
)
def test_an_invalid_file_is_named_with_a_fix(run_folder, tmp_path, name, content):
    shutil.copy(run_folder / "predictions.csv", tmp_path)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="Restore or delete it") as caught:
        write_run_report(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_failed_write_is_an_error_and_leaves_no_partial_file(run_folder, tmp_path):
    shutil.copy(run_folder / "predictions.csv", tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot be written.*Free disk space"):
        write_run_report(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_report_needs_neither_torch_nor_a_display(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    code = (
        "import sys; from fastcxr.report.run_page import write_run_report; write_run_report(sys.argv[1]);"
        "print(sorted({'torch', 'fastai', 'timm', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert (folder / "report.html").read_bytes() == (run_folder / "report.html").read_bytes()


def test_unknown_recipe_fields_are_shown(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    recipe = {
        "new_choice": 3,
        "nothing": None,
        "off": False,
        "rows": [{"a": 1}, {"b": 2}],
        "deep": {"x": {"y": [1, 2]}},
    }
    (folder / "recipe.json").write_text(json.dumps(RECIPE | recipe))
    text = read_text(folder)
    assert "new choice 3" in text and "nothing not set" in text and "off no" in text and "y 1, 2" in text


def test_different_classes_of_model_and_predictions_are_a_warning(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model | {"labels": list(reversed(LABELS))}))
    assert "The classes of model and predictions differ" in read_text(folder)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({}, "the weights mobilenetv2_100.ra_in1k"),
        ({"weights": "IMAGENET1K_V2"}, "the weights IMAGENET1K_V2"),
        ({"weights": "own.pth"}, "the weights own.pth"),
        ({"weights": "random weights"}, "random weights"),
        ({"weights": "imagenet"}, "the weights mobilenetv2_100.ra_in1k"),  # of an earlier version
        ({"weights": "imagenet", "library": "torchvision", "tag": "IMAGENET1K_V1"}, "the weights IMAGENET1K_V1"),
        ({"weights": "none"}, "random weights"),
    ],
)
def test_report_card_and_checklist_name_the_initial_weights(tmp_path, backbone, expected):
    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    model = json.loads((folder / "model.json").read_text())
    model["backbone"] |= backbone
    (folder / "model.json").write_text(json.dumps(model))
    page = write_run_report(folder, figures=False)
    text, name = Page(page.read_text(encoding="utf-8")).text, expected.removeprefix("the weights ")
    assert f", initialized with {expected}." in text and "ImageNet" not in text
    assert f"Initial weights (CLAIM 24): {name}\n" in (folder / "MODEL_CARD.md").read_text()
    assert f"**Initial weights.** {name}." in (folder / "CLAIM.md").read_text()


def test_initial_weights_are_read_from_run_json_or_unknown(tmp_path):
    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    (folder / "model.json").unlink()
    assert read_run_record(folder).initial_weights == ""
    (folder / "run.json").write_text(json.dumps(RUN | {"first_weights": "resnet50.a1_in1k"}))
    assert read_run_record(folder).initial_weights == "resnet50.a1_in1k"


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (figures, "plot_lr_find_curve", "learning_rate_2"),
        (figures, "plot_confusion_matrix", "confusion_matrix"),
        (figures, "plot_roc_curves", "roc"),
        (data_figures, "plot_class_histogram", "histogram_2"),
    ],
)
def test_a_figure_that_fails_is_left_out_with_the_reason(
    few_elements, tmp_path, monkeypatch, caplog, module, function, name
):
    def fail(*_):
        raise ValueError("no font <x>")

    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    monkeypatch.setattr(module, function, fail)
    page = write_page(folder)
    assert f"Figure {name} left out: ValueError: no font <x>." in page.text and not page.open
    assert f"figure {name} left out: ValueError: no font <x>" in caplog.text
    assert "all images have the same class" not in page.text
    assert not (folder / "figures" / f"{name}.svg").exists() and list((folder / "figures").glob("*.svg"))
    assert json.loads((folder / "metrics.json").read_text())["test"]["auroc"]


def test_metrics_card_and_checklist_are_written_before_the_figures(tmp_path, monkeypatch):
    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", None)
    with pytest.raises(TypeError):
        write_run_report(folder)
    assert all((folder / name).is_file() for name in ("metrics.json", "MODEL_CARD.md", "CLAIM.md"))


def test_a_learning_rate_finder_without_a_result_is_a_warning(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    model = json.loads((folder / "model.json").read_text())
    lost = {"stage": "head", "rate": 0.002, "found": False, "reason": "the loss never fell"}
    model["choices"]["learning_rates"] = [lost]
    (folder / "model.json").write_text(json.dumps(model))
    text = read_text(folder)
    assert "No learning rate found. head used 0.002 (the loss never fell)." in text
    message = {"level": "warning", "text": "stage head: the loss never fell; the default learning rate 0.002 is used"}
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"messages": [message]}))
    text = read_text(folder)
    assert "Logged warning. stage head: the loss never fell" in text
    assert "No learning rate found" not in text, "the logged warning states it"


def test_a_class_name_is_shown_in_full(run_folder):
    styles = re.findall(r"<style>(.*?)</style>", (run_folder / "report.html").read_text(), re.DOTALL)
    assert styles and not any("text-overflow" in style for style in styles)


def test_an_empty_list_is_shown_as_not_set(tmp_path):
    folder = build_run(tmp_path)
    (folder / "recipe.json").write_text(json.dumps(RECIPE | {"relabel": []}))
    assert "relabel not set" in read_text(folder)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"strategy": "linear_probe", "hflip_tta": True, "weights": "none"}, "Horizontal flip: both orientations"),
        ({"strategy": "lp_ft", "hflip_tta": True, "weights": "pretrained"}, "Horizontal flip: both orientations"),
        ({"strategy": "lp_ft", "hflip_tta": True, "weights": "none"}, "Horizontal flip: off"),
        ({"strategy": "linear_probe", "hflip_tta": False, "weights": "pretrained"}, "Horizontal flip: off"),
    ],
)
def test_training_on_flipped_images_is_noted(tmp_path, choices, words):
    text = read_text(build_run(tmp_path, recipe=choices, thumbnails=False))
    assert words in text
    assert text.count("Horizontal flip:") == 1


@pytest.mark.parametrize("flip", [True, False])
def test_test_time_augmentation_is_noted(tmp_path, flip):
    folder = build_run(
        tmp_path, recipe={"strategy": "lp_ft", "hflip_tta": True, "weights": "pretrained"}, thumbnails=False
    )
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"hflip_tta": flip}))
    assert ("Each prediction is the mean over an image and its flipped image" in read_text(folder)) is flip


def test_without_an_external_test_external_validity_is_unknown(page):
    assert "External validity: unknown" in page.text


def test_no_title_of_a_warning_is_cut_or_leaves_its_box(tmp_path):
    page = write_run_report(build_run(tmp_path, thumbnails=False), figures=False).read_text()
    for selector in (".critical", ".notices li", ".full.findings th[scope=row]"):
        rules = re.findall(rf"^{re.escape(selector)} {{(.*)}}", page, re.MULTILINE)
        assert any("overflow-wrap: anywhere" in rule for rule in rules), selector
