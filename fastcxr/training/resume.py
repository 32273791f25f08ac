"""Write and restore the state of a training; a resumed training gives identical results on a CPU.

The state has weights, optimizer, loss scale, schedule position, smoothed loss, and all random number generators: those
of Python, NumPy and torch, and those that shuffle the loaders.
"""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException  # pyright: ignore[reportAttributeAccessIssue]
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe
from fastcxr.errors import ModelError, TrainingError
from fastcxr.models.device_errors import explain_device_errors, is_memory_error
from fastcxr.models.devices import read_clock
from fastcxr.models.encoders import find_image_size
from fastcxr.training import interrupt
from fastcxr.training.callbacks import HistoryCallback
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.processes import average_statistics, call_on_main, find_maximum, find_processes, wait_for_all

CHECKPOINT_INTERVAL_MINUTES = 3.0  # within an epoch; a checkpoint is also written after each epoch

log = logging.getLogger("fastcxr")
WORKER_ERROR_TEXT = "DataLoader worker"  # in torch's error for a worker that was killed or lacks shared memory


def get_random_state() -> dict[str, Any]:
    """Return the states of all global random number generators."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that `get_random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        if find_processes():  # each process continues with the numbers of the main process, on its own GPU
            torch.cuda.set_rng_state(state["cuda"][0])
        else:  # the run may have started on a machine with more GPUs
            for number, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
                torch.cuda.set_rng_state(device_state, number)


class CheckpointCallback(Callback):
    """Write a checkpoint after each epoch, within long epochs and on an interrupt, and restore it on resume.

    Without `checkpoints` nothing is written; an interrupt still ends the training.
    """

    order = 90  # after HistoryCallback adds the row of the epoch

    def __init__(self, checkpoints: Checkpoints | None, history_callback: HistoryCallback):
        self.checkpoints, self.history_callback = checkpoints, history_callback
        self.stage_state: dict[str, Any] = {}  # stage number and plans, added to each checkpoint
        self.saved_state: dict[str, Any] | None = None  # restored when its stage starts

    def load_state(self) -> dict[str, Any] | None:
        """Read the newest intact checkpoint, if there is one; it is restored when its stage starts."""
        self.saved_state = call_on_main(lambda: self.checkpoints.read() if self.checkpoints else None)
        return self.saved_state

    @property
    def first_epoch(self) -> int:
        """The next epoch of the stage, from 0."""
        return self.saved_state["epoch"] if self.saved_state else 0

    def before_fit(self) -> None:
        """Restore weights, optimizer and smoothed loss, or write the first checkpoint of the stage."""
        self.written_at = time.monotonic()
        if self.saved_state:
            for parameter in self.model.parameters():
                parameter.grad = None  # a lost worker can raise mid-step and leave gradients
            self.model.load_state_dict(self.saved_state["network"])
            self.validate_groups(self.saved_state["optimizer"])
            self.opt.load_state_dict(self.saved_state["optimizer"])
            _move_optimizer_state(self.opt, self.dls.device)
            smooth_loss = self.recorder.smooth_loss
            smooth_loss.count, smooth_value = self.saved_state["smooth_loss"]
            smooth_loss.val = smooth_value.to(self.dls.device)
            self.mixed_precision.load_state_dict(self.saved_state["mixed_precision"])
        elif self.checkpoints:
            self.checkpoints.validate_free_space(sum(t.nbytes for t in self.model.state_dict().values()))
            self.write(0, 0)

    def validate_groups(self, optimizer_state: dict[str, Any]) -> None:
        """Raise ModelError for an optimizer with other layer groups, as transformers had in earlier versions."""
        saved_groups = optimizer_state.get("hypers") or optimizer_state["param_groups"]  # fastai's names or torch's
        n_saved, n_groups = len(saved_groups), len(self.opt.hypers)
        if n_saved != n_groups:
            fix = "Resume with the fastcxr version that started the run, or choose another `folder` for a new run"
            raise ModelError(f"the checkpoint has {n_saved} layer groups, expected {n_groups}", fix, code="E303")

    def before_epoch(self) -> None:
        """Restore the loaders' generators, which shuffle the epoch."""
        if self.saved_state:
            set_shuffle_state(self.dls, self.saved_state["loaders"])
        self.loaders_state = get_shuffle_state(self.dls)

    def before_train(self) -> None:
        """Skip the batches before the checkpoint and restore the generators."""
        if self.saved_state:
            n_batches_done = self.saved_state["batch"]
            if n_batches_done:
                self.dls.train.skip_batches(n_batches_done)
                self.learn.pct_train, self.learn.train_iter = self.saved_state["progress"]  # pyright: ignore[reportAttributeAccessIssue]
                self.history_callback.bar.advance(n_batches_done)
                self.history_callback.started -= self.saved_state["seconds"]
            set_random_state(self.saved_state["random"])
        self.first_batch, self.saved_state = (self.saved_state["batch"], None) if self.saved_state else (0, None)

    def after_batch(self) -> None:
        """Write a checkpoint on an interrupt or if one is due; raise Interrupted after an interrupt.

        A signal to one of several processes interrupts all of them after the same batch.
        """
        is_due = bool(self.checkpoints) and time.monotonic() - self.written_at > 60 * CHECKPOINT_INTERVAL_MINUTES
        is_due, signal_number = find_maximum([is_due, interrupt.get_signal_number()])
        if self.training and (is_due or signal_number):
            self.stop_on_non_finite_loss.read_losses()  # in all processes
            average_statistics(self.model)
            self.write(self.epoch, self.first_batch + self.iter + 1)
        if signal_number:
            wait_for_all()  # torchrun ends all processes after the first one has ended
            raise interrupt.Interrupted(signal_number)

    def after_train(self) -> None:
        """Reset the skipped batches for the next epoch."""
        if self.first_batch:
            self.dls.train.skip_batches(0)

    def after_epoch(self) -> None:
        """Write a checkpoint after the epoch."""
        self.write(self.epoch + 1, 0)

    def after_fit(self) -> None:
        """Restore the generators of a stage that was finished before the interruption."""
        if self.saved_state:
            set_shuffle_state(self.dls, self.saved_state["loaders"])
            set_random_state(self.saved_state["random"])
        self.saved_state = None

    def write(self, epoch: int, batch: int) -> None:
        """Write a checkpoint: `epoch` full epochs of the stage and `batch` batches of the next one are done."""
        if not self.checkpoints:
            return
        self.stop_on_non_finite_loss.read_losses()  # a resumed training would not repeat the batch
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
            "mixed_precision": self.mixed_precision.state_dict(),
            "smooth_loss": (smooth_loss.count, smooth_loss.val),
            "random": get_random_state(),
            "loaders": self.loaders_state if batch else get_shuffle_state(self.dls),  # at epoch start
        })  # fmt: skip
        self.written_at = time.monotonic()


def get_shuffle_state(loaders: DataLoaders) -> list:
    """Return the generator states of the training and the validation loader."""
    return [loader.rng.getstate() for loader in (loaders.train, loaders.valid)]


def set_shuffle_state(loaders: DataLoaders, state: list) -> None:
    """Restore the states that `get_shuffle_state` returned."""
    for loader, loader_state in zip((loaders.train, loaders.valid), state, strict=True):
        loader.rng.setstate(loader_state)


def fit_from_epoch(learner: Learner, first_epoch: int, epochs: int, rates: np.ndarray, callbacks: list) -> None:
    """Run fastai's fit from `first_epoch`; fit's start_epoch gives other weights and disturbs callbacks."""

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
    """Move a restored optimizer state from the CPU to the device of the weights."""
    for state in optimizer.state.values():
        for name, value in state.items():
            # scalar tensors: torch optimizers in an OptimWrapper keep their counters on the CPU
            if isinstance(value, torch.Tensor) and value.ndim:
                state[name] = value.to(device)


def is_worker_loss(error: Exception) -> bool:
    """Return whether a data loading worker died: torch raises at any moment, or the pipe of its batches does."""
    return isinstance(error, ConnectionError | EOFError) or WORKER_ERROR_TEXT in str(error)


def halve_workers(learner: Learner) -> None:
    """Halve the number of data loading workers, down to none. The batches do not change."""
    loaders = (learner.dls.train, learner.dls.valid)
    n_workers = loaders[0].fake_l.num_workers // 2
    for loader in loaders:
        loader.fake_l.num_workers = n_workers
    log.warning("a data loading worker died: resuming from the last checkpoint (workers reduced to %d)", n_workers)


@contextmanager
def explain_training_errors(recipe: Recipe, batch_size: int) -> Iterator[None]:
    """Raise TrainingError with memory-saving options if a batch in this block does not fit into memory.

    Raise DeviceError if the GPU was lost.
    """
    with explain_device_errors():
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            raise TrainingError(
                f"out of memory: {batch_size} images of {find_image_size(recipe)} px per batch, {recipe.backbone}, "
                f"precision {recipe.precision}",
                f"Pass `batch_size={max(1, batch_size // 2)}`, or a smaller `image_size`"
                + (", or `precision='auto'`" if recipe.precision == "fp32" else ""),
            ) from error
