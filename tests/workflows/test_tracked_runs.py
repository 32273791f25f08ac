"""Tests of tracked trainings: hooks of the run folder, resumed and failed runs, folds, and a killed process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_calls import BACKBONE
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_manifest
from fastcxr.data.splits import split_by_patient
from fastcxr.errors import TrackingError
from fastcxr.io.files import CHECKSUMS_FILE, read_json
from fastcxr.tracking.tensorboard import TensorBoard
from fastcxr.training.callbacks import HistoryCallback
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.train import run
from fastcxr.workflows.train_dir import write_report
from fastcxr.workflows.verify import verify

pytestmark = [
    pytest.mark.usefixtures("without_figures", "without_pages", "without_maps", "few_draws"),
    pytest.mark.needs("tensorboard"),
]
RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full", learning_rate=1e-3, device="cpu",
)  # fmt: skip
RESULTS = ("recipe.json", "model.safetensors", "predictions.csv", "metrics.json", "manifest.csv")
START_COMMAND = "import tiny_network; from fastcxr.cli.main import main; main()"
MAX_SECONDS = 120


class Crash(BaseException):
    """A simulated power failure."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("tracked") / "toys")


@pytest.fixture
def recipe(toys):
    return RECIPE.replace(data=str(toys))


def read_steps(folder, name="epochs/train_loss"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


@pytest.fixture(scope="module")
def untracked(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untracked") / "run"
    run(RECIPE.replace(data=str(toys)), folder)
    return folder


def test_a_tracked_run_that_crashed_resumes_with_each_epoch_once_and_the_results_of_an_untracked_run(
    recipe, untracked, tmp_path, monkeypatch
):
    folder = tmp_path / "run"

    def crash(self, *arguments):
        row = original(self, *arguments)
        if len(self.rows) == 1:
            raise Crash
        return row

    original = HistoryCallback.add_row
    with monkeypatch.context() as patch:
        patch.setattr(HistoryCallback, "add_row", crash)
        with pytest.raises(Crash):
            run(recipe, folder, track=["tensorboard"])
    assert read_steps(folder) == [1]
    run(recipe, folder)
    assert read_steps(folder) == read_steps(folder, "epochs/peak_learning_rate") == [1, 2]
    assert read_steps(folder, "test/accuracy") == [2]
    for name in RESULTS:
        assert (folder / name).read_bytes() == (untracked / name).read_bytes(), name
    added = set(os.listdir(folder)) - set(os.listdir(untracked))
    assert added == {"tensorboard", "tracking.json"}
    assert verify(folder)[0] == []


def test_a_tracker_that_cannot_be_started_ends_the_run_before_training_and_leaves_nothing(
    recipe, tmp_path, monkeypatch
):
    def fail(self, description):
        raise ConnectionError("no answer")

    monkeypatch.setattr(TensorBoard, "start", fail)
    with pytest.raises(TrackingError, match="TensorBoard cannot be used .ConnectionError: no answer"):
        run(recipe, tmp_path / "runs" / "first", track=["tensorboard"])
    assert not (tmp_path / "runs").exists()


def test_a_training_that_fails_before_its_first_epoch_leaves_nothing(recipe, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("training failed")

    monkeypatch.setattr("fastcxr.workflows.train.train", fail)
    with pytest.raises(ValueError, match="training failed"):
        run(recipe, tmp_path / "runs" / "first", track=["tensorboard"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_learner_trained_by_own_calls_is_tracked_with_its_report(recipe, toys, tmp_path):
    manifest = split_by_patient(read_manifest(toys), seed=recipe.seed)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    with learner.no_bar(), learner.no_logging():
        learner.fit(2)
    write_report(tmp_path / "run", recipe, learner, track=["tensorboard"])
    assert read_steps(tmp_path / "run") == [1, 2]
    assert verify(tmp_path / "run")[0] == []


@pytest.mark.slow
@pytest.mark.needs("mlflow")
def test_each_fold_is_a_tracked_run_below_that_of_the_pooled_metrics(recipe, tmp_path):
    from mlflow import MlflowClient

    from fastcxr.executors.local_pool import LocalPool

    folder = tmp_path / "runs" / "folds"
    with LocalPool(2) as pool:
        cross_validate(
            recipe.replace(backbone=BACKBONE, folds=2, epochs=1), folder, executor=pool, track=["mlflow", "tensorboard"]
        )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = {one.info.run_name: one for one in client.search_runs(["1"])}
    assert set(runs) == {"folds", "folds/fold-1", "folds/fold-2"}
    parents = {name: one.data.tags.get("mlflow.parentRunId") for name, one in runs.items()}
    whole = runs["folds"].info.run_id
    assert parents == {"folds": None, "folds/fold-1": whole, "folds/fold-2": whole}
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert "oof/accuracy" in runs["folds"].data.metrics and "test/accuracy" in runs["folds/fold-1"].data.metrics
    assert read_steps(folder / "fold-2") == [1] and read_steps(folder, "oof/accuracy") == [0]
    # the intervals of the folds are from more draws than those of this process
    assert not [fault for fault in verify(folder)[0] if CHECKSUMS_FILE in fault.problem]


@pytest.mark.slow
@pytest.mark.needs("mlflow")
@pytest.mark.needs("wandb")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes_the_same_tracked_runs_with_each_epoch_once(toys, tmp_path, number):
    from mlflow import MlflowClient
    from wandb_file import read_history

    words = [NAME, "--data", str(toys), "--weights", "none", "--strategy", "full", "--image-size", "64"]
    words += ["--batch-size", "6", "--epochs", "16", "--figures", "none", "--device", "cpu", "--out", "runs/first"]
    process = start(["train", *words, "--track", "tensorboard", "mlflow", "wandb"], tmp_path)
    history, end = tmp_path / "runs/first/history.csv", time.monotonic() + MAX_SECONDS
    while not history.exists() or len(history.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.wait(MAX_SECONDS)
    saved = read_json(tmp_path / "runs/first/tracking.json")["trackers"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = saved["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == ("RUNNING" if number == signal.SIGKILL else "KILLED")
    assert start(["resume", "runs/first"], tmp_path).wait(MAX_SECONDS) == 0
    steps = list(range(1, 17))
    assert read_steps(tmp_path / "runs/first") == steps
    assert [one.step for one in client.get_metric_history(run_id, "epochs/train_loss")] == steps
    assert client.get_run(run_id).info.status == "FINISHED"
    (file,) = (tmp_path / "wandb").glob("*/*.wandb")
    assert file.name == f"run-{saved['wandb']['run_id']}.wandb"
    assert [row["epoch"] for row in read_history(file) if "epochs/train_loss" in row] == steps


def start(words, where) -> subprocess.Popen:
    """Start the command line, with the tiny network, in a new process group."""
    paths = [Path(__file__).parents[1] / "support", Path(__file__).parents[2]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", START_COMMAND, *words], cwd=where, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
