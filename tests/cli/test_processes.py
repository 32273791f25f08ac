"""Options and messages of a training in several processes; tests/workflows/test_several_processes.py starts them."""

import logging

import pytest
import torch

from fastcxr.cli import launch, processes
from fastcxr.cli.processes import count_gpus, is_error, is_launched, make_torchrun_command, reject_torchrun
from fastcxr.cli.workers import WorkerOptions
from fastcxr.config.recipe import Recipe
from fastcxr.errors import DeviceError, RecipeError
from fastcxr.training.interrupt import Interrupted


@pytest.mark.parametrize(("gpus", "expected"), [("all", 3), ("1", 1), ("3", 3)])
def test_all_or_some_gpus_are_used(monkeypatch, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert count_gpus(gpus) == expected


@pytest.mark.parametrize(
    ("gpus", "n_available", "error", "text"),
    [
        ("two", 3, RecipeError, "--gpus is 'two'"),
        ("0", 3, RecipeError, "Pass --gpus all"),
        ("4", 3, DeviceError, "this machine has 3. Pass --gpus 3 or less"),
        ("all", 0, DeviceError, "this machine has none. Leave --gpus out"),
    ],
)
def test_gpus_that_do_not_exist_are_an_error(monkeypatch, gpus, n_available, error, text):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_available)
    with pytest.raises(error) as caught:
        count_gpus(gpus)
    assert text in str(caught.value) and caught.value.code == "E601"


def test_workers_and_gpus_cannot_be_combined():
    with pytest.raises(RecipeError, match="--jobs and --gpus cannot be combined. Leave one of them out"):
        launch.start_prepared_training(lambda: pytest.fail("prepared"), gpus="2", workers=WorkerOptions(jobs=2))


@pytest.mark.parametrize(
    ("workers", "options"),
    [({}, ""), ({"jobs": 2}, " --jobs 2"), ({"cluster": "tcp://a:8786"}, " --cluster tcp://a:8786")],
)
def test_an_interrupted_run_is_resumed_with_its_workers(monkeypatch, tmp_path, capsys, workers, options):
    def stop(*args):
        raise Interrupted(2)

    (tmp_path / "recipe.json").touch()
    monkeypatch.setattr(launch, "train_and_print", stop)
    assert launch.start_prepared_training(lambda: (Recipe(), tmp_path), workers=WorkerOptions(**workers)) == 130
    assert capsys.readouterr().err.rstrip().endswith(f"Resume with: fastcxr resume {tmp_path}{options}")


def test_gpus_start_torchrun_once_with_the_same_arguments(monkeypatch):
    started = []
    monkeypatch.setattr(processes, "count_gpus", lambda gpus: 2)
    monkeypatch.setattr(processes, "start_processes", lambda *given: started.append(given) or 143)
    monkeypatch.setattr(processes.sys, "argv", ["fastcxr", "train", "--gpus", "2", "--data", "x"])
    assert launch.start_prepared_training(lambda: pytest.fail("prepared in the launcher"), gpus="2") == 143
    assert started == [(2, ["-m", "fastcxr", "train", "--gpus", "2", "--data", "x"])]
    monkeypatch.setenv(processes.TORCHRUN_VARIABLE, "1")
    monkeypatch.setattr(launch, "run_in_processes", lambda *given: 7)
    assert launch.start_prepared_training(lambda: (Recipe(), "x"), gpus="2") == 7 and len(started) == 1


def test_a_command_with_several_trainings_is_rejected_in_torchrun(monkeypatch):
    reject_torchrun("all variants of a study")
    assert not is_launched()
    monkeypatch.setenv(processes.TORCHRUN_VARIABLE, "1")
    with pytest.raises(RecipeError, match="E602.*torchrun cannot run all variants"):
        reject_torchrun("all variants of a study")


@pytest.mark.parametrize(("n_machines", "expected"), [("1", ""), ("2", "--nnodes 2 ")])
def test_the_command_to_resume_starts_as_many_processes(monkeypatch, n_machines, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("GROUP_WORLD_SIZE", n_machines)
    command = make_torchrun_command(["resume", "my run"])
    assert command.startswith(f"torchrun {expected}--nproc-per-node 4 ") and command.endswith("fastcxr resume 'my run'")


def test_other_processes_log_errors_only():
    assert [is_error(logging.makeLogRecord({"levelno": level})) for level in (20, 30, 40)] == [False, False, True]
