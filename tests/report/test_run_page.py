"""Tests for run_page.py: the page as a reader gets it, from whole run folders and from what is left of them."""

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
from fastcxr.report import data_figures as cohort_figures
from fastcxr.report import figures
from fastcxr.report.headline import make_headline_table
from fastcxr.report.run_page import render_report, write_run_report
from fastcxr.report.run_reader import read_run_record

RESEARCH = "For research, not for diagnosis."


def page_of(folder):
    return Page(write_run_report(folder).read_text(encoding="utf-8"))


def words_of(folder):
    """The page without its figures, which are most of the time."""
    record = read_run_record(folder)
    return Page(render_report(record, evaluate_predictions(record.predictions), {})).text


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A complete run folder with its report."""
    folder = build_run(tmp_path_factory.mktemp("whole") / "run")
    write_run_report(folder)
    return folder


@pytest.fixture
def whole(drawn):
    return Page((drawn / "report.html").read_text(encoding="utf-8"))


def test_the_page_stands_alone(whole, drawn):
    assert not whole.open and not {"script", "link", "iframe", "object", "base"} & whole.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in whole.sources) and len(whole.sources) == 20
    text = re.sub(r'xmlns(:xlink)?="http[^"]*"', "", (drawn / "report.html").read_text(encoding="utf-8"))
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text


def test_every_id_is_there_once_and_every_reference_leads_somewhere(whole):
    assert len(whole.ids) == len(set(whole.ids))
    assert {reference[1:] for reference in whole.references} <= set(whole.ids)


def test_the_page_says_at_top_and_bottom_what_it_is_not_for(whole):
    assert whole.text.count(RESEARCH) == 2
    assert whole.text.index(RESEARCH) < 200 and whole.text.rindex(RESEARCH) > len(whole.text) - 300


def test_the_headline_is_the_terminals(whole, drawn):
    metrics = json.loads((drawn / "metrics.json").read_text())
    for name, test, interval, valid in make_headline_table(metrics)[:4]:
        assert f"{name} {test} {interval} valid {valid}" in whole.text
    assert f"{metrics['test']['n_images']} images of {metrics['test']['n_patients']} patients" in whole.text


def test_the_page_holds_every_part_of_the_run(whole):
    for words in (
        "mobilenetv2_100 on ozturk",
        "A classifier of chest radiographs into 3 classes: Covid-19, No_findings and Pneumonia.",
        "mobilenetv2_100 has several pretrained tags: ra_in1k was taken",
        "Horizontal flip: off.",
        "NIH file names",
        "7 epochs in 3 stages: head (1–2), upper (3–4), all (5–7).",
        "Ringed: epoch 7, the best by macro AUROC",
        "head: took 0.0024 (valley)",
        RUN["command"],
        "label_smoothing",
        "2,227,715",
        "Linux x86_64, 2 cores, no GPU",
        "4 min 13 s",
    ):
        assert words in whole.text
    assert "stamp" not in whole.text.lower() and "Files missing from the run folder" not in whole.text


def test_metrics_json_is_strict_and_holds_what_was_measured(drawn):
    def refuse(name):
        raise AssertionError(name)

    metrics = json.loads((drawn / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert metrics == evaluate_predictions(read_predictions(drawn / "predictions.csv"))


def test_the_same_files_give_the_same_bytes_wherever_the_folder_stands(drawn, tmp_path):
    other = shutil.copytree(drawn, tmp_path / "other")
    write_run_report(other)
    for name in ("report.html", "metrics.json", "figures/roc.svg", "figures/loss.svg", "figures/learning_rate_1.svg"):
        assert (other / name).read_bytes() == (drawn / name).read_bytes()
    assert not list(other.rglob("*.part"))


def test_predictions_alone_make_a_page_that_names_what_is_missing(drawn, tmp_path):
    shutil.copy(drawn / "predictions.csv", tmp_path)
    page = page_of(tmp_path)
    assert "recipe.json, manifest.csv, history.csv, model.json, run.json and figures/images.csv" in page.text
    assert "no thumbnail" in page.text and "Without manifest.csv" in page.text and RESEARCH in page.text
    assert (tmp_path / "figures" / "confusion_matrix.svg").is_file()


def test_the_page_shows_the_cohort_that_it_was_trained_on(whole, drawn):
    for words in (
        "Images of each class, by split",
        "Gray values of each class",
        "chosen evenly over the patients in train",
        "1,024 × 900",
    ):
        assert words in whole.text
    assert {"histogram_1-figure_1", "histogram_3-figure_1", "classes-figure_1"} <= set(whole.ids)
    assert (drawn / "figures" / "histograms.svg").is_file()


@pytest.mark.parametrize(
    "gone", ["manifest.csv", "history.csv", "model.json", "learning_rate.csv", "histograms.csv", "file_stats.csv"]
)
def test_any_one_file_may_be_missing(drawn, tmp_path, gone):
    folder = shutil.copytree(drawn, tmp_path / "run")
    (folder / gone).unlink()
    assert not page_of(folder).open


def test_an_image_level_split_is_stamped_with_the_patients_it_shares(tmp_path):
    manifest = make_manifest(n=200)
    split = np.random.default_rng(0).choice(["train", "valid", "test"], 200)
    folder = build_run(tmp_path, manifest.assign(split=split, split_origin="image"), recipe={"split": "image"})
    text = words_of(folder)
    assert "Image-level split Images of one patient may be in several splits; the metrics are optimistic." in text
    assert re.search(r"\d+ of the \d+ patients in the test split also have training images", text)


def test_given_splits_that_share_patients_are_stamped(tmp_path):
    manifest = make_manifest(n=200).assign(split_origin="given")
    manifest.loc[manifest["split"] == "test", "patient"] = manifest.loc[manifest["split"] == "train", "patient"].iloc[0]
    assert "1 of the 1 patient in the test split also have training images" in words_of(build_run(tmp_path, manifest))


def test_without_a_test_split_valid_is_the_headline_and_says_so(tmp_path):
    manifest = make_manifest(n=200)
    text = words_of(build_run(tmp_path, manifest[manifest["split"] != "test"].reset_index(drop=True)))
    assert "The validation split selected the model and also provides the metrics" in text
    assert "Results on the valid split" in text


def test_left_out_images_are_counted_and_listed_with_their_reasons(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    rows = [("a/1.png", "E101", "empty file (0 bytes)"), ("a/<i>2.png", "E104", "corrupt image data")]
    pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv", index=False)
    text = words_of(folder)
    assert "2 images left out" in text and "FCX-E104" in text and "a/<i>2.png : corrupt image data" in text


def test_hostile_names_are_words_and_nothing_else(tmp_path):
    labels = ("<script>alert(1)</script>", 'a"b&$c$', "\u202etxt_under", "中文, NA")
    manifest = make_manifest(labels, 200)
    manifest = manifest.assign(path=[f"{i}<img src=x onerror=y>.png" for i in range(200)])
    recipe = {"backbone": "<u>x</u>", "data": "d/<s>.csv", "further": [{"<k>": "</style>"}]}
    page = page_of(build_run(tmp_path, manifest, labels, recipe=recipe))
    assert not page.open and not {"script", "u", "s", "k"} & page.tags
    assert "<script>alert(1)</script>" in page.text and "<u>x</u> on <s>" in page.text and "\u202e" not in page.text
    assert all(source.startswith("data:") for source in page.sources)


def test_two_classes_of_which_one_is_missing_from_test_do_not_stop_the_page(tmp_path):
    labels = ("NORMAL", "PNEUMONIA")
    manifest = make_manifest(labels, 200)
    keep = (manifest["split"] != "test") | (manifest["label"] == "NORMAL")
    text = page_of(build_run(tmp_path, manifest[keep].reset_index(drop=True), labels)).text
    assert "No test image of PNEUMONIA" in text and "the test split does not hold two classes" in text
    assert "Top-2" not in text and "every image of this split is NORMAL" in text


def test_many_classes_and_a_history_with_gaps_are_drawn(tmp_path):
    labels = tuple(f"class_{i}" for i in range(16))
    history = make_history((("head", 1), ("a long name", 1), ("all", 30)), top2=False)
    history = history.assign(accuracy=np.nan, best=False)
    history.loc[3:5, "valid_loss"] = np.nan
    folder = build_run(tmp_path, make_manifest(labels, 400), labels, history=history, thumbnails=False)
    assert "32 epochs in 3 stages" in page_of(folder).text
    assert not (folder / "figures" / "accuracy.svg").exists()


def test_a_thumbnail_from_outside_the_run_folder_does_not_get_in(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    shutil.copy(folder / "figures" / "images" / "0.jpg", tmp_path / "secret.jpg")
    (folder / "note.txt").write_text("no image")
    images = pd.read_csv(folder / "figures" / "images.csv")
    bad = ["../secret.jpg", str(tmp_path / "secret.jpg"), "note.txt", "figures/gone.jpg"]
    images.assign(file=(bad * len(images))[: len(images)]).to_csv(folder / "figures" / "images.csv", index=False)
    assert (read_run_record(folder).thumbnails["uri"] == "").all()


def test_a_folder_without_predictions_says_what_to_name(tmp_path):
    for folder, what in ((tmp_path, "no predictions.csv"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputMissingError, match=f"{what}.*Name the folder of a finished run"):
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
def test_a_broken_file_is_named_with_the_way_out(drawn, tmp_path, name, content):
    shutil.copy(drawn / "predictions.csv", tmp_path)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="Restore the file as the run wrote it") as caught:
        write_run_report(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_a_page_that_cannot_be_written_says_so_and_leaves_nothing_half(drawn, tmp_path):
    shutil.copy(drawn / "predictions.csv", tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot be written.*Free disk space"):
        write_run_report(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_a_report_is_drawn_without_torch_and_without_a_screen(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    code = (
        "import sys; from fastcxr.report.run_page import write_run_report; write_run_report(sys.argv[1]);"
        "print(sorted({'torch', 'fastai', 'timm', 'torchvision', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert (folder / "report.html").read_bytes() == (drawn / "report.html").read_bytes()


def test_the_recipe_is_shown_whatever_fields_it_has(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    recipe = {
        "new_choice": 3,
        "nothing": None,
        "off": False,
        "rows": [{"a": 1}, {"b": 2}],
        "deep": {"x": {"y": [1, 2]}},
    }
    (folder / "recipe.json").write_text(json.dumps(RECIPE | recipe))
    text = words_of(folder)
    assert "new choice 3" in text and "nothing not set" in text and "off no" in text and "y 1, 2" in text


def test_classes_of_model_and_predictions_that_differ_are_a_warning(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model | {"labels": list(reversed(LABELS))}))
    assert "The classes of model and predictions differ" in words_of(folder)


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
def test_report_card_and_checklist_name_the_weights_that_were_loaded(tmp_path, backbone, expected):
    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    model = json.loads((folder / "model.json").read_text())
    model["backbone"] |= backbone
    (folder / "model.json").write_text(json.dumps(model))
    text, name = page_of(folder).text, expected.removeprefix("the weights ")
    assert f", from {expected}." in text and "ImageNet" not in text
    assert f"Initial weights (CLAIM 24): {name}\n" in (folder / "MODEL_CARD.md").read_text()
    assert f"**Initial weights.** {name}." in (folder / "CLAIM.md").read_text()


def test_weights_are_not_named_where_no_file_has_their_name_and_a_pool_has_it_in_run_json(tmp_path):
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
        (cohort_figures, "plot_class_histogram", "histogram_2"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_left_out_and_the_page_says_why(
    tmp_path, monkeypatch, caplog, module, function, name
):
    def fail(*given):
        raise ValueError("no font <x>")

    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    monkeypatch.setattr(module, function, fail)
    page = page_of(folder)
    assert f"Figure {name} left out: ValueError: no font <x>." in page.text and not page.open
    assert f"figure {name} left out: ValueError: no font <x>" in caplog.text
    assert "does not hold two classes" not in page.text, "this is not the reason"
    assert not (folder / "figures" / f"{name}.svg").exists() and list((folder / "figures").glob("*.svg"))
    assert json.loads((folder / "metrics.json").read_text())["test"]["auroc"]


def test_numbers_card_and_checklist_are_written_before_any_figure_is_drawn(tmp_path, monkeypatch):
    folder = build_run(tmp_path, make_manifest(n=200), thumbnails=False)
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", None)
    with pytest.raises(TypeError):
        write_run_report(folder)
    assert all((folder / name).is_file() for name in ("metrics.json", "MODEL_CARD.md", "CLAIM.md"))


def test_a_finder_without_an_answer_is_a_warning(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "run")
    model = json.loads((folder / "model.json").read_text())
    lost = {"stage": "head", "rate": 0.002, "found": False, "reason": "the loss never fell"}
    model["choices"]["learning_rates"] = [lost]
    (folder / "model.json").write_text(json.dumps(model))
    text = words_of(folder)
    assert "No learning rate found. head used 0.002 (the loss never fell)." in text


def test_a_choice_of_nothing_reads_as_not_set(tmp_path):
    folder = build_run(tmp_path)
    (folder / "recipe.json").write_text(json.dumps(RECIPE | {"relabel": []}))
    assert "relabel not set" in words_of(folder)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"strategy": "linear_probe", "hflip_tta": True, "weights": "none"}, "Horizontal flip: both orientations"),
        ({"strategy": "lp_ft", "hflip_tta": True, "weights": "pretrained"}, "Horizontal flip: both orientations"),
        ({"strategy": "lp_ft", "hflip_tta": True, "weights": "none"}, "Horizontal flip: off"),
        ({"strategy": "linear_probe", "hflip_tta": False, "weights": "pretrained"}, "Horizontal flip: off"),
    ],
)
def test_a_head_that_learned_from_mirrored_images_is_said_to(tmp_path, choices, words):
    text = words_of(build_run(tmp_path, recipe=choices, thumbnails=False))
    assert words in text
    assert text.count("Horizontal flip:") == 1


@pytest.mark.parametrize("mirror", [True, False])
def test_a_model_that_looks_twice_says_so(tmp_path, mirror):
    folder = build_run(
        tmp_path, recipe={"strategy": "lp_ft", "hflip_tta": True, "weights": "pretrained"}, thumbnails=False
    )
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"hflip_tta": mirror}))
    assert ("Each prediction is the mean over an image and its flipped image" in words_of(folder)) is mirror


def test_a_model_tested_where_it_was_trained_has_unknown_external_validity(whole):
    assert "External validity: unknown" in whole.text
