"""The command tune: fixed and searched options, refused options, the result and an interrupt."""

import json

import pandas as pd
import pytest
from tuning_toys import write_tuning_toys

from fastcxr.training.interrupt import Interrupted
from fastcxr.workflows import tune as tune_module

pytestmark = [pytest.mark.needs("optuna"), pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")]

OPTIONS = ["tune", "tiny_test_resnet", "--weights", "none", "--strategy", "linear_probe", "--image-size", "64"]
OPTIONS += ["--device", "cpu", "--figures", "none"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tuning_toys(tmp_path_factory.mktemp("tuned") / "toys")


@pytest.mark.needs("tensorboard")
def test_a_tuning_prints_trials_metrics_and_next_steps_and_is_continued_without_its_folder(call, data, tmp_path):
    words = [*OPTIONS, "--data", data, "--loss", "auto", "--hflip-tta"]  # both have their default values
    done = call(*words, "--trials", 1, "--no-winner", where=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tune-labels-tiny_test_resnet-1"
    assert done.stdout.strip() == "runs/tune-labels-tiny_test_resnet-1/tuning.csv"
    lines = done.stderr.splitlines()
    assert "fixed: image_size, hflip_tta, loss" in lines
    assert [line for line in lines if line.startswith("search ")] == [
        "search label_smoothing: 0.01 to 0.3 with loss label_smoothing", "search class_weights: none, balanced",
    ]  # fmt: skip
    assert "next: train and test the best trial: fastcxr tune tiny_test_resnet" in done.stderr
    assert not (folder / "best").exists()
    done = call(*words, "--trials", 2, "--track", "tensorboard", "--json", where=tmp_path)
    document = json.loads(done.stdout)
    assert document["folder"] == "runs/tune-labels-tiny_test_resnet-1" and len(document["trials"]) == 2
    assert document["winner"]["metrics"]["test"]["n_images"] == 18
    assert pd.read_csv(folder / "tuning.csv")["trial"].tolist() == [1, 2]
    tracking = json.loads((folder / "best" / "tracking.json").read_text())
    assert tracking["trackers"]["tensorboard"].pop("is_complete")
    (folder / "best" / "tracking.json").write_text(json.dumps(tracking))
    sent = call("track", folder / "best", "--json", where=tmp_path)
    assert json.loads(sent.stdout)["complete"] == ["tensorboard"], "the state after the call"
    assert "macro AUROC" in done.stderr and "see the trials: " not in done.stderr  # without figures


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "2"], "each trial depends on the results of the trials before it"),
        (["--cluster", "tcp://localhost:1"], "each trial depends on the results of the trials before it"),
        (["--folds", "5"], "tuning cannot be combined with --folds"),
        (["--search"], "--search has no value"),
        (["--search", "learning_rate"], "FCX-E741: learning_rate cannot be searched with strategy linear_probe"),
        (["--search", "image_size"], "image_size cannot be fixed and searched. Leave the option out, or remove"),
    ],
)
def test_options_that_cannot_be_tuned_are_refused_in_one_line(call, data, tmp_path, words, message):
    done = call(*OPTIONS, "--data", data, *words, "--out", tmp_path / "out")
    assert done.returncode == 64 and message in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_help_does_not_show_options_that_are_always_refused(call):
    text = call("tune", "--help").stdout
    assert "--search" in text and "--folds" in call("train", "--help").stdout
    assert not [
        name for name in ("--folds", "--fold ", "--leave-one-source-out", "--jobs", "--cluster") if name in text
    ]


def test_an_interrupt_states_how_to_resume(call, data, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise Interrupted(15)

    words = [*OPTIONS, "--data", data, "--out", tmp_path / "out"]
    monkeypatch.setattr(tune_module, "evaluate_trial", lambda *arguments: 0.5)
    call(*words, "--trials", 1, "--no-winner")
    monkeypatch.setattr(tune_module, "evaluate_trial", interrupt)
    done = call(*words)
    assert done.returncode == 143
    assert "Finished trials are kept. Resume with: fastcxr tune tiny_test_resnet" in done.stderr
    done = call(*words[:-1], tmp_path / "new")
    assert "No trial is finished yet. Resume with: fastcxr tune tiny_test_resnet" in done.stderr
