"""What a training must remember to go on as if it had never stopped, taken after a batch and put back before one.

Bit for bit on a CPU, because everything that draws or counts is in it: weights, optimizer, the place in the schedule,
the smoothed loss, Python's, NumPy's and torch's generators, and those with which each loader shuffles.
"""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe
from fastcxr.errors import TrainingError
from fastcxr.models.devices import read_clock
from fastcxr.training import interrupt
from fastcxr.training.callbacks import EpochReport
from fastcxr.training.checkpoints import Checkpoints

MINUTES_APART = 3.0  # a state is written at every epoch, and within long ones this often
log = logging.getLogger("fastcxr")
WORKER = "DataLoader worker"  # how torch speaks of a loader's process, killed or out of shared memory
NO_MEMORY = ("can't allocate memory", "not enough memory")  # how it speaks of the CPU's


def take_random_state() -> dict[str, Any]:
    """The place of every global generator."""
    found = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def put_random_state(state: dict[str, Any]) -> None:
    """Set every global generator to where it was."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class StateKeeper(Callback):
    """Writes a state at each epoch's end, within long epochs, and when somebody wants the training to stop.

    `frame`: what the whole training adds to every state (see strategies). Without `checkpoints` nothing is written,
    and a wish to stop ends the training all the same.
    """

    order = 90  # after EpochReport has the epoch's row

    def __init__(self, checkpoints: Checkpoints | None, report: EpochReport):
        self.checkpoints, self.report = checkpoints, report
        self.frame: dict[str, Any] = {}
        self.found: dict[str, Any] | None = None  # to be put back when the stage of it begins

    def find(self) -> dict[str, Any] | None:
        """The newest intact state, if there is one: the stage that it belongs to begins with it."""
        self.found = self.checkpoints.read() if self.checkpoints else None
        return self.found

    @property
    def first_epoch(self) -> int:
        """The epoch of the stage that comes next, from 0."""
        return self.found["epoch"] if self.found else 0

    def before_fit(self) -> None:
        """Weights, optimizer and smoothed loss of the state that is gone on from."""
        self.written = time.monotonic()
        if self.found:
            for parameter in self.model.parameters():
                parameter.grad = None  # torch tells of a lost worker anywhere, in the middle of a step too
            self.model.load_state_dict(self.found["network"])
            self.opt.load_state_dict(self.found["optimizer"])
            _to_device(self.opt, self.dls.device)
            smooth = self.recorder.smooth_loss
            smooth.count, smooth.val = self.found["smooth_loss"]
        elif self.checkpoints:
            self.checkpoints.check_room(sum(t.nbytes for t in self.model.state_dict().values()))
            self.write(0, 0)

    def before_epoch(self) -> None:
        """Where the loaders' generators stand: they draw the order of the epoch."""
        if self.found:
            put_loaders_state(self.dls, self.found["loaders"])
        self.loaders = take_loaders_state(self.dls)

    def before_train(self) -> None:
        """Skip the batches that were learned from, and set the generators as they stood after them."""
        if self.found:
            done = self.found["batch"]
            if done:
                self.dls.train.skip(done)
                self.learn.pct_train, self.learn.train_iter = self.found["progress"]
                self.report.bar.advance(done)
                self.report.started -= self.found["seconds"]
            put_random_state(self.found["random"])
        self.first_batch, self.found = (self.found["batch"], None) if self.found else (0, None)

    def after_batch(self) -> None:
        """Keep the state where it is time; stop where somebody wants that."""
        if self.training and self.checkpoints and (interrupt.is_wanted() or self.is_time()):
            self.write(self.epoch, self.first_batch + self.iter + 1)
        if interrupt.is_wanted():
            interrupt.stop()

    def after_train(self) -> None:
        """The next epoch is a whole one."""
        if self.first_batch:
            self.dls.train.skip(0)

    def after_epoch(self) -> None:
        """The epoch is in the history: the next one comes."""
        if self.checkpoints:
            self.write(self.epoch + 1, 0)

    def after_fit(self) -> None:
        """A stage that was over already: the generators stand where it left them."""
        if self.found:
            put_loaders_state(self.dls, self.found["loaders"])
            put_random_state(self.found["random"])
        self.found = None

    def is_time(self) -> bool:
        """Whether the last state is minutes old."""
        return time.monotonic() - self.written > 60 * MINUTES_APART

    def write(self, epoch: int, batch: int) -> None:
        """Keep the state after so many whole epochs of the stage, and batches of the next."""
        smooth = self.recorder.smooth_loss
        self.checkpoints.write({
            **self.frame,
            **self.report.state(),
            "epoch": epoch,
            "batch": batch,
            "seconds": read_clock(self.dls.device) - self.report.started if batch else 0.0,
            "progress": (self.pct_train, self.train_iter),
            "network": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "smooth_loss": (smooth.count, smooth.val),
            "random": take_random_state(),
            "loaders": self.loaders if batch else take_loaders_state(self.dls),  # of the epoch that is under way
        })  # fmt: skip
        self.written = time.monotonic()


def take_loaders_state(loaders: DataLoaders) -> list:
    """Where the own generators of the training and the validation loader stand."""
    return [loader.rng.getstate() for loader in (loaders.train, loaders.valid)]


def put_loaders_state(loaders: DataLoaders, state: list) -> None:
    """Set the loaders' own generators to where they were."""
    for loader, each in zip((loaders.train, loaders.valid), state, strict=True):
        loader.rng.setstate(each)


def fit_from(learner: Learner, first: int, epochs: int, rates: np.ndarray, callbacks: list) -> None:
    """What fastai's fit does, from epoch `first` on: its own start_epoch gives other weights, and upsets callbacks."""

    def go_on() -> None:
        for epoch in range(first, epochs):
            learner.epoch = epoch
            learner._with_events(learner._do_epoch, "epoch", CancelEpochException)

    learner._do_fit = go_on
    try:
        learner.fit(epochs, rates, cbs=callbacks)
    finally:
        del learner._do_fit


def _to_device(optimizer, device: torch.device) -> None:
    """A state that was read lies on the CPU; the optimizer wants it beside its weights."""
    for state in optimizer.state.values():
        for name, value in state.items():
            # OptimWrapper's torch optimizer keeps its counters on the CPU, and moved the rest by itself
            if isinstance(value, torch.Tensor) and value.ndim:
                state[name] = value.to(device)


def lost_worker(error: Exception) -> bool:
    """Whether a process that prepared batches is gone, and with it only the batches that it had in hand.

    torch tells of it at any moment, or the pipe does from which a batch was to be fetched.
    """
    return isinstance(error, ConnectionError | EOFError) or WORKER in str(error)


def take_fewer_workers(learner: Learner) -> None:
    """Half as many processes prepare batches from now on, down to none. The batches stay the same."""
    loaders = (learner.dls.train, learner.dls.valid)
    workers = loaders[0].fake_l.num_workers // 2
    for loader in loaders:
        loader.fake_l.num_workers = workers
    log.warning("a loader's process was killed, or had no shared memory: on from the last state with %d", workers)


@contextmanager
def explaining_memory(recipe: Recipe) -> Iterator[None]:
    """Where a batch does not fit into memory, say what would. Raises TrainingError for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory: {recipe.batch_size} images of {recipe.image_size} px at a time, {recipe.backbone}, "
            f"precision {recipe.precision}",
            f"Give --batch-size {max(1, recipe.batch_size // 2)}, a smaller --image-size, or --precision bf16",
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the CPU or a GPU."""
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in NO_MEMORY)
