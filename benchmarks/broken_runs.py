"""Runs that are broken off, in every way that a machine or a person has; rows of faults.py.

Each run is a process of its own, gone on with until it ends; survived is what ends with the weights and the history of
a run that was left in peace, bit for bit.
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
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from row import Row
from toys import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import FastcxrError
from fastcxr.training import learner
from fastcxr.training import resume as continuing
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.workflows.train import run

RECIPE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=4, epochs=4, strategy="full", learning_rate=1e-3,
    precision="fp32",
)  # fmt: skip
FASTCXR = (sys.executable, "-m", "fastcxr")
PATIENCE = 120.0  # seconds after which a process is taken to hang


class Bench:
    """A cohort of toys, and the fingerprint that a run of it must end with."""

    def __init__(self, place: Path, **changes):
        self.place = place
        data = place / "toys"
        data = data if data.exists() else write_toys(data)
        self.recipe = RECIPE.replace(data=str(data), **changes)
        self.count = 0
        started = time.monotonic()
        self.expected = self.finish(self.new_folder())
        self.seconds = time.monotonic() - started

    def new_folder(self) -> Path:
        """A run folder that is not there yet."""
        self.count += 1
        return self.place / f"run-{id(self)}-{self.count}"

    def start(self, folder: Path, prepare: Callable[[], None] = lambda: None) -> int:
        """A process that begins the run, or goes on with it; `prepare` happens inside. Returns its number."""
        if child := os.fork():
            return child
        code = 70
        try:
            os.setpgid(0, 0)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the process ends with it
            continuing.CHECKPOINT_INTERVAL_MINUTES = 0  # a state after every batch
            multiprocessing.set_start_method("fork", force=True)  # Linux's own for the loader's processes
            prepare()
            run(self.recipe, folder)
            code = 0
        except FastcxrError as error:
            code = error.exit_code
        finally:
            os._exit(code)

    def finish(self, folder: Path) -> str:
        """Go on until it ends; returns the fingerprint, or why there is none."""
        code = wait(self.start(folder))
        return fingerprint(folder) if code == 0 else f"exit {code}"

    def broken(self, folder: Path) -> int:
        """1 where the run ends after all as one that was left in peace."""
        return int(self.finish(folder) == self.expected)


def wait(child: int) -> int:
    """The exit code of a process, negative for a signal."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return math.inf


def fingerprint(folder: Path) -> str:
    """The weights and every row of the history, without its seconds."""
    history = pd.read_csv(folder / "history.csv").drop(columns="seconds").to_csv(index=False)
    return hashlib.sha256((folder / "model.safetensors").read_bytes() + history.encode()).hexdigest()


def killed(place: Path, count: int, workers: int) -> Row:
    """kill -9 at a random moment of training, again and again until the run ends."""
    bench, rng = Bench(place, workers=workers), random.Random(2026)
    kills = survived = 0
    while kills < count:
        folder, here = bench.new_folder(), 0
        while here < 3 and kills + here < count:
            child = bench.start(folder)
            time.sleep(rng.uniform(0.2, 0.95) * bench.seconds)
            os.kill(child, signal.SIGKILL)
            if wait(child) != -signal.SIGKILL:
                break
            here += 1
        ended = bench.broken(folder)
        kills, survived = kills + here, survived + here * ended
    return Row(f"kill -9 in training, {workers} workers", kills, survived, "at most one batch, done again")


def killed_while_writing(place: Path, count: int) -> Row:
    """kill -9 at the moment when half of a state file is there."""
    bench, survived, kills = Bench(place, backbone="mobilenetv2_100", epochs=2), 0, 0
    while kills < count:
        folder = bench.new_folder()
        child = bench.start(folder)
        while not list((folder / "state").glob(".state-*.safetensors.*")) and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.0005)
        try:
            os.kill(child, signal.SIGKILL)
            kills += wait(child) == -signal.SIGKILL
        except (ProcessLookupError, ChildProcessError):  # it had ended before a half file was seen
            continue
        survived += bench.broken(folder)
    return Row("kill -9 inside the write of a state", count, survived, "the batch whose state it was, done again")


def damaged_state(place: Path, count: int) -> Row:
    """The newest state loses a bit, half of itself, everything, or is another file."""
    bench, rng, survived = Bench(place), random.Random(7), 0
    for number in range(count):
        folder = bench.new_folder()
        wait(bench.start(folder, prepare=lambda: end_after(9)))
        newest = max((folder / "state").glob("state-*.safetensors"))
        DAMAGE[number % len(DAMAGE)](newest, rng)
        survived += bench.broken(folder)
    return Row("newest state damaged (6 kinds)", count, survived, "the batch between the two states, done again")


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DAMAGE = (
    _flip,
    lambda path, rng: path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)]),
    lambda path, rng: path.write_bytes(b""),
    lambda path, rng: path.write_text("<!doctype html><title>Quota exceeded</title>"),
    lambda path, rng: torch.save({"model": torch.ones(3)}, path),
    lambda path, rng: path.with_name(f"{path.name}.sha256").unlink(),
)


def end_after(batches: int, act: Callable = lambda: os.kill(os.getpid(), signal.SIGKILL)) -> None:
    """From now on, the state keeper does something after so many batches."""
    keep, left = continuing.CheckpointCallback.after_batch, [batches]

    def after_batch(self) -> None:
        keep(self)
        left[0] -= 1
        if left[0] == 0:
            act()

    continuing.CheckpointCallback.after_batch = after_batch


def stopped(place: Path, count: int, number: int) -> Row:
    """A signal at a random moment of the command: it ends within ten seconds, and `resume` ends the run."""
    bench, rng, survived, slowest = Bench(place), random.Random(number), 0, 0.0
    flags = ["--weights", "none", "--image-size", "64", "--batch-size", "4", "--epochs", "4", "--strategy", "full"]
    flags += ["--learning-rate", "0.001", "--precision", "fp32", "--workers", "2"]
    for _ in range(count):
        folder = bench.new_folder()
        words = ["train", "mobilenetv2_035", "--data", bench.recipe.data, "--out", str(folder), *flags]
        child = subprocess.Popen([*FASTCXR, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not (folder / "history.csv").exists() and child.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        child.send_signal(number)
        asked = time.monotonic()
        said = child.communicate(timeout=PATIENCE)[1]
        slowest = max(slowest, time.monotonic() - asked)
        told = f"resume {folder}" in said or (folder / "report.html").exists()
        ended = subprocess.run([*FASTCXR, "resume", str(folder)], capture_output=True, check=False).returncode == 0
        left = child.returncode in (128 + number, 0)  # 0: the run had ended before the signal came
        survived += told and left and ended and fingerprint(folder) == bench.expected
    name = signal.Signals(number).name
    return Row(f"{name} to the command", count, survived, f"nothing; gone after {slowest:.1f} s at most")


def not_a_number(place: Path, count: int) -> Row:
    """The loss becomes NaN at a random step, once: exit 65, and the same command goes on from before it."""
    bench, rng, survived = Bench(place), random.Random(3), 0

    class Poison(Callback):
        order = -5

        def __init__(self, step: int):
            self.step = step

        def after_loss(self) -> None:
            if self.training and self.train_iter == self.step:
                self.learn.loss_grad = self.learn.loss = self.loss * math.nan

    for _ in range(count):
        folder, step = bench.new_folder(), rng.randrange(1, 14)

        def poison(step: int = step) -> None:
            make = learner.make_learner
            strategies_run = sys.modules["fastcxr.workflows.train"]
            strategies_run.make_learner = lambda *words: _with(make(*words), Poison(step))

        code = wait(bench.start(folder, poison))
        survived += code == 65 and bench.broken(folder)
    return Row("NaN loss at a random step", count, survived, "the batch, not learned from; its images are named")


def _with(made, callback):
    made.add_cb(callback)
    return made


def full_disk(place: Path, count: int) -> Row:
    """No file may grow beyond a limit that falls at a random moment; then there is room again."""
    bench, rng, survived = Bench(place), random.Random(5), 0
    for _ in range(count):
        folder, batches = bench.new_folder(), rng.randrange(1, 12)
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # noqa: E731
        code = wait(bench.start(folder, lambda batches=batches, limit=limit: end_after(batches, limit)))
        left = list((folder / "state").glob("state-*.safetensors"))
        intact = Checkpoints(folder / "state").read() is not None
        survived += code == 74 and bool(left) and intact and bench.broken(folder)
    return Row("disk full while a state is written", count, survived, "the batch whose state found no room, done again")


def lost_workers(place: Path, count: int) -> Row:
    """A loader's process is killed in the middle of an epoch."""
    bench, rng, survived = Bench(place, workers=2, batch_size=2), random.Random(9), 0

    def kill() -> None:
        for child in multiprocessing.active_children()[:1]:
            child.kill()

    for _ in range(count):
        folder, batches = bench.new_folder(), rng.randrange(1, 6)
        code = wait(bench.start(folder, lambda batches=batches: end_after(batches, kill)))
        survived += code == 0 and fingerprint(folder) == bench.expected
    return Row("loader's process killed", count, survived, "one process of the loader; the run ends by itself")


def two_processes(place: Path, count: int) -> Row:
    """A second process in the same run folder."""
    bench, survived = Bench(place), 0
    for _ in range(count):
        folder = bench.new_folder()
        first = bench.start(folder)
        while not (folder / "state").exists():
            time.sleep(0.005)
        second = wait(bench.start(folder))
        survived += second == 75 and wait(first) == 0 and fingerprint(folder) == bench.expected
    return Row("two processes in one run folder", count, survived, "nothing; the second exits with 75")


def no_place(place: Path, count: int) -> Row:
    """A folder that cannot be written to, or a file in its place: told before anything is trained."""
    bench, survived = Bench(place), 0
    (place / "file").write_text("mine")
    for number in range(count):
        folder = place / "file" if number % 2 else Path("/proc/fastcxr")
        survived += wait(bench.start(folder)) == 73 and (place / "file").read_text() == "mine"
    return Row("no place for the run folder", count, survived, "nothing; exit 73 before the first image is read")
