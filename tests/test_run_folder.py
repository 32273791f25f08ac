"""A run folder is claimed once, keeps what is said and each epoch, and vanishes when nothing was trained."""

import json
import logging

import pandas as pd
import pytest

from fastcxr.errors import OutputError
from fastcxr.progress import Progress
from fastcxr.recipe import Recipe
from fastcxr.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("without_figures")

ROW = {"epoch": 1, "stage": "all", "train_loss": 1.0, "best": True}


def open_folder(folder):
    return RunFolder(folder, Recipe(), "fastcxr train").open(Progress())


def test_what_is_said_in_a_run_is_kept_whatever_the_callers_logging_shows(tmp_path):
    with open_folder(tmp_path / "run"):
        logging.getLogger("fastcxr").info("3 classes")
        logging.getLogger("fastcxr").warning("a patient stands in two splits")
    account = json.loads((tmp_path / "run" / "run.json").read_text())
    assert account["said"] == [
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
