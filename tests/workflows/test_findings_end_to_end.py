"""Whole runs with findings: one finding, 40 findings, findings with one class in the test split, interruption."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from tiny_network import NAME

from fastcxr import Recipe, load_model, predict, read_manifest
from fastcxr.data.findings import FINDING_PREFIX
from fastcxr.metrics.predictions import read_predictions
from fastcxr.workflows.compare import compare
from fastcxr.workflows.evaluate import evaluate
from fastcxr.workflows.train import run

N_FINDINGS = 40
pytestmark = pytest.mark.usefixtures("few_draws", "without_maps")


@pytest.fixture(scope="module")
def table(toy_folder, tmp_path_factory):
    """A CSV with 40 findings: `haze` is in the images, `none` in no test image, `all` in all test images."""
    rows = read_manifest(toy_folder)
    rng, number = np.random.default_rng(0), rows.groupby("label").cumcount()
    split = number.map(lambda k: ("train", "train", "train", "valid", "test")[k // 2 % 5])
    is_test = split == "test"
    findings = pd.DataFrame({"haze": (rows["label"] == "haze").astype(int)})
    findings["none"], findings["all"] = ((number % 2) * ~is_test), ((number % 2) | is_test)
    for k in range(N_FINDINGS - 3):
        findings[f"finding {k}"] = rng.choice(["1", "0", "", "-1"], len(rows), p=[0.3, 0.4, 0.2, 0.1])
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    columns = {"path": rows["file"], "patient": rows["patient"], "split": split}
    pd.DataFrame(columns).join(findings.astype(str)).to_csv(path, index=False)
    return path


def make_recipe(table, **options) -> Recipe:
    defaults = {"weights": "none", "image_size": 64, "batch_size": 8, "epochs": 1, "strategy": "full", "device": "cpu"}
    return Recipe(NAME, data=str(table), figures="none", **(defaults | options))


def read_metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_folder(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "many"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.workflows.result_dir.ResultDir.write_saliency_maps", lambda *arguments: None)
        run(make_recipe(table), folder)
    return folder


def test_findings_with_one_class_have_a_reason_and_no_value(run_folder):
    test = read_metrics(run_folder)["test"]
    assert len(test["labels"]) == N_FINDINGS
    for name in ("none", "all"):
        assert test["auroc"]["per_class"][name] is None
        assert test["reasons"][f"auroc.per_class.{name}"]
    averaged = [test["auroc"]["per_class"][name] for name in test["auroc"]["averaged"]]
    assert test["auroc"]["macro"] == pytest.approx(np.mean(averaged)) and 0 < len(averaged) < N_FINDINGS
    assert "NaN" not in (run_folder / "metrics.json").read_text(encoding="utf-8")


def test_predictions_of_new_images_are_those_of_the_run(run_folder, table):
    saved = read_predictions(run_folder)
    rows = read_manifest(table)
    found = predict(load_model(run_folder, device="cpu"), rows[rows["split"] == "test"])
    expected = saved.for_split("test")
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
    np.testing.assert_array_equal(found.truth, expected.truth)


def test_a_dataset_that_labels_one_finding_leaves_the_others_unknown(run_folder, table, tmp_path):
    rows = pd.read_csv(table, dtype=str).rename(columns={"haze": "Haze of the lung"})
    is_test, columns = rows["split"] == "test", ["path", "patient", "Haze of the lung"]
    rows.loc[is_test, columns].to_csv(tmp_path / "b.csv", index=False)
    data = Recipe(data=str(tmp_path / "b.csv"), relabel=("Haze of the lung=haze",))
    evaluate(run_folder, data, tmp_path / "evaluation", device="cpu", keep_overlap=True)
    test = read_metrics(tmp_path / "evaluation")["test"]
    original = read_metrics(run_folder)["test"]
    assert test["auroc"]["per_class"]["haze"] == pytest.approx(original["auroc"]["per_class"]["haze"])
    assert test["per_class"]["finding 0"]["unknown"] == test["n_images"]


def test_runs_are_compared_by_their_shared_images(run_folder, table, tmp_path):
    run(make_recipe(table, seed=1, uncertain=("positive",)), tmp_path / "other")
    compare([run_folder, tmp_path / "other"], tmp_path / "compare")
    rows = json.loads((tmp_path / "compare" / "compare.json").read_text(encoding="utf-8"))["rows"]
    assert {row["name"] for row in rows} == {"many", "other"} and rows[0]["auroc"][0] >= rows[1]["auroc"][0]


@pytest.mark.parametrize(("strategy", "columns"), [("full", ()), ("linear_probe", ("label=haze",))])
def test_one_finding_is_trained_and_predicted(table, tmp_path, strategy, columns):
    rows = pd.read_csv(table, dtype=str)[["path", "patient", "split", "haze"]]
    rows.to_csv(tmp_path / "one.csv", index=False)
    run(make_recipe(tmp_path / "one.csv", strategy=strategy, task="multi_label", columns=columns), tmp_path / "run")
    test = read_metrics(tmp_path / "run")["test"]
    assert test["labels"] == ["haze"] and test["auroc"]["macro"] == test["auroc"]["per_class"]["haze"]
    assert read_predictions(tmp_path / "run").probability.shape[1] == 1


KILLED_RUN = """
import os, signal, sys
from fastai.callback.core import Callback
import tiny_network
from fastcxr import Recipe
from fastcxr.training import resume
from fastcxr.workflows import train as module

class Kill(Callback):
    order = 100
    def after_batch(self):
        if self.training and self.epoch == 1 and self.iter == 1:
            os.kill(os.getpid(), signal.SIGKILL)

resume.CHECKPOINT_INTERVAL_MINUTES = 0
make_learner = module.make_learner

def make_killed_learner(*arguments):
    learner = make_learner(*arguments)
    learner.add_cb(Kill())
    return learner

module.make_learner = make_killed_learner
module.run(Recipe.from_json(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_bits(table, tmp_path):
    recipe = make_recipe(table, epochs=2, class_weights="balanced", sampler="weighted", loss="focal")
    (tmp_path / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", KILLED_RUN, tmp_path / "recipe.json", tmp_path / "killed"]
    killed = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": paths}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        run(recipe, tmp_path / name)
    for name in ("model.safetensors", "predictions.csv", "metrics.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_manifest_of_a_run_has_the_labels_of_the_data(run_folder, table):
    rows, saved = read_manifest(table), pd.read_csv(run_folder / "manifest.csv")
    columns = [name for name in rows if name.startswith(FINDING_PREFIX)]
    assert len(columns) == N_FINDINGS
    name = "finding_finding 0"
    np.testing.assert_array_equal(saved[name].fillna(9), rows[name].fillna(9).astype(float))
