"""Tests of the OOD detector in train, predict, evaluate, verify and cross-validation."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from toy_images import write_toys

from fastcxr.cli.main import main
from fastcxr.config.recipe import Recipe
from fastcxr.io.files import list_files, write_checksums
from fastcxr.metrics.predictions import make_predictions, mark_ood
from fastcxr.metrics.thresholds import compute_ood_rate
from fastcxr.training import fit_ood
from fastcxr.workflows.cross_validate import cross_validate, pool_predictions
from fastcxr.workflows.evaluate import evaluate
from fastcxr.workflows.train import run
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")

OPTIONS = {"image_size": 64, "strategy": "linear_probe", "precision": "fp32", "batch_size": 8, "hflip_tta": False}
RECIPE = Recipe("mobilenetv2_035", weights="none", **OPTIONS)


@pytest.fixture(scope="module")
def finished(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ood")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_ood, "MIN_VALID_PATIENTS", 2)
        run(RECIPE.replace(data=str(write_toys(folder / "toys", per_class=20))), folder / "run")
    return folder / "run"


@pytest.fixture
def checkerboards(tmp_path):
    """Write checkerboard images into class folders."""
    for number, label in enumerate(("clear", "haze", "clear", "haze")):
        (tmp_path / "boards" / label).mkdir(parents=True, exist_ok=True)
        board = np.indices((64, 64)).sum(axis=0) // (6 + number) % 2 * 255
        Image.fromarray(board.astype(np.uint8)).save(tmp_path / "boards" / label / f"{number}.png")
    return tmp_path / "boards"


def test_a_run_reports_the_false_alarms_of_its_detector(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    table = pd.read_csv(finished / "predictions.csv", keep_default_na=False)
    test = table[table["split"] == "test"]
    ood = metrics["test"]["ood"]
    assert (ood["n_images"], ood["n_ood"]) == (len(test), (test["in_distribution"] == "no").sum())
    assert "False positives of the out-of-distribution (OOD) detector" in (finished / "report.html").read_text()
    assert verify(finished)[0] == []


def test_verify_finds_a_changed_in_distribution_value(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    text = (folder / "predictions.csv").read_text()
    assert ",yes" in text
    (folder / "predictions.csv").write_text(text.replace(",yes", ",no"))
    write_checksums(folder, list_files(folder))  # as after a deliberate change
    assert any("ood.n_ood" in fault.problem for fault in verify(folder)[0])


def test_predict_assigns_no_class_to_ood_images(finished, checkerboards, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        sys, "argv", ["fastcxr", "predict", str(finished), str(checkerboards), "--csv", str(tmp_path / "a.csv")]
    )
    with pytest.raises(SystemExit):
        main()
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert table["predicted"].eq("").all() and table["above_threshold"].eq("").all()
    assert table["uncertain"].eq("yes").all() and table["in_distribution"].eq("no").all()
    assert (table["ood_score"] > 1).all()
    assert "0 images classified, 0 unreadable, 4 out-of-distribution (no class assigned)" in capfd.readouterr().err


def test_evaluation_on_ood_images_shows_a_warning(finished, checkerboards, tmp_path):
    recipe = Recipe(data=str(checkerboards), data_format="folders")  # images of two gray levels may be masks
    page = evaluate(finished, recipe, tmp_path / "evaluation").read_text()
    assert '<li class="warning"><b>Out-of-distribution images.</b> In the test split: 4 of 4 images' in page
    assert verify(tmp_path / "evaluation")[0] == []


def test_pooled_metrics_count_the_ood_images_of_the_detectors_of_all_folds(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_ood, "MIN_VALID_PATIENTS", 2)
    cross_validate(RECIPE.replace(data=str(toy_folder), folds=2), tmp_path / "folds")
    metrics = json.loads((tmp_path / "folds" / "metrics.json").read_text())
    fold_metrics = [json.loads((tmp_path / "folds" / f"fold-{k}" / "metrics.json").read_text()) for k in (1, 2)]
    assert metrics["oof"]["ood"]["n_images"] == 30
    assert metrics["oof"]["ood"]["n_ood"] == sum(part["test"]["ood"]["n_ood"] for part in fold_metrics)
    assert (
        "False positives of the out-of-distribution (OOD) detector" in (tmp_path / "folds" / "report.html").read_text()
    )
    assert verify(tmp_path / "folds")[0] == []


def test_rows_of_a_fold_without_a_detector_are_not_counted(toy_manifest):
    uniform = make_predictions(toy_manifest, np.full((30, 3), 1 / 3), ("clear", "haze", "opacity"))
    pooled = pool_predictions({1: mark_ood(uniform, np.zeros(30)), 2: uniform})
    assert compute_ood_rate(pooled)["n_images"] == len(uniform.for_split("test").table) == len(pooled.table) / 2
