"""Evaluation of a finished run on other data."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import check_against_scikit_learn
from toy_images import write_toys

pytestmark = pytest.mark.usefixtures("without_figures")


def test_training_images_are_excluded_from_an_evaluation_and_counted(call, finished, tmp_path):
    run, data, _ = finished
    other = write_toys(tmp_path / "other", per_class=6, first=100)
    split = pd.read_csv(run / "manifest.csv", dtype=str)
    for part in ("train", "valid", "test"):
        path = split.loc[split["split"] == part, "path"].iloc[0]
        shutil.copy(data / path, other / path.split("/")[0] / f"{part}.png")
    done = call("evaluate", run, "--data", other, "--out", tmp_path / "external")
    assert done.returncode == 0, done.stderr
    assert "2 images left out because of overlap with images that the model was trained or selected on" in done.stderr
    assert "same pixels 2" in done.stderr
    assert "images in the test split of the run, which are not external data: same pixels 1" in done.stderr
    skipped = pd.read_csv(tmp_path / "external" / "skipped.csv", dtype=str)
    assert sorted(Path(path).name for path in skipped["path"]) == ["train.png", "valid.png"]
    scored = pd.read_csv(tmp_path / "external" / "predictions.csv", dtype=str)["path"].map(lambda path: Path(path).name)
    assert "test.png" in set(scored) and not {"train.png", "valid.png"} & set(scored)


def test_an_evaluation_on_training_images_only_is_rejected(call, finished, tmp_path):
    run, data, _ = finished
    split = pd.read_csv(run / "manifest.csv", dtype=str)
    for path in split.loc[split["split"] == "train", "path"]:
        (tmp_path / "again" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / path, tmp_path / "again" / path)
    done = call("evaluate", run, "--data", tmp_path / "again")
    assert done.returncode == 65
    last_line = done.stderr.splitlines()[-1]
    assert "images overlap with images that the model was trained or selected on (same pixels " in last_line
    assert "Pass images of other patients, or --keep-overlap" in last_line
    done = call("evaluate", run, "--data", tmp_path / "again", "--keep-overlap", "--out", tmp_path / "kept")
    assert done.returncode == 0, done.stderr
    assert "Overlap with the training images of the model: " in done.stderr, "a critical notice below the headline"


def test_an_evaluation_never_writes_into_a_finished_run(call, finished):
    run, data, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("evaluate", run, "--data", data, "--out", run)
    assert done.returncode == 73
    assert "this folder is not empty" in done.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_model_is_evaluated_on_other_data_after_relabelling(call, finished, tmp_path):
    other = write_toys(tmp_path / "other", per_class=6, first=100)
    (other / "haze").rename(other / "Haze")
    words = ["evaluate", finished[0], "--data", other, "--out", tmp_path / "external"]
    done = call(*words)
    assert done.returncode == 65
    assert "--relabel Haze=haze" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "external").exists()
    done = call(*words, "--relabel", "Haze=haze", "--precision", "bf16", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "<li>precision: bfloat16 on cpu</li>" in (tmp_path / "external" / "report.html").read_text()
    metrics = json.loads((tmp_path / "external" / "metrics.json").read_text())
    assert (set(metrics), metrics["test"]["n_images"]) == ({"test", "internal_test", "external_drop"}, 18)
    table = pd.read_csv(tmp_path / "external" / "predictions.csv", dtype={"error": str})
    check_against_scikit_learn(table[table["split"] == "test"], metrics["test"])
    internal = json.loads((finished[0] / "metrics.json").read_text())["test"]
    assert metrics["internal_test"] == internal, "recomputed from the rows in this folder"
    assert call("verify", tmp_path / "external").returncode == 0
    assert "internal test" in done.stderr
    assert "on the internal test set: " in done.stderr


def test_a_model_is_evaluated_on_one_class_and_training_patients_are_excluded(call, finished, tmp_path):
    other = write_toys(tmp_path / "other", per_class=6, labels=("clear",), first=100)
    split = pd.read_csv(finished[0] / "manifest.csv", dtype=str)
    known = split.loc[(split["split"] == "train") & (split["label"] == "clear"), "patient"].iloc[0]
    first = min((other / "clear").glob("*.png"))
    first.rename(first.with_name(f"{known}_099.png"))
    done = call("evaluate", finished[0], "--data", other, "--data-format", "folders", "--out", tmp_path / "external")
    assert done.returncode == 0, done.stderr
    assert "1 image left out" in done.stderr and "same patient 1" in done.stderr
    (drop,) = json.loads((tmp_path / "external" / "metrics.json").read_text())["external_drop"].values()
    assert list(drop["figures"]) == ["per_class.clear.sensitivity"]
    assert "are therefore not comparable" in (tmp_path / "external" / "report.html").read_text()
