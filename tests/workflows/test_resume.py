"""A run that is broken off is gone on with by the same command, and only by the same command on the same images."""

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
from fastcxr.training import resume
from fastcxr.training.resume import CheckpointCallback
from fastcxr.workflows.run_state import find_resumable_run, list_runs, read_run_config
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures")

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full", learning_rate=1e-3)


class Crash(BaseException):
    """Somebody pulled the plug."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("resumed") / "toys")


@pytest.fixture
def recipe(toys):
    return RECIPE.replace(data=str(toys))


@pytest.fixture(scope="module")
def whole(toys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(RECIPE.replace(data=str(toys)), folder)
    return folder


def break_off(recipe, folder, monkeypatch, batches=5, **options):
    """A run that ends after so many batches, as in a crash."""
    left = [batches]

    def after_batch(self):
        keep(self)
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    keep = CheckpointCallback.after_batch
    with monkeypatch.context() as patch:
        patch.setattr(resume, "CHECKPOINT_INTERVAL_MINUTES", 0)
        patch.setattr(CheckpointCallback, "after_batch", after_batch)
        with pytest.raises(Crash):
            run(recipe, folder, **options)


def test_a_run_that_was_broken_off_ends_as_one_that_was_left_in_peace(recipe, whole, tmp_path, monkeypatch):
    broken = tmp_path / "run"
    break_off(recipe, broken, monkeypatch, command="fastcxr train")
    assert (broken / "state" / "initial_manifest.csv").exists()
    assert not (broken / "model.safetensors").exists()
    run(recipe, broken, command="fastcxr resume")
    assert json.loads((broken / "run.json").read_text())["command"] == "fastcxr train"
    for name in ("model.safetensors", "predictions.csv", "metrics.json", "manifest.csv", "recipe.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
    histories = [pd.read_csv(place / "history.csv").drop(columns="seconds") for place in (broken, whole)]
    assert histories[0].equals(histories[1])
    assert sorted(os.listdir(broken)) == sorted(os.listdir(whole))


def test_a_finished_run_says_so_and_stays(recipe, whole, caplog):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with caplog.at_level("INFO", "fastcxr"):
        assert run(recipe, whole) == whole / "report.html"
    assert "this run is finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_a_finished_run_of_other_images_in_a_folder_of_the_same_name_is_refused(recipe, whole, tmp_path):
    other = write_toys(tmp_path / "toys", first=30)
    with pytest.raises(OutputError, match=r"a run of other images is here \(\d+ of the data .*choose another --out"):
        run(recipe.replace(data=str(other)), whole)


def test_another_recipe_is_refused_with_the_difference(recipe, tmp_path, monkeypatch):
    break_off(recipe, tmp_path / "run", monkeypatch)
    kept = sorted(os.listdir(tmp_path / "run" / "state"))
    with pytest.raises(OutputError, match="a run of another recipe is here .epochs was 2, is 3; seed was 42, is 7."):
        run(recipe.replace(epochs=3, seed=7), tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run" / "state")) == kept


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: next(data.glob("haze/*")).unlink(), "1 gone"),
        (lambda data: next(data.glob("haze/*")).rename(data / "haze" / "x.png"), "1 new .as haze/x.png., 1 gone"),
        (lambda data: next(data.glob("haze/*")).rename(data / "clear" / "y.png"), "1 new .as clear/y.png., 1 gone"),
    ],
)
def test_other_images_are_refused_with_the_difference(tmp_path, monkeypatch, change, told):
    data = write_toys(tmp_path / "toys")
    recipe = RECIPE.replace(data=str(data), split="image")
    break_off(recipe, tmp_path / "run", monkeypatch)
    change(data)
    with pytest.raises(DataError, match=f"images are not those that this run began with: {told}"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "state").exists()


def test_a_changed_picture_is_another_image(tmp_path, monkeypatch):
    from PIL import Image

    data = write_toys(tmp_path / "toys")
    recipe = RECIPE.replace(data=str(data))
    break_off(recipe, tmp_path / "run", monkeypatch)
    Image.linear_gradient("L").save(next(data.glob("haze/*")))
    with pytest.raises(DataError, match="1 changed .as haze/"):
        run(recipe, tmp_path / "run")


def test_a_folder_that_somebody_writes_into_is_refused_by_name(recipe, tmp_path, monkeypatch):
    break_off(recipe, tmp_path / "run", monkeypatch)
    with directory_lock(tmp_path / "run"):
        with pytest.raises(BusyError, match=f"process {os.getpid()} is writing into this folder") as caught:
            run(recipe, tmp_path / "run")
        assert caught.value.exit_code == 75
        assert is_locked(tmp_path / "run")
        assert find_resumable_run(iter([tmp_path / "run"])) is None
    assert not is_locked(tmp_path / "run")


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    with directory_lock(tmp_path):
        assert "has no locks (No locks available): make sure that no other process writes into it" in caplog.text


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = "import os, sys; from pathlib import Path; from fastcxr.io.lock import directory_lock\n"
    code += "with directory_lock(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / ".lock").exists()
    assert not is_locked(tmp_path)


def test_a_process_of_the_loader_does_not_hold_what_the_killed_one_held(tmp_path):
    code = "import os, sys, time; from pathlib import Path; from fastcxr.io.lock import directory_lock\n"
    code += "with directory_lock(Path(sys.argv[1])):\n    if os.fork(): os.kill(os.getpid(), 9)\n"
    code += "    time.sleep(20); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, stdout=subprocess.DEVNULL)
    assert (tmp_path / ".lock").exists()
    until = time.monotonic() + 10  # the child must have had its first moment; it lives for twenty seconds
    while is_locked(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_locked(tmp_path)


def test_the_mirror_goes_on_where_the_machine_is_gone(recipe, whole, tmp_path, monkeypatch):
    break_off(recipe, tmp_path / "first" / "run", monkeypatch, mirror=tmp_path / "drive" / "run")
    run(recipe, tmp_path / "second" / "run", mirror=tmp_path / "drive" / "run")
    history = pd.read_csv(tmp_path / "second" / "run" / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert (tmp_path / "second" / "run" / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()
    said = json.loads((tmp_path / "second" / "run" / "run.json").read_text())["messages"]
    texts = [line["text"] for line in said]
    assert [text for text in texts if text.startswith("resuming after")] == ["resuming after 1 of 2 epochs"]
    assert not (tmp_path / "drive" / "run").exists()


def test_the_newest_unfinished_run_is_found_and_folds_are_left_to_their_run(recipe, tmp_path):
    runs = tmp_path / "runs"
    for name in ("a-1", "a-2", "study/arm", "study/arm/fold-1", "done"):
        (runs / name).mkdir(parents=True)
        (runs / name / "recipe.json").write_text(recipe.replace(seed=len(name)).to_json())
    (runs / "done" / "report.html").write_text("")
    for age, name in enumerate(("study/arm", "a-1", "a-2")):
        os.utime(runs / name / "recipe.json", (1e9 - age, 1e9 - age))
    assert find_resumable_run(list_runs(runs)) == runs / "study" / "arm"
    assert find_resumable_run(list_runs(runs), recipe.replace(seed=3)) == runs / "a-1"
    assert find_resumable_run(list_runs(runs), recipe.replace(seed=99)) is None


WORDS = ["train", NAME, "--data", "toys", "--weights", "none", "--image-size", "64", "--batch-size", "6"]
WORDS += ["--epochs", "2", "--strategy", "full", "--learning-rate", "0.001"]


@pytest.fixture
def command(toys, tmp_path, monkeypatch, capfd):
    """The command line beside the toys; it is stopped by a signal after so many batches."""
    (tmp_path / "toys").symlink_to(toys)
    monkeypatch.chdir(tmp_path)
    keep = CheckpointCallback.after_batch

    def calling(*words, stop_after=None):
        left = [stop_after]

        def after_batch(self):
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    signal.raise_signal(signal.SIGTERM)
            keep(self)

        monkeypatch.setattr(CheckpointCallback, "after_batch", after_batch)
        monkeypatch.setattr(sys, "argv", ["fastcxr", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capfd.readouterr()

    return calling


def test_a_signal_ends_with_the_way_on_and_the_same_command_takes_it(command, whole):
    code, out, err = command(*WORDS, stop_after=4)
    assert (code, out) == (143, "")
    assert err.splitlines()[-1] == (f"fastcxr: stopped by SIGTERM; resume with: fastcxr resume runs/toys-{NAME}-1")
    code, out, err = command(*WORDS)
    assert (code, out) == (0, f"runs/toys-{NAME}-1/report.html\n")
    assert "(started earlier)" in err
    models = [place / "model.safetensors" for place in (whole, Path(f"runs/toys-{NAME}-1"))]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert command(*WORDS)[1] == f"runs/toys-{NAME}-2/report.html\n"  # the first is finished


def test_new_begins_anew_and_resume_takes_the_newest(command):
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
    assert (code, out) == (0, f"runs/toys-{NAME}-1/report.html\n"), "its data need not be here"
    assert "this run is finished" in err


def test_new_never_empties_a_folder(command):
    command(*WORDS, "--out", "mine", stop_after=4)
    code, _, err = command(*WORDS, "--out", "mine", "--no-resume")
    assert code == 73
    assert "the folder holds an interrupted run" in err
    assert Path("mine/state").exists()


def test_a_signal_before_training_leaves_nothing(command, monkeypatch):
    def read(*_):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr("fastcxr.workflows.train.load_dataset", read)
        code, _, err = command(*WORDS, "--out", "mine")
    assert code == 130
    assert err.splitlines()[-1].endswith("no training step is saved yet: repeat the command")
    assert not Path("mine").exists()


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(InputMissingError, match="no run was begun here"):
        read_run_config(Path(tmp_path))
