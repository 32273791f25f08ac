"""An image has one probability, one class and one out-of-distribution verdict in all commands and files of a run."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from device_results import assert_identical
from PIL import Image
from tiny_network import NAME
from toy_images import write_toys

from fastcxr import explain
from fastcxr.cli import models as cli
from fastcxr.cli.output import PARTIAL_EXIT_CODE
from fastcxr.config.recipe import Recipe
from fastcxr.data.image_table import make_image_table
from fastcxr.inference import torch_scorer as module
from fastcxr.inference.predict import predict
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, read_predictions
from fastcxr.models.bundle import load_model
from fastcxr.models.fitting_batches import CPU_BATCH_SIZE
from fastcxr.training import fit_ood
from fastcxr.workflows.evaluate import evaluate
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")

RECIPE = Recipe(NAME, weights="none", image_size=64, epochs=1, batch_size=8, precision="fp32")
BF16_TOLERANCE = 0.05  # of a probability, between two batch sizes or from float32


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("data") / "toys", per_class=40)


@pytest.fixture(scope="module", params=["linear_probe", pytest.param("full", marks=pytest.mark.slow)])
def finished(request, data, tmp_path_factory):
    """A run with predictions from cached features (linear_probe) or from a forward pass (full)."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_ood, "MIN_VALID_PATIENTS", 2)
        run(RECIPE.replace(strategy=request.param, data=str(data)), folder)
    return folder


@pytest.fixture
def new_images(data, tmp_path):
    """A folder with images of the run, an out-of-distribution image and an unreadable file."""
    folder = tmp_path / "new"
    folder.mkdir()
    for number, file in enumerate(sorted(data.glob("*/*.png"))[::3]):
        (folder / f"{number}.png").write_bytes(file.read_bytes())
    board = np.indices((64, 64)).sum(axis=0) // 6 % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(folder / "board.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def read_table(path):
    return pd.read_csv(path, keep_default_na=False)


def check_maps(maps, rows):
    """Compare saliency.csv with predictions of the same images, to the last digit."""
    both = maps.merge(rows, on="path", suffixes=("", "_expected"))
    assert len(both) == len(maps) > 0
    for row in both.to_dict("records"):
        if row["error"]:
            assert (row["probability"], row["error_expected"]) == ("", row["error"])
        else:
            assert float(row["probability"]) == float(row[PROBABILITY_PREFIX + row["class"]])
        assert row["predicted"] == row["predicted_expected"]
        assert row["in_distribution"] == row["in_distribution_expected"]


def test_explain_writes_the_numbers_and_the_verdicts_of_predict(finished, new_images, tmp_path):
    assert cli.predict(finished, new_images, csv=tmp_path / "a.csv") == PARTIAL_EXIT_CODE
    assert cli.explain(finished, new_images, out=tmp_path / "maps") == PARTIAL_EXIT_CODE
    rows, maps = read_table(tmp_path / "a.csv"), read_table(tmp_path / "maps" / "saliency.csv")
    check_maps(maps, rows)
    board = maps[maps["path"].str.endswith("board.png")].iloc[0]
    assert (board["predicted"], board["in_distribution"]) == ("", "no") and board["class"]
    assert rows.set_index(rows["path"].str.split("/").str[-1]).loc["broken.png", "uncertain"] == ""
    page = (tmp_path / "maps" / "explain.html").read_text(encoding="utf-8")
    assert page.count("out-of-distribution: no predicted class") == (maps["in_distribution"] == "no").sum()


def test_the_saliency_table_of_a_run_has_the_numbers_of_predictions_csv(finished):
    check_maps(read_table(finished / "saliency.csv"), read_table(finished / "predictions.csv"))


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_new_predictions_equal_those_of_the_run_in_any_batch(finished, data, monkeypatch, batch):
    monkeypatch.setattr(module, "choose_batch_size", lambda device: batch)
    expected = read_predictions(finished / "predictions.csv").for_split("test")
    files = [data / path for path in expected.table["path"]]
    found = predict(load_model(finished), make_image_table(files), splits=None)
    assert found.table["predicted"].tolist() == expected.table["predicted"].tolist()
    assert_identical(found.probability, expected.probability, cpu_tolerance=1e-6)


def test_evaluation_on_the_test_images_of_a_run_gives_the_predictions_of_the_run(finished, data, tmp_path):
    evaluate(finished, Recipe(data=str(data)), tmp_path / "evaluation")
    found, expected = (
        read_predictions(folder / "predictions.csv").for_split("test").table.set_index("path").sort_index()
        for folder in (tmp_path / "evaluation", finished)
    )
    assert found["predicted"].equals(expected["predicted"])
    columns = [name for name in expected if name.startswith(PROBABILITY_PREFIX)]
    assert_identical(found[columns], expected[columns], cpu_tolerance=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_bfloat16_predictions_are_near_those_in_float32(finished, data, monkeypatch, batch):
    classifier, table = load_model(finished), make_image_table([data])[::4]
    expected = predict(classifier, table, splits=None).probability
    monkeypatch.setattr(module, "choose_batch_size", lambda device: batch)
    found = predict(replace(classifier, precision="bf16"), table, splits=None).probability
    np.testing.assert_allclose(found, expected, rtol=0, atol=BF16_TOLERANCE)


def test_explain_scores_images_in_the_batches_of_predict(finished, data, monkeypatch):
    compute_logits = module.compute_logits

    def depend_on_batch(classifier, batch):
        logits, features = compute_logits(classifier, batch)
        return logits * (1 + len(batch)), features

    monkeypatch.setattr(module, "compute_logits", depend_on_batch)
    classifier, table = load_model(finished), make_image_table([data])[::3]
    assert len(table) > CPU_BATCH_SIZE
    expected = predict(classifier, table, splits=None).probability.max(axis=1)
    found = explain(classifier, table)
    assert_identical([saliency_map.probability for saliency_map in found.maps], expected)
