"""A training in two processes gives the results of one process, and ends as one: see docs/howto/several_gpus.md."""

import json
import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from started_processes import MAX_SECONDS, find_rank, finish, start_command, start_second_rank, wait_for
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.processes import join_processes
from fastcxr.training.trainer import train

TOLERANCE = 1e-5  # sums of gradients in another order
# statistics of batch norm depend on the images of one process, unless they are frozen
FROZEN = (Stage(name="all", batch_norm="frozen"),)
RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=5, epochs=2, strategy=FROZEN, device="cpu", sampler="weighted",
    class_weights="balanced", learning_rate=1e-2,
)  # fmt: skip
# the second process writes its history and weights
SCRIPT = """
import json, sys
import pandas as pd
import torch
import tiny_network
from test_several_processes import train_in_processes
from fastcxr.config.recipe import Recipe

history, weights = train_in_processes(pd.read_csv(sys.argv[1] + "/manifest.csv", dtype=str))
torch.save(weights, sys.argv[1] + "/weights.pt")
with open(sys.argv[1] + "/history.json", "w") as file:
    json.dump(history.to_dict("list"), file)
"""


def train_alone(manifest: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Return history and weights of a training."""
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    history = train(learner, RECIPE).history.drop(columns="seconds")
    return history, learner.model.state_dict()


def train_in_processes(manifest: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    """Return history and weights of the training that this process shares with another one."""
    with join_processes():
        return train_alone(manifest)


def test_two_processes_train_as_one(toy_manifest, tmp_path, monkeypatch):
    toy_manifest.to_csv(tmp_path / "manifest.csv", index=False)
    expected_history, expected_weights = train_alone(toy_manifest)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)  # the other process sees no GPU either
    with start_second_rank(SCRIPT, str(tmp_path), monkeypatch):
        history, weights = train_in_processes(toy_manifest)
    other_weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, expected in expected_weights.items():
        assert torch.equal(weights[name], other_weights[name]), name
        assert torch.allclose(weights[name], expected, atol=TOLERANCE), name
    assert history.to_dict("list") == json.loads((tmp_path / "history.json").read_text())
    for name in history.select_dtypes("number"):
        assert np.allclose(history[name], expected_history[name], atol=TOLERANCE), name


@pytest.fixture(scope="module")
def work(tmp_path_factory, toy_folder):
    folder = tmp_path_factory.mktemp("work")
    (folder / "toys").symlink_to(toy_folder)
    return folder


TRAIN = (
    "train", NAME, "--weights", "none", "--image-size", "64", "--data", "toys", "--bs", "5", "--epochs", "150",
    "--strategy", "full", "--figures", "none", "--device", "cpu", "--lr", "1e-3", "--schedule", "constant",
)  # fmt: skip


def read_history(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "history.csv").select_dtypes("number").drop(columns="seconds")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "target", "exit_code"),
    [
        (signal.SIGTERM, "launcher", 143),
        (signal.SIGINT, "launcher", 130),
        (signal.SIGTERM, "rank 1", 143),
        (signal.SIGKILL, "rank 1", 137),
        (signal.SIGKILL, "rank 0", 137),
    ],
)
def test_a_signal_ends_all_processes_with_one_message_and_a_checkpoint(work, number, target, exit_code):
    name = f"{target}-{number}".replace(" ", "-")
    launcher = start_command(*TRAIN, "--out", name, size=2, where=work)
    wait_for(work / name / "history.csv", launcher)
    ranks = [find_rank(launcher, rank) for rank in range(2)]
    os.kill(launcher.pid if target == "launcher" else ranks[int(target[-1])], number)
    code, shown = finish(launcher)
    assert code == exit_code, shown
    assert not [rank for rank in ranks if is_running(rank)]
    reason = "another process of this training has ended" if number == signal.SIGKILL else number.name
    errors = [line for line in shown.splitlines() if "fastcxr:" in line]
    assert sum("Resume with: torchrun --nproc-per-node 2 -m fastcxr resume" in line for line in errors) == 1, shown
    assert reason in errors[0] and "Traceback" not in shown
    assert len(errors) == (2 if number == signal.SIGKILL else 1)  # the launcher names the process
    assert list((work / name / "state").glob("state-*.safetensors"))


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_run_is_resumed_by_another_number_of_processes(work):
    train_few = [*TRAIN]
    for name, value in (("--strategy", "head"), ("--epochs", "40")):
        train_few[TRAIN.index(name) + 1] = value
    whole = start_command(*train_few, "--out", "whole", size=1, where=work)
    assert finish(whole)[0] == 0
    for name, sizes in {"2-1-2": (2, 1, 2), "1-2": (1, 2)}.items():
        for number, size in enumerate(sizes):
            command = ("resume", name) if number else (*train_few, "--out", name)
            process = start_command(*command, size=size, where=work)
            if number < len(sizes) - 1:
                path, rows = work / name / "history.csv", len(read_history(work / name)) if number else 0
                wait_for(path, process)
                while len(read_history(work / name)) <= rows:
                    assert process.poll() is None
                process.send_signal(signal.SIGTERM)
            code, shown = finish(process)
            assert code == (0 if number == len(sizes) - 1 else 143), shown
        assert np.allclose(read_history(work / "whole"), read_history(work / name), atol=TOLERANCE), name
        weights, expected = (load_file(work / one / "model.safetensors") for one in (name, "whole"))
        assert max((weights[key].float() - expected[key].float()).abs().max() for key in weights) < TOLERANCE
    shown, _ = start_command("resume", "whole", size=2, where=work).communicate(timeout=MAX_SECONDS)
    assert shown == "whole/report.html\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--bs", "auto"), "FCX-E602: --batch-size auto measures"),
        (("--folds", "3"), "or all folds without torchrun with --jobs 2"),
        (("--sync-batch-norm",), "FCX-E602: --sync-batch-norm"),
        (("--lr", "1e30"), "the training loss is"),
        (("--data", "missing"), "FCX-E001"),
    ],
)
def test_an_error_is_printed_once(work, options, text):
    command = [*TRAIN]
    if options[0] in TRAIN:
        command[TRAIN.index(options[0]) + 1] = options[1]
    else:
        command += options
    code, shown = finish(start_command(*command, "--out", "failed", size=2, where=work))
    errors = [line for line in shown.splitlines() if line.startswith("fastcxr: ")]
    assert len(errors) == 1 and text in errors[0], shown
    assert code in (64, 65, 66) and "Traceback" not in shown
    assert not (work / "failed" / "report.html").exists()
