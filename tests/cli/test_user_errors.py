"""Errors of users are one line with a fix, and no file of the user is changed."""

import csv
import subprocess
import sys

import pytest
from cli_calls import TRAIN, fastcxr
from toy_images import write_toys

from fastcxr.cli.app import app

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture
def damaged(tmp_path):
    data = write_toys(tmp_path / "toys", per_class=20)
    victims = sorted((data / "clear").glob("*.png"))
    victims[0].write_bytes(b"")
    victims[1].write_bytes(b"<html>404</html>")
    victims[2].write_bytes(victims[2].read_bytes()[:700])
    return data


def test_unreadable_files_stop_training_before_the_first_step_and_all_are_listed(call, damaged, tmp_path):
    done = call(*TRAIN, "--data", damaged, "--out", tmp_path / "run")
    assert done.returncode == 65
    assert [code in done.stderr for code in ("FCX-E101", "FCX-E102", "FCX-E103")] == [True] * 3
    assert "--skip-bad" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "the same command works after the files are repaired"


def test_unreadable_files_can_be_skipped_and_are_counted_in_the_report(call, damaged, tmp_path):
    done = call(*TRAIN, "--data", damaged, "--skip-bad", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader((tmp_path / "run" / "skipped.csv").open(newline="")))) == 3
    assert "3 images left out" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "fix"),
    [
        (["train", "mobilenetv2_035", "--los", "focal"], 64, "Did you mean --loss"),
        (["train", "mobilenetv2_035", "--loss", "focl"], 64, 'Did you mean "focal"'),
        (["train", "mobilenetv2_035", "--strategy", "Head", "--data", "TOYS"], 64, 'Did you mean "head"'),
        (["train", "mobilenetv2_035", "--strategy", "mine", "--data", "TOYS"], 64, 'Choose from: "lp_ft"'),
        (["train", "mobilenetv2_035", "--epochs", "0"], 64, "at least 1"),
        (["trainn"], 64, 'Did you mean "train"'),
        (["train", "resnet5O", "--data", "TOYS", "--weights", "none"], 64, "Did you mean 'resnet50'"),
        (["train", "mobilenetv2_035", "--data", "nowhere"], 66, "no such file or folder. Check the name"),
        (["train", "mobilenetv2_035", "--data", "TOYS", "--weights", "nowhere.pth"], 66, "Pass --weights"),
        (
            ["train", "mobilenetv2_035", "--data", "TOYS", "--device", "cuda:99", "--weights", "none"],
            64,
            "--device auto",
        ),
        (["train", "mobilenetv2_035", "--data", "TOYS", "--out", "TOYS"], 73, "Choose another --out"),
        (["report", "nowhere"], 66, "Pass the folder of a finished run"),
        (["predict", "nowhere", "a.png"], 66, "Pass the folder of a finished run"),
        (["predict", "nowhere"], 66, "Pass files or folders"),
        (["verify", "nowhere"], 66, "`fastcxr list` lists the runs in runs/"),
        (["explain", "nowhere", "a.png"], 66, "nowhere: the folder does not exist"),
        (["evaluate", "nowhere", "--data", "TOYS"], 66, "nowhere: the folder does not exist"),
        (["compare", "nowhere", "nothing"], 66, "nowhere: the folder does not exist"),
        (["merge", "nowhere"], 66, "Pass the folder of a run with folds or sources, or the folder FILE.shards"),
        (["resume", "nowhere"], 66, "nowhere: the folder does not exist"),
        (["report"], 64, "no FOLDER given. Example: fastcxr report runs/first"),
        (["predict"], 64, "no FOLDER given. Example: fastcxr predict runs/first image.png"),
        (["explain"], 64, "no FOLDER given. Example: fastcxr explain runs/first image.png"),
        (["verify"], 64, "no RUN given. Example: fastcxr verify runs/first"),
        (["evaluate"], 64, "no RUN given. Example: fastcxr evaluate runs/first --data my_xrays"),
        (["run"], 64, "no SCRIPT given. Example: fastcxr run recipes/rachha2020.py resnet101"),
        (["pack", "TOYS"], 64, "--to has no value. Pass --to VALUE"),
        (["train", "--lr"], 64, "--lr has no value. Pass --lr VALUE"),
        (["models", "no_such_backbone"], 66, "Pass a shorter part"),
        (["models", "rad-dinoo"], 66, "Did you mean 'rad-dino'?"),
        (["models", "RAD-DINO", "--chest"], 66, "Did you mean 'rad-dino'?"),
    ],
)
def test_every_error_is_one_line_with_a_fix(call, words, code, fix, toy_folder, tmp_path):
    done = call(*[str(toy_folder) if word == "TOYS" else word for word in words], where=tmp_path)
    assert done.returncode == code, done.stderr
    assert fix in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*"))


def test_an_error_leaves_no_file_in_the_folder_of_the_dataset(call, damaged):
    before = sorted(damaged.rglob("*"))
    for options in ([], ["--out", "inside"], ["--out", "clear/inside"]):
        assert call(*TRAIN, "--data", ".", *options, where=damaged).returncode == 65
        assert sorted(damaged.rglob("*")) == before


def test_an_error_shows_no_traceback(tmp_path):
    done = fastcxr("train", "mobilenetv2_035", "--data", "nowhere", where=tmp_path)
    assert done.returncode == 66
    assert "Traceback" not in done.stderr


def test_a_missing_folder_is_reported_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; from fastcxr.cli.main import main; sys.argv = ['fastcxr', 'train', '--data', 'nowhere']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["66", "False"], done.stderr


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["pack", "--to", "c.h5"], "Pass a folder, a CSV or a public dataset after pack"),
        (["pack", "nowhere", "--to", "c.h5"], "no such file or folder"),
        (["train", "--data", "toys", "--classes", "clearr", "--weights", "none"], "did you mean 'clear'?"),
        (["train", "toys"], "Did you mean --data toys?"),
        (["train", "./toys"], "Did you mean --data ./toys?"),
        (["train", "resnet18", "toys"], "Did you mean --data toys?"),
        (["train", "toys", "resnet18"], "toys is not a backbone. Did you mean: train resnet18 --data toys?"),
        (["train", "toys", "resnet18", "--epochs", "1"], "Did you mean: train resnet18 --data toys?"),
        (["train", "toys", "./other", "resnet18"], "Did you mean: train resnet18 --data toys ./other?"),
        (["describe", "toys"], "Did you mean --data toys?"),
        (["scout", "./toys"], "Did you mean --data ./toys?"),
        (["train", "--data", "toys", "resnet18"], "Place the name of a backbone before the options: resnet18 --data"),
        (["evaluate", "--data", "toys", "run"], "Place it before the options"),
        (["train", "--data", ""], "--data is empty, perhaps because a shell variable is not set. Pass a folder"),
        (["train", "--data", "toys", "--data", " "], "--data is empty"),
        (["train", "--test-source", ""], "--test-source is empty"),
        (["describe", "--data", ""], "--data is empty"),
        (["scout", "--data", ""], "--data is empty"),
        (["evaluate", "nowhere", "--data", ""], "--data is empty"),
        (["pack", "", "--to", "c.h5"], "--data is empty"),
    ],
)
def test_an_invalid_option_of_the_dataset_is_an_error_of_one_line(call, toy_folder, words, fix):
    before = set(toy_folder.parent.iterdir())
    done = call(*words, where=toy_folder.parent)
    assert done.returncode in (64, 66)
    assert set(toy_folder.parent.iterdir()) == before
    assert fix in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_no_two_parameters_of_a_command_have_the_same_option(command):
    arguments = app[command].assemble_argument_collection()
    names = [name for argument in arguments for name in argument.names if name != "*"]  # *: a class of options
    assert len(names) == len(set(names))


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_named_images_that_do_not_exist_are_an_error_before_any_image_is_read(call, finished, tmp_path, command):
    run, data, _ = finished
    done = call(command, run, data, "a.png", "b.png", where=tmp_path)
    assert done.returncode == 66
    assert "2 of 3 paths do not exist: a.png, b.png. Correct these paths, or leave them out" in done.stderr
    assert not done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["describe"], ["audit"], ["evaluate", "RUN"], ["train"], ["scout"]])
def test_all_datasets_that_do_not_exist_are_named(call, finished, tmp_path, command):
    words = [finished[0] if word == "RUN" else word for word in command]
    done = call(*words, "--data", finished[1], "./a", "./b", where=tmp_path)
    assert done.returncode == 66
    assert "2 of 3 paths do not exist: a, b. Check the name given as --data" in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_a_misspelt_run_is_an_error_that_names_the_existing_run(call, finished, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(finished[0])
    for words, expected in (
        (["predict", "runs/fir", "a.png"], "a finished run or of an export"),
        (["report", "runs/fir"], "a finished run"),
        (["compare", "runs/first", "runs/fir"], "a finished run"),
    ):
        done = call(*words, where=tmp_path)
        fix = f"Pass the folder of {expected}, such as runs/first. `fastcxr list` lists all runs"
        assert f"runs/fir: the folder does not exist. {fix}" in done.stderr


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("CUDA error: unspecified launch failure", "the GPU was lost (unspecified launch failure)"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory. End other programs that use this memory"),
    ],
)
def test_an_error_of_the_gpu_is_one_line_of_any_command(call, finished, monkeypatch, message, text):
    def fail(name: str) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr("fastcxr.models.bundle.find_device", fail)
    done = call("predict", finished[0], finished[1])
    assert done.returncode == 71
    assert text in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
