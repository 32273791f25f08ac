"""Tests of the run folder: ownership, recorded messages and epochs, and optional outputs that fail."""

import json
import logging

import pandas as pd
import pytest
import torch
from tiny_network import NAME

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ImageError, OutputError
from fastcxr.inference.predict import predict
from fastcxr.metrics.predictions import read_predictions
from fastcxr.models.bundle import load_model
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows import run_dir
from fastcxr.workflows.train_dir import RunDir, write_report
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("few_draws")

PROBE = Recipe(
    NAME, weights="none", image_size=64, batch_size=8, strategy="linear_probe", precision="fp32", figures="none",
)  # fmt: skip
ROW = {"epoch": 1, "stage": "all", "train_loss": 1.0, "best": True}


def open_folder(folder):
    return RunDir(folder, Recipe(), "fastcxr train").open(Progress())


def test_messages_are_recorded_at_any_logging_level_of_the_caller(tmp_path):
    with open_folder(tmp_path / "run"):
        logging.getLogger("fastcxr").info("3 classes")
        logging.getLogger("fastcxr").warning("a patient is in two splits")
    metadata = json.loads((tmp_path / "run" / "run.json").read_text())
    assert metadata["messages"] == [
        {"level": "info", "text": "3 classes"},
        {"level": "warning", "text": "a patient is in two splits"},
    ]
    assert metadata["command"] == "fastcxr train"
    assert "torch" in metadata["versions"]


def test_history_csv_has_a_row_after_each_epoch(tmp_path):
    with open_folder(tmp_path / "run") as output_dir:
        for epoch in (1, 2):
            output_dir.epoch(ROW | {"epoch": epoch})
            assert pd.read_csv(tmp_path / "run" / "history.csv")["epoch"].tolist() == list(range(1, epoch + 1))


def run_with_error(folder, rows=()):
    with pytest.raises(KeyError), open_folder(folder) as output_dir:  # noqa: PT012  the error follows the epochs
        for row in rows:
            output_dir.epoch(row)
        raise KeyError("error")


@pytest.fixture(scope="module")
def trained(many_toys):
    """Return a learner with a fitted head, its training result and its predictions."""
    learner = make_learner(make_loaders(many_toys, PROBE), PROBE)
    return learner, train(learner, PROBE), predict(learner, many_toys)


def write_run(folder, learner, training, predictions):
    """Write all files of a finished run; return its folder."""
    return write_report(folder, PROBE, learner, training, predictions).parent


@pytest.mark.parametrize("headline", ["test", "valid"])
def test_probabilities_in_saliency_csv_are_those_of_predictions_csv(trained, tmp_path, headline):
    learner, training, predictions = trained
    folder = write_run(
        tmp_path / "run", learner, training, predictions if headline == "test" else predictions.for_split("valid")
    )
    assert json.loads((folder / "model.json").read_text())["calibration"]["temperature"] != 1
    written = read_predictions(folder / "predictions.csv").table.set_index(["source", "path"])
    maps = pd.read_csv(folder / "saliency.csv")
    assert len(maps) > 10
    for row in maps.to_dict("records"):
        expected = written.loc[(row["source"], row["path"])]
        assert row["probability"] == pytest.approx(expected["prob_" + row["class"]], abs=1e-12)
        assert row["class"] == expected[["prob_clear", "prob_haze", "prob_opacity"]].astype(float).idxmax()[5:]


def test_a_run_states_that_its_validation_rows_are_predicted_by_the_head_fitted_without_them(trained, tmp_path):
    folder = write_run(tmp_path / "run", *trained)
    fitted_on = json.loads((folder / "model.json").read_text())["fitted_on"]
    assert fitted_on["splits"] == ["train", "valid"] and fitted_on["valid_predictions"] == "train_only_head"
    for name in ("report.html", "MODEL_CARD.md", "CLAIM.md"):
        text = (folder / name).read_text(encoding="utf-8")
        assert f"{fitted_on['images']} images of {fitted_on['patients']} patients (train and validation splits" in text
        assert "out-of-sample predictions of the head fitted without these images" in text
    manifest, written = trained[0].dls.fastcxr.manifest, read_predictions(folder / "predictions.csv")
    saved = predict(load_model(folder), manifest, splits=("valid", "test"))
    differences = abs(written.probability - saved.probability).max(axis=1)
    is_valid = (written.table["split"] == "valid").to_numpy()
    assert differences[~is_valid].max() < 1e-3 < differences[is_valid].max()


@pytest.mark.parametrize(
    ("function", "error", "expected"),
    [
        ("fastcxr.inference.explain.grad_cam", NotImplementedError("no such pooling"), "saliency maps left out"),
        ("fastcxr.inference.explain.grad_cam", torch.OutOfMemoryError("out of memory"), "saliency maps left out"),
        ("fastcxr.workflows.explain.encode_pair_jpeg", ValueError("bad mode"), "saliency maps left out"),
        ("fastcxr.workflows.run_dir.encode_thumbnail_jpeg", OSError("encoder error"), "thumbnail of clear/00000"),
        (
            "fastcxr.workflows.run_dir.measure_images",
            ImageError("empty file", "Copy it again"),
            "gray values, file types and sizes",
        ),
    ],
)
def test_an_optional_output_that_fails_is_left_out(trained, tmp_path, monkeypatch, function, error, expected):
    def fail(*given, **options):
        raise error

    monkeypatch.setattr(function, fail)
    folder = write_run(tmp_path / "run", *trained)
    page, reason = (folder / "report.html").read_text(encoding="utf-8"), getattr(error, "problem", None) or str(error)
    assert expected in page and reason in page
    for name in ("model.safetensors", "model.json", "predictions.csv", "metrics.json", "manifest.csv", "SHA256SUMS"):
        assert (folder / name).is_file(), name
    messages = json.loads((folder / "run.json").read_text())["messages"]
    assert any(line["level"] == "warning" and reason in line["text"] for line in messages)
    has_maps = "saliency" not in expected
    assert (folder / "saliency.csv").exists() == (folder / "figures" / "maps").exists() == has_maps
    assert not verify(folder)[0]


def test_a_thumbnail_that_fails_does_not_affect_the_others(trained, tmp_path, monkeypatch):
    complete = write_run(tmp_path / "complete", *trained)
    bad = pd.read_csv(complete / "figures" / "images.csv")["path"][0]
    read = run_dir.read_image

    def read_others(file, depth=None):
        if str(file).endswith(bad):
            raise ImageError("empty file", "Copy it again", path=file)
        return read(file, depth)

    monkeypatch.setattr(run_dir, "read_image", read_others)
    folder = write_run(tmp_path / "run", *trained)
    counts = [len(list((run / "figures" / "images").glob("*.jpg"))) for run in (complete, folder)]
    assert 1 <= counts[0] - counts[1] <= 2, "the image can be an example and an error"
    assert f"thumbnail of {bad} left out: empty file" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_without_epochs_leaves_no_folder(tmp_path):
    run_with_error(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_existing_empty_folder_is_not_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    run_with_error(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_run_with_an_epoch_keeps_its_folder_after_an_error(tmp_path):
    run_with_error(tmp_path / "run", [ROW])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.json", "history.csv", "run.json", "state"}


def test_a_folder_that_is_not_empty_is_rejected_unchanged(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty. Choose another `folder`"), open_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_with_the_name_of_the_folder_is_rejected(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="Choose another `folder`"), open_folder(tmp_path / "run"):
        pass
