"""What is done at the end of each epoch: a row of history, the best weights kept, an early stop."""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import TrainingError
from fastcxr.models.devices import read_clock
from fastcxr.progress.base import Bar, Progress
from fastcxr.training.loaders import ImageLoader
from fastcxr.training.time_budget import Deadline

log = logging.getLogger("fastcxr")
LOWER_IS_BETTER = {"valid_loss"}


class ProgressBarCallback(Callback):
    """Moves a bar on by one for each batch."""

    def __init__(self, bar: Bar):
        self.bar = bar

    def after_batch(self) -> None:
        """One batch further."""
        self.bar.advance()


class FreezeBatchNormStats(Callback):
    """Batch norm keeps its statistics while its scale and shift learn: small batches would spoil good statistics."""

    order = 61  # after fastai has put the whole network into training mode

    def before_train(self) -> None:
        """Put every batch norm into the mode of use."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class StopOnNonFiniteLoss(Callback):
    """Stops at the first loss that is no number, before a step puts it into the weights."""

    def after_loss(self) -> None:
        if self.training and not torch.isfinite(self.loss):
            log.warning(
                "images of the batch whose loss is no number: %s", ", ".join(list_batch_paths(self.dl, self.iter))
            )
            raise TrainingError(
                f"the loss is {self.loss.item()} in epoch {self.epoch + 1}, before it reached the weights",
                "Lower --learning-rate, or look at the images of that batch, which run.json names",
            )


def list_batch_paths(loader: Any, batch_number: int) -> list[str]:
    """What people call the images of a batch of the epoch that is under way; nothing for loaders that are not ours."""
    indices = loader.batch_indices(batch_number) if isinstance(loader, ImageLoader) else []
    return loader.items["path"].iloc[indices].tolist() if indices else []


class BestEpoch:
    """The best epoch so far by one validation figure, with a copy of its weights."""

    def __init__(self, monitor: str):
        self.monitor, self.value, self.epoch, self.weights = monitor, math.nan, None, None

    def is_better(self, value: float, reference: float) -> bool:
        """Whether `value` improves on `than`; anything improves on nan, nan on nothing."""
        if math.isnan(value) or math.isnan(reference):
            return not math.isnan(value)
        return value < reference if self.monitor in LOWER_IS_BETTER else value > reference

    def update(self, row: dict[str, Any], network: nn.Module) -> bool:
        """Keep the weights if this row is the best so far, or the first that can be kept at all."""
        value = row[self.monitor]
        is_improved = self.is_better(value, self.value)
        if is_improved or math.isnan(self.value):  # without any figure yet, the newest weights are the ones to keep
            self.value, self.epoch = value, row["epoch"]
            # a copy: state_dict alone would follow the training on
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return is_improved

    def restore(self, network: nn.Module) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            network.load_state_dict(self.weights)

    def summary(self) -> dict[str, Any]:
        """monitor, epoch and value of the best epoch; value None where no epoch gave a figure."""
        if math.isnan(self.value):
            log.warning("no epoch gave a validation %s: the last epoch is kept", self.monitor)
        return {
            "monitor": self.monitor,
            "best_epoch": self.epoch,
            "best_value": None if math.isnan(self.value) else self.value,
        }


class HistoryCallback(Callback):
    """Shows each batch and each epoch on a Progress, keeps the rows of history, and ends a stage out of patience."""

    order = 80  # after fastai's Recorder has this epoch's figures

    def __init__(self, best: BestEpoch, progress: Progress, n_epochs_total: int, deadline: Deadline):
        self.best, self.progress, self.n_epochs_total, self.deadline = best, progress, n_epochs_total, deadline
        self.rows: list[dict[str, Any]] = []
        self.bar_stack = ExitStack()
        self.stage: Stage | None = None

    def start_stage(self, stage: Stage) -> None:
        """The next epochs belong to `stage`, and have only each other to beat: one cycle needs time to pay."""
        self.stage, self.stage_best, self.epochs_since_best = stage, math.nan, 0

    def state_dict(self) -> dict[str, Any]:
        """What a training that goes on must know of its past: history, best epoch, patience and time that are left."""
        best = {name: getattr(self.best, name) for name in ("value", "epoch", "weights")}
        return {
            "rows": self.rows,
            "best": best,
            "patience": (self.stage_best, self.epochs_since_best),
            "spent": self.deadline.seconds_spent,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the past of such a state, in the stage that has begun."""
        self.rows = state["rows"]
        self.stage_best, self.epochs_since_best = state["patience"]
        vars(self.best).update(state["best"])
        self.deadline = Deadline(self.deadline.seconds, seconds_before=state["spent"])

    def show_history(self) -> None:
        """Whoever watches sees the epochs that lie behind."""
        log.info("going on after %d of %d epochs", len(self.rows), self.n_epochs_total)
        for row in self.rows:
            self.progress.epoch(row)

    def before_epoch(self) -> None:
        """Open the bar of this epoch."""
        self.started = read_clock(self.dls.device)
        n_batches = len(self.dls.train) + len(self.dls.valid)
        text = f"epoch {len(self.rows) + 1}/{self.n_epochs_total} ({self.stage.name})"
        self.bar = self.bar_stack.enter_context(self.progress.bar(n_batches, text))

    def after_batch(self) -> None:
        """One batch further."""
        self.bar.advance()

    def after_epoch(self) -> None:
        """Write the row, keep the best, and stop the stage when its patience is over."""
        self.bar_stack.close()
        row = self.make_epoch_row()
        self.add_row(row, self.model)
        value = row[self.best.monitor]
        is_improved = self.best.is_better(value, self.stage_best)
        self.stage_best, self.epochs_since_best = (
            (value, 0) if is_improved else (self.stage_best, self.epochs_since_best + 1)
        )
        if self.stage.patience and self.epochs_since_best >= self.stage.patience:
            log.info(
                "stage %s ends: %d epochs without a better %s",
                self.stage.name,
                self.epochs_since_best,
                self.best.monitor,
            )
            raise CancelFitException
        if self.epoch + 1 < self.n_epoch and self.deadline.seconds_left < row["seconds"]:
            log.warning("stage %s ends: another epoch does not fit into the time limit", self.stage.name)
            raise CancelFitException

    def add_row(self, row: dict[str, Any], network: nn.Module) -> None:
        """Take a row into history, and the weights with it if they are the best."""
        row["best"] = self.best.update(row, network)
        self.rows.append(row)
        self.progress.epoch(row)

    def add_fitted_row(self, stage: str, fit: Callable, learner: Learner, recipe: Recipe) -> None:
        """A row for what is fitted otherwise than by epochs."""
        started = read_clock(learner.dls.device)
        metric_values = fit(learner, recipe, self.progress)
        seconds = round(read_clock(learner.dls.device) - started, 2)
        self.add_row({"epoch": len(self.rows) + 1, "stage": stage, **metric_values, "seconds": seconds}, learner.model)

    def make_epoch_row(self) -> dict[str, Any]:
        """This epoch as a line of history.csv."""
        names = [name for name in self.recorder.metric_names if name not in ("epoch", "time")]
        metric_values = {name: float(value) for name, value in zip(names, self.recorder.values[-1], strict=True)}
        seconds = read_clock(self.dls.device) - self.started
        return {"epoch": len(self.rows) + 1, "stage": self.stage.name, **metric_values, "seconds": round(seconds, 2)}
