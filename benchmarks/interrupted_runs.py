"""Faults of training runs: killed processes, full disks, damaged checkpoints and others; rows of faults.py.

Each run is a new process, resumed until it is complete. Survived: the weights and the history are equal, bit for bit,
to those of an uninterrupted run.
"""

import hashlib
import math
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import FastcxrError
from fastcxr.training import resume
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.workflows import train

RECIPE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=4, epochs=4, strategy="full", learning_rate=1e-3,
    precision="fp32",
)  # fmt: skip
FASTCXR = (sys.executable, "-m", "fastcxr")
TIMEOUT_SECONDS = 300.0
SPAWN = multiprocessing.get_context("spawn")  # a fork hangs if OpenMP threads were started before


@dataclass(frozen=True)
class Row:
    """Number of injections of a fault, number of those that were survived, and a description of the loss."""

    fault: str
    injected: int
    survived: int
    lost: str


class ReferenceRun:
    """A dataset, a recipe, and the fingerprint and duration of an uninterrupted run."""

    def __init__(self, folder: Path, **changes):
        self.folder, self.n_folders = folder, 0
        self.recipe = RECIPE.replace(data=str(write_toys(folder / "toys")), **changes)
        run_folder = self.new_folder()
        process, started = self.start(run_folder), time.monotonic()
        if exit_code := wait(process):
            raise RuntimeError(f"the uninterrupted run ends with exit code {exit_code}")
        self.seconds, self.fingerprint = time.monotonic() - started, compute_fingerprint(run_folder)

    def new_folder(self) -> Path:
        """Return a run folder that does not exist yet."""
        self.n_folders += 1
        return self.folder / f"run-{self.n_folders}"

    def start(self, folder: Path, prepare: Callable[[], None] | None = None) -> SpawnProcess:
        """Start or resume a run in a new process; return when its imports are done. `prepare` is called in it."""
        ready = SPAWN.Event()
        process = SPAWN.Process(target=run_training, args=(self.recipe, folder, prepare, ready))
        process.start()
        if not ready.wait(TIMEOUT_SECONDS):
            process.kill()
        return process

    def is_equal(self, folder: Path) -> bool:
        """Return whether the complete run in this folder equals the uninterrupted one."""
        return compute_fingerprint(folder) == self.fingerprint

    def resumes(self, folder: Path) -> bool:
        """Resume the run, and return whether it equals the uninterrupted one."""
        return wait(self.start(folder)) == 0 and self.is_equal(folder)


def run_training(recipe: Recipe, folder: Path, prepare: Callable[[], None] | None, ready: Event) -> None:
    """Train with a checkpoint after every batch, without output; exit with the code of the command."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open until the process ends
    multiprocessing.set_start_method(None, force=True)  # loader workers start as in the command, not by spawn
    resume.CHECKPOINT_INTERVAL_MINUTES = 0
    ready.set()
    if prepare:
        prepare()
    try:
        train.run(recipe, folder)
    except FastcxrError as error:
        sys.exit(error.exit_code)


def wait(process: SpawnProcess) -> float:
    """Return the exit code of a process, negative for a signal, infinite if it hangs."""
    process.join(TIMEOUT_SECONDS)
    if process.exitcode is not None:
        return process.exitcode
    process.kill()
    return math.inf


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.0005)


def compute_fingerprint(folder: Path) -> str:
    """Return a hash of the weights and of every row of the history, without its seconds."""
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds").to_csv(index=False)
    return hashlib.sha256((folder / "model.safetensors").read_bytes() + history.encode()).hexdigest()


def kill_during_training(folder: Path, count: int, workers: int) -> Row:
    """Kill a run with -9 at random times, up to three times in succession, and resume it."""
    reference, rng = ReferenceRun(folder, workers=workers), random.Random(2026)
    n_kills = survived = 0
    while n_kills < count:
        run_folder, n_kills_of_run, was_killed = reference.new_folder(), 0, True
        while was_killed and n_kills_of_run < min(3, count - n_kills):
            process = reference.start(run_folder)
            time.sleep(rng.uniform(0.2, 0.95) * reference.seconds)
            process.kill()
            was_killed = wait(process) == -signal.SIGKILL
            n_kills_of_run += was_killed
        n_kills, survived = n_kills + n_kills_of_run, survived + n_kills_of_run * reference.resumes(run_folder)
    return Row(f"kill -9 in training, {workers} workers", n_kills, survived, "at most one batch, repeated")


def kill_during_write(folder: Path, count: int) -> Row:
    """Kill a run with -9 while a checkpoint is partly written, and resume it."""
    reference, survived, n_kills = ReferenceRun(folder, backbone="mobilenetv2_100", epochs=2), 0, 0
    while n_kills < count:
        run_folder = reference.new_folder()
        process, drafts = reference.start(run_folder), partial((run_folder / "state").glob, ".state-*.safetensors.*")
        wait_until(lambda process=process, drafts=drafts: list(drafts()) or not process.is_alive())
        process.kill()
        if wait(process) == -signal.SIGKILL:  # otherwise the run was complete before a draft was seen
            n_kills, survived = n_kills + 1, survived + reference.resumes(run_folder)
    return Row("kill -9 while a checkpoint is written", count, survived, "the batch of that checkpoint, repeated")


def damage_checkpoint(folder: Path, count: int) -> Row:
    """Damage the newest checkpoint of a killed run, and resume it."""
    reference, rng, survived = ReferenceRun(folder), random.Random(7), 0
    for number in range(count):
        run_folder = reference.new_folder()
        wait(reference.start(run_folder, partial(act_after_batches, 9, kill_this_process)))
        DAMAGES[number % len(DAMAGES)](max((run_folder / "state").glob("state-*.safetensors")), rng)
        survived += reference.resumes(run_folder)
    name = f"newest checkpoint damaged ({len(DAMAGES)} ways)"
    return Row(name, count, survived, "the batch between the two checkpoints, repeated")


def flip_bit(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DAMAGES = (
    flip_bit,
    lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    lambda path, rng: path.write_bytes(b""),
    lambda path, rng: path.write_text("<!doctype html><title>Quota exceeded</title>"),
    lambda path, rng: torch.save({"model": torch.ones(3)}, path),
    lambda path, rng: path.with_name(f"{path.name}.sha256").unlink(),
)


def act_after_batches(n_batches: int, action: Callable[[], None]) -> None:
    """Call `action` once, after the checkpoint of this number of batches is written."""
    original, n_left = resume.CheckpointCallback.after_batch, n_batches

    def after_batch(self) -> None:
        nonlocal n_left
        original(self)
        n_left -= 1
        if n_left == 0:
            action()

    resume.CheckpointCallback.after_batch = after_batch


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_with_signal(folder: Path, count: int, number: int) -> Row:
    """Send a signal to the command at a random time, and resume the run with `fastcxr resume`."""
    reference, rng, survived, slowest = ReferenceRun(folder), random.Random(number), 0, 0.0
    options = (
        "--weights none --image-size 64 --batch-size 4 --epochs 4 --strategy full --learning-rate 0.001 "
        "--precision fp32 --workers 2"
    )
    for _ in range(count):
        run_folder = reference.new_folder()
        words = ["train", "mobilenetv2_035", "--data", str(reference.recipe.data), "--out", str(run_folder)]
        process = subprocess.Popen(
            [*FASTCXR, *words, *options.split()], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        history = run_folder / "history.csv"
        wait_until(lambda process=process, history=history: history.exists() or process.poll() is not None)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(number)
        started = time.monotonic()
        messages = process.communicate(timeout=TIMEOUT_SECONDS)[1]
        slowest = max(slowest, time.monotonic() - started)
        is_fix_printed = f"resume {run_folder}" in messages or (run_folder / "report.html").exists()
        has_expected_code = process.returncode in (128 + number, 0)  # 0: complete before the signal
        resumed = subprocess.run([*FASTCXR, "resume", str(run_folder)], capture_output=True, check=False)
        is_complete = is_fix_printed and has_expected_code and resumed.returncode == 0
        survived += is_complete and reference.is_equal(run_folder)
    name = f"{signal.Signals(number).name} to the command"
    return Row(name, count, survived, f"nothing; ended after at most {slowest:.1f} s")


class NanCallback(Callback):
    """Replaces the loss of one training step by NaN."""

    order = -5

    def __init__(self, step: int):
        self.step = step

    def after_loss(self) -> None:
        if self.training and self.train_iter == self.step:
            self.learn.loss_grad = self.learn.loss = self.loss * math.nan


def add_nan_callback(step: int) -> None:
    """Add the callback to the learner of the next run."""
    make_learner = train.make_learner

    def make_nan_learner(*arguments):
        learner = make_learner(*arguments)
        learner.add_cb(NanCallback(step))
        return learner

    train.make_learner = make_nan_learner


def inject_nan_loss(folder: Path, count: int) -> Row:
    """Set the loss of a random step to NaN (exit 65), and resume the run."""
    reference, rng, survived = ReferenceRun(folder), random.Random(3), 0
    for _ in range(count):
        run_folder = reference.new_folder()
        exit_code = wait(reference.start(run_folder, partial(add_nan_callback, rng.randrange(1, 14))))
        survived += exit_code == 65 and reference.resumes(run_folder)
    lost = "the batch, excluded from the update; its images are named"
    return Row("NaN loss at a random step", count, survived, lost)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def fill_disk(folder: Path, count: int) -> Row:
    """Limit the size of files from a random batch on (exit 74), and resume the run without the limit."""
    reference, rng, survived = ReferenceRun(folder), random.Random(5), 0
    for _ in range(count):
        run_folder = reference.new_folder()
        exit_code = wait(reference.start(run_folder, partial(act_after_batches, rng.randrange(1, 12), limit_file_size)))
        has_intact_checkpoint = Checkpoints(run_folder / "state").read() is not None
        survived += exit_code == 74 and has_intact_checkpoint and reference.resumes(run_folder)
    name = "disk full while a checkpoint is written"
    return Row(name, count, survived, "the batch of that checkpoint, repeated")


def kill_first_worker() -> None:
    for worker in multiprocessing.active_children()[:1]:
        worker.kill()


def kill_loader_worker(folder: Path, count: int) -> Row:
    """Kill a loader worker during an epoch; the run completes without being resumed."""
    reference, rng, survived = ReferenceRun(folder, workers=2, batch_size=2), random.Random(9), 0
    for _ in range(count):
        run_folder = reference.new_folder()
        process = reference.start(run_folder, partial(act_after_batches, rng.randrange(1, 6), kill_first_worker))
        survived += wait(process) == 0 and reference.is_equal(run_folder)
    return Row("loader worker killed", count, survived, "one worker process; the run completes")


def start_second_process(folder: Path, count: int) -> Row:
    """Start a second process in a run folder while the first one trains."""
    reference, survived = ReferenceRun(folder), 0
    for _ in range(count):
        run_folder = reference.new_folder()
        # its imports can take longer than the training of the first process
        second = reference.start(run_folder, partial(wait_until, Checkpoints(run_folder / "state").has_states))
        first = reference.start(run_folder)
        exit_codes = wait(first), wait(second)
        survived += exit_codes == (0, 75) and reference.is_equal(run_folder)
    return Row("two processes in one run folder", count, survived, "nothing; the second exits with 75")


def use_unwritable_folder(folder: Path, count: int) -> Row:
    """Pass a run folder that cannot be created, or a file; the run ends before training (exit 73)."""
    reference, file, survived = ReferenceRun(folder), folder / "file", 0
    file.write_text("content")
    for number in range(count):
        process = reference.start(file if number % 2 else Path("/proc/fastcxr"))
        survived += wait(process) == 73 and file.read_text() == "content"
    return Row("run folder cannot be created", count, survived, "nothing; exit 73 before the first image is read")
