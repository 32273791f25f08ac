"""The command train: its files, its terminal output, and pack."""

import hashlib
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import BACKBONE, TRAIN, check_against_scikit_learn, fastcxr
from toy_images import LABELS, write_toys

pytestmark = pytest.mark.usefixtures("without_maps")  # the finished run has them: it is trained in a process


def test_a_run_writes_its_files_and_prints_the_path_of_the_report(finished):
    run, _, done = finished
    assert done.stdout.strip() == str(Path("run") / "report.html")
    assert done.stderr.count("data format: ") == 1
    files = {path.name for path in run.iterdir()}
    assert files == {
        "recipe.json", "manifest.csv", "history.csv", "model.safetensors", "model.json", "predictions.csv",
        "metrics.json", "report.html", "run.json", "figures", "histograms.csv", "file_stats.csv",
        "audit.json", "MODEL_CARD.md", "CLAIM.md", "SHA256SUMS", "saliency.csv", "explain.json", "features.npz",
        "feature_map.csv",
    }  # fmt: skip


def test_the_report_shows_the_gray_values_of_each_class(finished):
    run = finished[0]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Mean gray value histograms" in page and 'id="histogram_3-figure_1"' in page
    assert pd.read_csv(run / "histograms.csv")["label"].value_counts().to_dict() == dict.fromkeys(LABELS, 64)


def test_the_terminal_shows_the_dataset_and_the_headline(finished):
    shown = finished[2].stderr
    assert "3 classes, 60 images, 30 patients from NIH file names" in shown
    assert "train 42 images of 21 patients" in shown or "train" in shown
    assert "AUROC" in shown
    names = "bfloat16|float16 with loss scaling|float32"
    assert re.search(rf"^precision: ({names}), channels last \(.* on this device\)", shown, re.MULTILINE)
    assert "Traceback" not in shown
    assert "\r" not in shown, "no live bar in a pipe"


def test_the_report_shows_the_precision(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    precision = json.loads((finished[0] / "model.json").read_text())["choices"]["precision"]
    assert f"<dt>precision</dt><dd>{precision}</dd>" in page
    assert "<li>precision: " in page


def test_metrics_agree_with_scikit_learn_on_the_predictions(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    table = pd.read_csv(finished[0] / "predictions.csv", dtype={"error": str})
    assert set(metrics) == {"train", "valid", "test"}
    for split, found in metrics.items():
        check_against_scikit_learn(table[table["split"] == split], found)


def test_a_rewritten_report_is_byte_identical(call, finished):
    before = hashlib.sha256((finished[0] / "report.html").read_bytes()).hexdigest()
    done = call("report", finished[0])
    assert done.returncode == 0
    assert hashlib.sha256((finished[0] / "report.html").read_bytes()).hexdigest() == before


def test_the_same_command_yields_identical_predictions_on_a_cpu(call, finished, tmp_path):
    for name in ("one", "other"):
        done = call(*TRAIN, "--data", finished[1], "--out", tmp_path / name, "--batch-size", "8", "--device", "cpu")
        assert done.returncode == 0, done.stderr
    one, other = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "other"))
    assert one == other


def test_no_output_contains_an_absolute_path_of_the_machine(finished):
    run, data, _ = finished
    for path in run.rglob("*"):
        if path.is_file():
            assert str(data).encode() not in path.read_bytes(), path


def test_reuse_split_keeps_every_patient_in_its_split(call, finished, tmp_path):
    run, data, _ = finished
    done = call(*TRAIN, "--data", data, "--reuse-split", run, "--seed", "7", "--out", tmp_path / "later")
    assert done.returncode == 0, done.stderr
    before, after = (pd.read_csv(f / "manifest.csv", dtype=str) for f in (run, tmp_path / "later"))
    assert after["split"].tolist() == before["split"].tolist()
    assert set(after["split_origin"]) == {"kept"}


def test_without_data_the_class_folders_in_data_are_used_with_a_message(call, tmp_path):
    write_toys(tmp_path / "data", per_class=20)
    done = call(*TRAIN, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "using the class folders in data/" in done.stderr
    assert (tmp_path / "runs" / f"data-{BACKBONE}-1" / "report.html").exists()


def test_the_version_is_printed():
    assert fastcxr("--version").stdout.startswith("fastcxr 0.")


def test_two_relabelled_sources_are_packed_and_used_for_training(call, toy_folder, tmp_path):
    write_toys(tmp_path / "more", per_class=4, labels=("clear", "opacity"))
    chosen = ("--classes", "clear", "--classes", "ill", "--relabel", "opacity=ill", "--relabel", "haze=ill")
    done = call("pack", toy_folder, "more", "--to", "c.h5", *chosen, "--shuffle", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "c.h5"
    assert "relabelled: opacity to ill (14), haze to ill (10)" in done.stderr
    assert "left out 8 exact duplicates: 8 of more that are also in toys" in done.stderr
    done = call(*TRAIN, "--data", "c.h5", "--filter", "source=toys", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / f"c-{BACKBONE}-1"
    table = pd.read_csv(run / "manifest.csv")
    assert len(table) == 30
    assert set(table["label"]) == {"clear", "ill"}
    assert not any(str(tmp_path) in (run / name).read_text() for name in ("manifest.csv", "predictions.csv"))
    assert json.loads((run / "recipe.json").read_text())["filter"] == ["source=toys"]


def test_a_class_too_small_for_training_is_packed(call, tmp_path):
    write_toys(tmp_path / "few", per_class=1, labels=("haze",))
    done = call("pack", "few", "--to", "c.h5", where=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "c.h5"), done.stderr


def test_the_run_folder_and_the_report_contain_the_names_of_two_sources(call, toy_folder, tmp_path):
    write_toys(tmp_path / "more", per_class=4, labels=("clear", "opacity"))
    done = call(*TRAIN, "--data", toy_folder, "--data", "more", "--batch-size", "8", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "toys + more" in (tmp_path / "runs" / f"toys_more-{BACKBONE}-1" / "report.html").read_text()


def test_help_lists_strategies_by_name_and_no_stage(call):
    shown = call("train", "--help").stdout
    assert "STAGE" not in shown
    assert "probe" in shown


def test_commands_run_in_the_folder_of_the_dataset_ignore_their_own_outputs(call, tmp_path):
    data = write_toys(tmp_path / "xrays", per_class=20)
    for command in ("describe", "audit"):
        assert call(command, "--data", ".", where=data).returncode in (0, 65), command
    done = call(*TRAIN, "--data", ".", where=data)
    assert done.returncode == 0, done.stderr
    assert "skipped 1 output folders of fastcxr: runs" in done.stderr
    assert call("describe", "--data", ".", where=data).returncode == 0
    names = {"describe-xrays-1", "audit-xrays-1", f"xrays-{BACKBONE}-1", "describe-xrays-2"}
    assert {folder.name for folder in (data / "runs").iterdir()} == names
    assert all(len(pd.read_csv(data / "runs" / name / "manifest.csv")) == 60 for name in names - {"audit-xrays-1"})
