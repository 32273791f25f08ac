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
from fastcxr.training.callbacks import HistoryCallback
from fastcxr.training.checkpoints import Checkpoints

CHECKPOINT_INTERVAL_MINUTES = 3.0  # a state is written at every epoch, and within long ones this often
log = logging.getLogger("fastcxr")
WORKER_ERROR_TEXT = "DataLoader worker"  # how torch speaks of a loader's process, killed or out of shared memory
CPU_MEMORY_ERROR_TEXTS = ("can't allocate memory", "not enough memory")  # how it speaks of the CPU's


def get_random_state() -> dict[str, Any]:
    """The place of every global generator."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set every global generator to where it was."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class CheckpointCallback(Callback):
    """Writes a state at each epoch's end, within long epochs, and when somebody wants the training to stop.

    `frame`: what the whole training adds to every state (see strategies). Without `checkpoints` nothing is written,
    and a wish to stop ends the training all the same.
    """

    order = 90  # after HistoryCallback has the epoch's row

    def __init__(self, checkpoints: Checkpoints | None, history_callback: HistoryCallback):
        self.checkpoints, self.history_callback = checkpoints, history_callback
        self.stage_state: dict[str, Any] = {}
        self.saved_state: dict[str, Any] | None = None  # to be put back when the stage of it begins

    def load_state(self) -> dict[str, Any] | None:
        """The newest intact state, if there is one: the stage that it belongs to begins with it."""
        self.saved_state = self.checkpoints.read() if self.checkpoints else None
        return self.saved_state

    @property
    def first_epoch(self) -> int:
        """The epoch of the stage that comes next, from 0."""
        return self.saved_state["epoch"] if self.saved_state else 0

    def before_fit(self) -> None:
        """Weights, optimizer and smoothed loss of the state that is gone on from."""
        self.written_at = time.monotonic()
        if self.saved_state:
            for parameter in self.model.parameters():
                parameter.grad = None  # torch tells of a lost worker anywhere, in the middle of a step too
            self.model.load_state_dict(self.saved_state["network"])
            self.opt.load_state_dict(self.saved_state["optimizer"])
            _move_optimizer_state(self.opt, self.dls.device)
            smooth_loss = self.recorder.smooth_loss
            smooth_loss.count, smooth_loss.val = self.saved_state["smooth_loss"]
        elif self.checkpoints:
            self.checkpoints.validate_free_space(sum(t.nbytes for t in self.model.state_dict().values()))
            self.write(0, 0)

    def before_epoch(self) -> None:
        """Where the loaders' generators stand: they draw the order of the epoch."""
        if self.saved_state:
            set_loaders_state(self.dls, self.saved_state["loaders"])
        self.loaders_state = get_loaders_state(self.dls)

    def before_train(self) -> None:
        """Skip the batches that were learned from, and set the generators as they stood after them."""
        if self.saved_state:
            n_batches_done = self.saved_state["batch"]
            if n_batches_done:
                self.dls.train.skip_batches(n_batches_done)
                self.learn.pct_train, self.learn.train_iter = self.saved_state["progress"]
                self.history_callback.bar.advance(n_batches_done)
                self.history_callback.started -= self.saved_state["seconds"]
            set_random_state(self.saved_state["random"])
        self.first_batch, self.saved_state = (self.saved_state["batch"], None) if self.saved_state else (0, None)

    def after_batch(self) -> None:
        """Keep the state where it is time; stop where somebody wants that."""
        if self.training and self.checkpoints and (interrupt.interrupt_requested() or self.is_write_due()):
            self.write(self.epoch, self.first_batch + self.iter + 1)
        if interrupt.interrupt_requested():
            interrupt.raise_interrupted()

    def after_train(self) -> None:
        """The next epoch is a whole one."""
        if self.first_batch:
            self.dls.train.skip_batches(0)

    def after_epoch(self) -> None:
        """The epoch is in the history: the next one comes."""
        if self.checkpoints:
            self.write(self.epoch + 1, 0)

    def after_fit(self) -> None:
        """A stage that was over already: the generators stand where it left them."""
        if self.saved_state:
            set_loaders_state(self.dls, self.saved_state["loaders"])
            set_random_state(self.saved_state["random"])
        self.saved_state = None

    def is_write_due(self) -> bool:
        """Whether the last state is minutes old."""
        return time.monotonic() - self.written_at > 60 * CHECKPOINT_INTERVAL_MINUTES

    def write(self, epoch: int, batch: int) -> None:
        """Keep the state after so many whole epochs of the stage, and batches of the next."""
        smooth_loss = self.recorder.smooth_loss
        self.checkpoints.write({
            **self.stage_state,
            **self.history_callback.state_dict(),
            "epoch": epoch,
            "batch": batch,
            "seconds": read_clock(self.dls.device) - self.history_callback.started if batch else 0.0,
            "progress": (self.pct_train, self.train_iter),
            "network": self.model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "smooth_loss": (smooth_loss.count, smooth_loss.val),
            "random": get_random_state(),
            "loaders": self.loaders_state if batch else get_loaders_state(self.dls),  # of the epoch that is under way
        })  # fmt: skip
        self.written_at = time.monotonic()


def get_loaders_state(loaders: DataLoaders) -> list:
    """Where the own generators of the training and the validation loader stand."""
    return [loader.rng.getstate() for loader in (loaders.train, loaders.valid)]


def set_loaders_state(loaders: DataLoaders, state: list) -> None:
    """Set the loaders' own generators to where they were."""
    for loader, loader_state in zip((loaders.train, loaders.valid), state, strict=True):
        loader.rng.setstate(loader_state)


def fit_from_epoch(learner: Learner, first_epoch: int, epochs: int, rates: np.ndarray, callbacks: list) -> None:
    """What fastai's fit does, from epoch `first` on: its own start_epoch gives other weights, and upsets callbacks."""

    def run_epochs() -> None:
        for epoch in range(first_epoch, epochs):
            learner.epoch = epoch
            learner._with_events(learner._do_epoch, "epoch", CancelEpochException)

    learner._do_fit = run_epochs
    try:
        learner.fit(epochs, rates, cbs=callbacks)
    finally:
        del learner._do_fit


def _move_optimizer_state(optimizer, device: torch.device) -> None:
    """A state that was read lies on the CPU; the optimizer wants it beside its weights."""
    for state in optimizer.state.values():
        for name, value in state.items():
            # OptimWrapper's torch optimizer keeps its counters on the CPU, and moved the rest by itself
            if isinstance(value, torch.Tensor) and value.ndim:
                state[name] = value.to(device)


def is_worker_loss(error: Exception) -> bool:
    """Whether a process that prepared batches is gone, and with it only the batches that it had in hand.

    torch tells of it at any moment, or the pipe does from which a batch was to be fetched.
    """
    return isinstance(error, ConnectionError | EOFError) or WORKER_ERROR_TEXT in str(error)


def halve_workers(learner: Learner) -> None:
    """Half as many processes prepare batches from now on, down to none. The batches stay the same."""
    loaders = (learner.dls.train, learner.dls.valid)
    n_workers = loaders[0].fake_l.num_workers // 2
    for loader in loaders:
        loader.fake_l.num_workers = n_workers
    log.warning("a loader's process was killed, or had no shared memory: on from the last state with %d", n_workers)


@contextmanager
def explain_memory_errors(recipe: Recipe) -> Iterator[None]:
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
    error_classes = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, error_classes) or any(text in str(error) for text in CPU_MEMORY_ERROR_TEXTS)
