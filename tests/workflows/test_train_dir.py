"""A run folder is claimed once, keeps what is said and each epoch, and vanishes when nothing was trained."""

import json
import logging

import pandas as pd
import pytest
import torch

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ImageError, OutputError
from fastcxr.inference.predict import predict
from fastcxr.metrics.predictions import read_predictions
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows import run_dir
from fastcxr.workflows.train_dir import RunDir, write_report
from fastcxr.workflows.verify import verify

PROBE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=8, strategy="linear_probe", precision="fp32"
)
ROW = {"epoch": 1, "stage": "all", "train_loss": 1.0, "best": True}


def open_folder(folder):
    return RunDir(folder, Recipe(), "fastcxr train").open(Progress())


def test_what_is_said_in_a_run_is_kept_whatever_the_callers_logging_shows(tmp_path):
    with open_folder(tmp_path / "run"):
        logging.getLogger("fastcxr").info("3 classes")
        logging.getLogger("fastcxr").warning("a patient stands in two splits")
    account = json.loads((tmp_path / "run" / "run.json").read_text())
    assert account["messages"] == [
        {"level": "info", "text": "3 classes"},
        {"level": "warning", "text": "a patient stands in two splits"},
    ]
    assert account["command"] == "fastcxr train"
    assert "torch" in account["versions"]


def test_history_gains_a_row_at_each_epoch(tmp_path):
    with open_folder(tmp_path / "run") as record:
        for epoch in (1, 2):
            record.epoch(ROW | {"epoch": epoch})
            assert pd.read_csv(tmp_path / "run" / "history.csv")["epoch"].tolist() == list(range(1, epoch + 1))


def fail_in(folder, rows=()):
    with pytest.raises(KeyError), open_folder(folder) as record:  # noqa: PT012  the trouble comes after the epochs
        for row in rows:
            record.epoch(row)
        raise KeyError("trouble")


@pytest.fixture(scope="module")
def trained(many_toys):
    """A learner whose head is fitted, how it was trained, and what it says of its images."""
    learner = make_learner(make_loaders(many_toys, PROBE), PROBE)
    return learner, train(learner, PROBE), predict(learner, many_toys)


def write_run(folder, learner, training, predictions):
    """All files of a finished run; returns the folder."""
    return write_report(folder, PROBE, learner, training, predictions).parent


@pytest.mark.parametrize("headline", ["test", "valid"])
def test_the_probabilities_beside_maps_are_those_of_predictions_csv(trained, tmp_path, headline):
    learner, training, predictions = trained
    folder = write_run(tmp_path / "run", learner, training, predictions if headline == "test" else valid(predictions))
    assert json.loads((folder / "model.json").read_text())["calibration"]["temperature"] != 1
    written = read_predictions(folder / "predictions.csv").table.set_index(["source", "path"])
    maps = pd.read_csv(folder / "saliency.csv")
    assert len(maps) > 10
    for row in maps.to_dict("records"):
        expected = written.loc[(row["source"], row["path"])]
        assert row["probability"] == pytest.approx(expected["prob_" + row["class"]], abs=1e-12)
        assert row["class"] == expected[["prob_clear", "prob_haze", "prob_opacity"]].astype(float).idxmax()[5:]


def valid(predictions):
    """The validation images alone, as of a cohort without a test split: the head was fitted on them again since."""
    return predictions.for_split("valid")


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("fastcxr.inference.explain.grad_cam", NotImplementedError("no such pooling"), "saliency maps left out"),
        ("fastcxr.inference.explain.grad_cam", torch.OutOfMemoryError("CUDA out of memory"), "saliency maps left out"),
        ("fastcxr.workflows.explain.encode_pair_jpeg", ValueError("bad mode"), "saliency maps left out"),
        ("fastcxr.workflows.run_dir.encode_thumbnail_jpeg", OSError("encoder error"), "thumbnail of clear/00000"),
        (
            "fastcxr.workflows.run_dir.measure_images",
            ImageError("empty file", "Copy it again"),
            "gray values, kinds and sizes",
        ),
    ],
)
def test_what_cannot_be_drawn_costs_a_finished_training_nothing_else(
    trained, tmp_path, monkeypatch, place, error, words
):
    def fail(*given, **options):
        raise error

    monkeypatch.setattr(place, fail)
    folder = write_run(tmp_path / "run", *trained)
    page, reason = (folder / "report.html").read_text(encoding="utf-8"), getattr(error, "problem", None) or str(error)
    assert words in page and reason in page
    for name in ("model.safetensors", "model.json", "predictions.csv", "metrics.json", "manifest.csv", "SHA256SUMS"):
        assert (folder / name).is_file(), name
    said = json.loads((folder / "run.json").read_text())["messages"]
    assert any(line["level"] == "warning" and reason in line["text"] for line in said)
    has_maps = "saliency" not in words
    assert (folder / "saliency.csv").exists() == (folder / "figures" / "maps").exists() == has_maps
    assert not verify(folder)[0]


def test_one_thumbnail_that_cannot_be_made_leaves_the_others(trained, tmp_path, monkeypatch):
    whole = write_run(tmp_path / "whole", *trained)
    bad = pd.read_csv(whole / "figures" / "images.csv")["path"][0]
    read = run_dir.read_image

    def read_most(file, depth=None):
        if str(file).endswith(bad):
            raise ImageError("empty file", "Copy it again", path=file)
        return read(file, depth)

    monkeypatch.setattr(run_dir, "read_image", read_most)
    folder = write_run(tmp_path / "run", *trained)
    pictures = [len(list((place / "figures" / "images").glob("*.jpg"))) for place in (whole, folder)]
    assert 1 <= pictures[0] - pictures[1] <= 2, "it may be a sample and a mistake"
    assert f"thumbnail of {bad} left out: empty file" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_that_trained_nothing_leaves_no_folder(tmp_path):
    fail_in(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_of_the_users_own_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    fail_in(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_run_that_trained_keeps_its_history_and_its_account(tmp_path):
    fail_in(tmp_path / "run", [ROW])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.json", "history.csv", "run.json", "state"}


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty. Choose another --out"), open_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="Choose another --out"), open_folder(tmp_path / "run"):
        pass
