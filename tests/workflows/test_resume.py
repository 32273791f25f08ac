"""Tests of resuming: an interrupted run is resumed by the same recipe on the same images, and by no other."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.cli.main import main
from fastcxr.config.recipe import Recipe
from fastcxr.errors import BusyError, DataError, InputMissingError, OutputError
from fastcxr.io.lock import directory_lock, is_locked
from fastcxr.io.run_folders import list_runs
from fastcxr.training import resume
from fastcxr.training.resume import CheckpointCallback
from fastcxr.workflows.run_state import find_resumable_run, read_run_config
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures", "without_pages", "without_maps", "few_draws")

# on a CPU, where a resumed run has the same files
RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full", learning_rate=1e-3, device="cpu",
)  # fmt: skip


class Crash(BaseException):
    """A simulated power failure."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("resumed") / "toys")


@pytest.fixture
def recipe(toys):
    return RECIPE.replace(data=str(toys))


@pytest.fixture(scope="module")
def uninterrupted(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(RECIPE.replace(data=str(toys)), folder)
    return folder


def interrupt(recipe, folder, monkeypatch, batches=5, **options):
    """Start a run that crashes after a number of batches."""
    remaining = [batches]

    def after_batch(self):
        original(self)
        remaining[0] -= 1
        if remaining[0] < 0:
            raise Crash

    original = CheckpointCallback.after_batch
    with monkeypatch.context() as patch:
        patch.setattr(resume, "CHECKPOINT_INTERVAL_MINUTES", 0)
        patch.setattr(CheckpointCallback, "after_batch", after_batch)
        with pytest.raises(Crash):
            run(recipe, folder, **options)


def test_a_resumed_run_has_the_same_result_as_an_uninterrupted_one(recipe, uninterrupted, tmp_path, monkeypatch):
    resumed = tmp_path / "run"
    interrupt(recipe, resumed, monkeypatch, command="fastcxr train")
    assert (resumed / "state" / "initial_manifest.csv").exists()
    assert not (resumed / "model.safetensors").exists()
    run(recipe, resumed, command="fastcxr resume")
    assert json.loads((resumed / "run.json").read_text())["command"] == "fastcxr train"
    for name in ("model.safetensors", "predictions.csv", "metrics.json", "manifest.csv", "recipe.json"):
        assert (resumed / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    histories = [pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (resumed, uninterrupted)]
    assert histories[0].equals(histories[1])
    assert sorted(os.listdir(resumed)) == sorted(os.listdir(uninterrupted))


def test_a_finished_run_is_not_repeated(recipe, uninterrupted, caplog):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    with caplog.at_level("INFO", "fastcxr"):
        assert run(recipe, uninterrupted) == uninterrupted / "report.html"
    assert "this run is finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_a_finished_run_on_other_images_with_the_same_folder_name_is_rejected(recipe, uninterrupted, tmp_path):
    other = write_toys(tmp_path / "toys", first=30)
    with pytest.raises(OutputError, match=r"a run on other images \(\d+ only in the data.*choose another `folder`"):
        run(recipe.replace(data=str(other)), uninterrupted)


def test_another_recipe_is_rejected_with_the_differences(recipe, tmp_path, monkeypatch):
    interrupt(recipe, tmp_path / "run", monkeypatch)
    before = sorted(os.listdir(tmp_path / "run" / "state"))
    with pytest.raises(OutputError, match="a run with a different recipe .epochs was 2, is 3; seed was 42, is 7."):
        run(recipe.replace(epochs=3, seed=7), tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run" / "state")) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: next(data.glob("haze/*")).unlink(), "1 missing"),
        (
            lambda data: next(data.glob("haze/*")).rename(data / "haze" / "x.png"),
            "1 new .such as haze/x.png., 1 missing",
        ),
        (
            lambda data: next(data.glob("haze/*")).rename(data / "clear" / "y.png"),
            "1 new .such as clear/y.png., 1 missing",
        ),
    ],
)
def test_other_images_are_rejected_with_the_differences(tmp_path, monkeypatch, change, expected):
    data = write_toys(tmp_path / "toys")
    recipe = RECIPE.replace(data=str(data), split="image")
    interrupt(recipe, tmp_path / "run", monkeypatch)
    change(data)
    with pytest.raises(DataError, match=f"images differ from those of the interrupted run: {expected}"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "state").exists()


def test_an_image_with_changed_pixels_is_rejected(tmp_path, monkeypatch):
    from PIL import Image

    data = write_toys(tmp_path / "toys")
    recipe = RECIPE.replace(data=str(data))
    interrupt(recipe, tmp_path / "run", monkeypatch)
    Image.linear_gradient("L").save(next(data.glob("haze/*")))
    with pytest.raises(DataError, match="1 changed .such as haze/"):
        run(recipe, tmp_path / "run")


def test_a_folder_that_another_process_writes_is_rejected(recipe, tmp_path, monkeypatch):
    interrupt(recipe, tmp_path / "run", monkeypatch)
    with directory_lock(tmp_path / "run"):
        with pytest.raises(BusyError, match=f"process {os.getpid()} is writing into this folder") as caught:
            run(recipe, tmp_path / "run")
        assert caught.value.exit_code == 75
        assert is_locked(tmp_path / "run")
        assert find_resumable_run(iter([tmp_path / "run"])) is None
    assert not is_locked(tmp_path / "run")


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def raise_error(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", raise_error)
    with directory_lock(tmp_path):
        assert "has no locks (No locks available): make sure that no other process writes into it" in caplog.text


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    code = "import os, sys; from pathlib import Path; from fastcxr.io.lock import directory_lock\n"
    code += "with directory_lock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    assert not is_locked(tmp_path)


def test_a_forked_worker_does_not_keep_the_lock_of_its_killed_parent(tmp_path):
    code = "import os, sys, time; from pathlib import Path; from fastcxr.io.lock import directory_lock\n"
    code += "with directory_lock(Path(sys.argv[1])):\n    if os.fork(): os.kill(os.getpid(), 9)\n"
    code += "    time.sleep(20); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, stdout=subprocess.DEVNULL)
    assert (tmp_path / ".lock").exists()
    until = time.monotonic() + 10  # the child needs a moment to close its handle; it runs for 20 seconds
    while is_locked(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_locked(tmp_path)


def test_a_run_is_resumed_from_its_mirror_in_another_folder(recipe, uninterrupted, tmp_path, monkeypatch):
    interrupt(recipe, tmp_path / "first" / "run", monkeypatch, mirror=tmp_path / "drive" / "run")
    run(recipe, tmp_path / "second" / "run", mirror=tmp_path / "drive" / "run")
    history = pd.read_csv(tmp_path / "second" / "run" / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert (tmp_path / "second" / "run" / "model.safetensors").read_bytes() == (
        uninterrupted / "model.safetensors"
    ).read_bytes()
    said = json.loads((tmp_path / "second" / "run" / "run.json").read_text())["messages"]
    texts = [line["text"] for line in said]
    assert [text for text in texts if text.startswith("resuming after")] == ["resuming after 1 of 2 epochs"]
    assert not (tmp_path / "drive" / "run").exists()


def test_find_resumable_run_returns_the_newest_run_and_no_folds(recipe, tmp_path):
    runs = tmp_path / "runs"
    for name in ("a-1", "a-2", "study/variant", "study/variant/fold-1", "done"):
        (runs / name).mkdir(parents=True)
        (runs / name / "recipe.json").write_text(recipe.replace(seed=len(name)).to_json())
    (runs / "done" / "report.html").write_text("")
    for age, name in enumerate(("study/variant", "a-1", "a-2")):
        os.utime(runs / name / "recipe.json", (1e9 - age, 1e9 - age))
    assert find_resumable_run(list_runs(runs)) == runs / "study" / "variant"
    assert find_resumable_run(list_runs(runs), recipe.replace(seed=3)) == runs / "a-1"
    assert find_resumable_run(list_runs(runs), recipe.replace(seed=99)) is None


WORDS = ["train", NAME, "--data", "toys", "--weights", "none", "--image-size", "64", "--batch-size", "6"]
WORDS += ["--epochs", "2", "--strategy", "full", "--learning-rate", "0.001", "--device", "cpu"]


@pytest.fixture
def command(toys, tmp_path, monkeypatch, capfd):
    """Return a function that runs a command and stops it by a signal after a number of batches."""
    (tmp_path / "toys").symlink_to(toys)
    monkeypatch.chdir(tmp_path)
    original = CheckpointCallback.after_batch

    def run_command(*words, stop_after=None):
        remaining = [stop_after]

        def after_batch(self):
            if remaining[0] is not None:
                remaining[0] -= 1
                if remaining[0] == 0:
                    signal.raise_signal(signal.SIGTERM)
            original(self)

        monkeypatch.setattr(CheckpointCallback, "after_batch", after_batch)
        monkeypatch.setattr(sys, "argv", ["fastcxr", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return run_command


def test_a_signal_prints_how_to_resume_and_the_same_command_resumes(command, uninterrupted):
    code, out, err = command(*WORDS, stop_after=4)
    assert (code, out) == (143, "")
    resume = f"fastcxr resume runs/toys-{NAME}-1"
    assert err.splitlines()[-1] == f"fastcxr: interrupted (stopped by SIGTERM). Resume with: {resume}"
    code, out, err = command(*WORDS)
    assert (code, out) == (0, f"runs/toys-{NAME}-1/report.html\n")
    assert "(started earlier)" in err
    models = [folder / "model.safetensors" for folder in (uninterrupted, Path(f"runs/toys-{NAME}-1"))]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert command(*WORDS)[1] == f"runs/toys-{NAME}-2/report.html\n"  # the first is finished


def test_a_folder_in_use_is_busy_before_its_first_checkpoint(command, recipe):
    """The other process has written nothing, only its checkpoint folder, or a different recipe."""
    for state in ("new", "started", "different"):
        folder = Path(state)
        (folder / "state").mkdir(parents=True) if state != "new" else folder.mkdir()
        if state == "different":
            (folder / "recipe.json").write_text(recipe.replace(epochs=7).to_json())
        with directory_lock(folder):
            for options in ([], ["--no-resume"]):
                code, out, err = command(*WORDS, "--out", state, *options)
                assert (code, out) == (75, ""), err
                assert f"{state}: process {os.getpid()} is writing into this folder. Wait until it ends" in err
            assert command("describe", *WORDS[2:4], "--out", state)[0] == 75


def test_no_resume_starts_a_new_run_and_resume_takes_the_newest(command):
    command(*WORDS, stop_after=4)
    code, _, err = command(*WORDS, "--no-resume", stop_after=1)
    assert (code, err.splitlines()[-1].endswith(f"runs/toys-{NAME}-2")) == (143, True)
    code, out, _ = command("resume")
    assert (code, out) == (0, f"runs/toys-{NAME}-2/report.html\n")
    assert command("resume", f"runs/toys-{NAME}-1")[1] == f"runs/toys-{NAME}-1/report.html\n"
    code, _, err = command("resume")
    assert code == 66
    assert "runs/ holds no unfinished run" in err
    code, out, err = command("resume", f"runs/toys-{NAME}-1")
    assert (code, out) == (0, f"runs/toys-{NAME}-1/report.html\n")
    assert "this run is finished" in err
    Path("toys").unlink()
    code, out, err = command("resume", f"runs/toys-{NAME}-1")
    assert (code, out) == (0, f"runs/toys-{NAME}-1/report.html\n"), "the data is not needed"
    assert "this run is finished" in err


def test_no_resume_never_empties_a_folder(command):
    command(*WORDS, "--out", "mine", stop_after=4)
    code, _, err = command(*WORDS, "--out", "mine", "--no-resume")
    assert code == 73
    assert "the folder holds an interrupted run" in err
    assert Path("mine/state").exists()


def test_a_signal_before_training_leaves_no_folder(command, monkeypatch):
    def read(*_):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("fastcxr.workflows.train.load_dataset", read)
        code, _, err = command(*WORDS, "--out", "mine")
    assert code == 130
    assert err.splitlines()[-1].endswith("No training step is saved yet: repeat the command")
    assert not Path("mine").exists()


def test_a_folder_without_a_run_is_rejected(tmp_path):
    with pytest.raises(InputMissingError, match="not a run: no recipe.json"):
        read_run_config(Path(tmp_path))
