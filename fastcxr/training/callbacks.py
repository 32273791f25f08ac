"""fastai callbacks for history, best weights, early stopping, progress bars and batch norm."""

import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

from fastai.callback.core import Callback, CancelFitException  # pyright: ignore[reportAttributeAccessIssue]
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.models.devices import read_clock
from fastcxr.progress.base import Progress
from fastcxr.training.processes import decide
from fastcxr.training.time_budget import Deadline

log = logging.getLogger("fastcxr")
LOWER_IS_BETTER = {"valid_loss"}


class FreezeBatchNormStats(Callback):
    """Keep all batch-norm statistics while scale and shift are trained: small batches estimate them badly."""

    order = 61  # after fastai sets the whole network to training mode

    def before_train(self) -> None:
        """Set every batch-norm layer to evaluation mode."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


class BestEpoch:
    """The best epoch so far by one validation metric, with a copy of its weights."""

    def __init__(self, monitor: str):
        self.monitor, self.value, self.epoch, self.weights = monitor, math.nan, None, None

    def is_better(self, value: float, reference: float) -> bool:
        """Return whether `value` improves on `reference`. Any number improves on NaN; NaN never improves."""
        if math.isnan(value) or math.isnan(reference):
            return not math.isnan(value)
        return value < reference if self.monitor in LOWER_IS_BETTER else value > reference

    def update(self, row: dict[str, Any], network: nn.Module) -> bool:
        """Keep the weights if this row is the best so far; while all values are NaN, keep the newest weights."""
        value = row[self.monitor]
        is_improved = self.is_better(value, self.value)
        if is_improved or math.isnan(self.value):
            self.value, self.epoch = value, row["epoch"]
            # clone: state_dict returns views of the weights that training changes
            self.weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
        return is_improved

    def restore(self, network: nn.Module) -> None:
        """Load the best weights into the network."""
        if self.weights is not None:
            network.load_state_dict(self.weights)

    def summary(self) -> dict[str, Any]:
        """Return monitor, epoch and value of the best epoch; the value is None if the metric was NaN in all epochs."""
        is_undefined = math.isnan(self.value)
        if is_undefined:
            log.warning("validation %s is NaN in all epochs: the weights of the last epoch are kept", self.monitor)
        best_value = None if is_undefined else self.value
        return {"monitor": self.monitor, "best_epoch": self.epoch, "best_value": best_value}


class FitHistory(Callback):
    """Record one row per epoch of all own calls of fit; fastai's recorder keeps those of the last call."""

    order = 80  # after fastai's Recorder has the metrics of the epoch

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.max_rates: dict[str, float] = {}
        self.n_fits, self.started = 0, None

    def before_train(self) -> None:
        """Start the clock; get_preds and validate do not call this."""
        self.started = read_clock(self.dls.device)

    def after_epoch(self) -> None:
        """Add the row of this epoch, and the highest learning rate of the head in this call of fit."""
        started, self.started = self.started, None
        # lr_find restores the weights; HistoryCallback records the epochs of `train`
        if started is None or hasattr(self.learn, "lr_finder") or hasattr(self.learn, "history"):
            return
        self.n_fits += len(self.recorder.values) == 1
        names = [name for name in self.recorder.metric_names if name not in ("epoch", "time")]
        metric_values = {name: float(value) for name, value in zip(names, self.recorder.values[-1], strict=True)}
        stage, seconds = f"fit {self.n_fits}", round(read_clock(self.dls.device) - started, 2)
        self.rows.append({"epoch": len(self.rows) + 1, "stage": stage, **metric_values, "seconds": seconds})
        self.max_rates[stage] = max(map(float, self.recorder.lrs))


class HistoryCallback(Callback):
    """Show progress, record one history row per epoch, and end a stage by early stopping or the time limit."""

    order = 80  # after fastai's Recorder has the metrics of the epoch

    def __init__(self, best: BestEpoch, progress: Progress, n_epochs_total: int, deadline: Deadline):
        self.best, self.progress, self.n_epochs_total, self.deadline = best, progress, n_epochs_total, deadline
        self.rows: list[dict[str, Any]] = []
        self.bar_stack = ExitStack()

    def start_stage(self, stage: Stage) -> None:
        """Set the stage of the next epochs. Early stopping compares only epochs of the same stage."""
        self.stage, self.stage_best, self.epochs_since_best = stage, math.nan, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume: history, best epoch, early stopping counters and seconds used."""
        return {
            "rows": self.rows,
            "best": {name: getattr(self.best, name) for name in ("value", "epoch", "weights")},
            "patience": (self.stage_best, self.epochs_since_best),
            "spent": self.deadline.seconds_spent,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned, in the current stage."""
        self.rows = state["rows"]
        self.stage_best, self.epochs_since_best = state["patience"]
        vars(self.best).update(state["best"])
        self.deadline = Deadline(self.deadline.seconds, seconds_before=state["spent"])

    def show_history(self) -> None:
        """Show the epochs before the interruption."""
        log.info("resuming after %d of %d epochs", len(self.rows), self.n_epochs_total)
        for row in self.rows:
            self.progress.epoch(row)

    def before_epoch(self) -> None:
        """Open the progress bar of this epoch."""
        self.started = read_clock(self.dls.device)
        n_batches = len(self.dls.train) + len(self.dls.valid)
        text = f"epoch {len(self.rows) + 1}/{self.n_epochs_total} ({self.stage.name})"
        self.bar = self.bar_stack.enter_context(self.progress.bar(n_batches, text))

    def after_batch(self) -> None:
        """Advance the progress bar."""
        self.bar.advance()

    def after_epoch(self) -> None:
        """Record the epoch, and end the stage by early stopping or if no further epoch fits into the time limit."""
        self.bar_stack.close()
        names = [name for name in self.recorder.metric_names if name not in ("epoch", "time")]
        metric_values = {name: float(value) for name, value in zip(names, self.recorder.values[-1], strict=True)}
        # the best epoch and the end of the stage follow from these
        metric_values, seconds = decide((metric_values, read_clock(self.dls.device) - self.started))
        row = self.add_row(self.stage.name, metric_values, seconds, cast(nn.Module, self.model))
        value = row[self.best.monitor]
        if self.best.is_better(value, self.stage_best):
            self.stage_best, self.epochs_since_best = value, 0
        else:
            self.epochs_since_best += 1
        name, monitor = self.stage.name, self.best.monitor
        if self.stage.patience and self.epochs_since_best >= self.stage.patience:
            log.info("stage %s stops early: no better %s in %d epochs", name, monitor, self.epochs_since_best)
            raise CancelFitException
        if decide(self.epoch + 1 < self.n_epoch and self.deadline.seconds_left < row["seconds"]):
            log.warning("stage %s stops early: another epoch does not fit into the time limit", name)
            raise CancelFitException

    def add_row(
        self, stage: str, metric_values: dict[str, float], seconds: float, network: nn.Module
    ) -> dict[str, Any]:
        """Add a row of history.csv, keep the weights if they are the best, and return the row."""
        row = {"epoch": len(self.rows) + 1, "stage": stage, **metric_values, "seconds": round(seconds, 2)}
        row["best"] = self.best.update(row, network)
        self.rows.append(row)
        self.progress.epoch(row)
        return row

    def add_fitted_row(self, stage: str, fit: Callable, learner: Learner, recipe: Recipe) -> None:
        """Run `fit`, which does not train by epochs, and add its metrics as a history row."""
        started = read_clock(learner.dls.device)
        metric_values = fit(learner, recipe, self.progress)
        seconds = read_clock(learner.dls.device) - started
        self.add_row(stage, metric_values, seconds, cast(nn.Module, learner.model))
