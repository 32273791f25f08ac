"""A path that is not the folder of a finished run: the error names other runs."""

import os

import pytest

from fastcxr.errors import InputMissingError
from fastcxr.io.run_folders import require_run_file


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Write a finished run with a model; `age` in seconds."""
    monkeypatch.chdir(tmp_path)

    def write(name, age=0, model="model.json"):
        (tmp_path / name).mkdir(parents=True)
        for file in ("recipe.json", "report.html", model):
            (tmp_path / name / file).write_text("{}")
        os.utime(tmp_path / name / model, (1_000_000 - age, 1_000_000 - age))

    return write


def catch(folder, name="model.json") -> str:
    with pytest.raises(InputMissingError) as caught:
        require_run_file(folder, name)
    assert caught.value.exit_code == 66
    return str(caught.value)


def test_the_three_newest_runs_are_named(make_run):
    for number in range(5):
        make_run(f"runs/run-{number}", age=number)
    make_run("runs/without-model", model="predictions.csv")
    expected = "such as runs/run-0, runs/run-1 or runs/run-2. `fastcxr list` lists all runs"
    assert catch("runs/fir") == (
        f"FCX-E304 runs/fir: the folder does not exist. Pass the folder of a finished run, {expected}"
    )
    assert catch("nothing").endswith(expected)
    assert catch("runs").startswith("FCX-E304 runs: not a run: no model.json in this folder. ")
    assert "runs/run-0/report.html: a file, expected a run folder. Pass" in catch("runs/run-0/report.html")


def test_a_run_beside_the_folder_and_a_variant_of_a_study_are_named(make_run):
    make_run("trained here/one")
    make_run("runs/study/resnet")
    assert "such as trained here/one. `fastcxr list 'trained here'` lists all" in catch("trained here/two")
    assert "such as runs/study/resnet. `fastcxr list runs/study` lists all" in catch("runs/study/densenet")


def test_without_runs_the_command_that_lists_them_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catch("nowhere").endswith("Pass the folder of a finished run. `fastcxr list` lists the runs in runs/")


def test_a_run_without_the_file_is_a_run(make_run):
    make_run("runs/folds", model="folds.csv")
    assert "runs/folds: no model.json in this folder. Pass" in catch("runs/folds")
