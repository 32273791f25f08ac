"""Learning rate schedules as fastai ParamSchedulers, and the learning rate finder.

Each stage runs its schedule from the start over its planned epochs; early stopping cuts the schedule short.

one_cycle    from rate/25 up in the first quarter, down to rate/100,000; momentum .95, .85, .95 (fastai's fit_one_cycle)
flat_cosine  constant for three quarters, then cosine decay to rate/100,000 (fastai's fit_flat_cos)
step         multiplied by step_factor after every step_epochs epochs of the stage
constant     constant
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, combined_cos, valley
from fastai.learner import Learner
from fastai.optimizer import Optimizer

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.progress.base import Progress
from fastcxr.training.batch_size import compute_rate_factor

WARM_UP_SHARE, FLAT_SHARE = 0.25, 0.75  # shares of the stage
START_DIVISOR, END_DIVISOR = 25.0, 1e5  # the first and last rate is the peak rate divided by these
Schedule = Callable[[float], np.ndarray | float]  # of the completed share of the stage, 0 to 1
log = logging.getLogger("fastcxr")
FALLBACK_LEARNING_RATE = 1e-3  # if the learning rate finder fails
LR_FIND_STEPS = 100
MIN_CURVE_POINTS = 30  # an early divergence leaves too few points to find a valley
EMPTY_CURVE = pd.DataFrame(columns=["stage", "rate", "loss"])
MIN_RELATIVE_DECREASE = 0.02  # of the loss, at the minimum of the curve


@dataclass(frozen=True, kw_only=True)
class ResolvedStage(Stage):
    """A stage with the recipe's defaults filled in for one network."""

    groups: int = 1
    epochs: int = 1
    patience: int = 0


def make_scheduler(learner: Learner, recipe: Recipe, epochs: int, rates: np.ndarray) -> ParamScheduler:
    """Return the callback that schedules a stage of `epochs` epochs. `rates`: peak rate of each layer group."""

    def decay_stepwise(share: float) -> np.ndarray:
        # 1e-6: fastai sums the share batch by batch, and rounding may leave it just below a full epoch
        n_completed_epochs = int(share * epochs + 1e-6)
        return rates * recipe.step_factor ** (n_completed_epochs // recipe.step_epochs)

    schedules: dict[str, Schedule] = {"lr": lambda share: rates}
    if recipe.schedule == "one_cycle":
        schedules["lr"] = combined_cos(WARM_UP_SHARE, rates / START_DIVISOR, rates, rates / END_DIVISOR)
        if "mom" in cast(Optimizer, learner.opt).hypers[0]:  # some of timm's optimizers have no momentum
            schedules["mom"] = combined_cos(WARM_UP_SHARE, *learner.moms)
    elif recipe.schedule == "flat_cosine":
        schedules["lr"] = combined_cos(FLAT_SHARE, rates, rates, rates / END_DIVISOR)
    elif recipe.schedule == "step":
        schedules["lr"] = decay_stepwise
    return ParamScheduler(schedules)


def find_learning_rate(
    learner: Learner, recipe: Recipe, stage: ResolvedStage, progress: Progress
) -> tuple[float, dict[str, Any], pd.DataFrame]:
    """Return the rate of this stage, a record of its choice, and the finder's curve (empty for a fixed rate).

    The record has the rates of the trained layer groups, head last; `multiples` of a stage scale each of them.
    """
    is_found, curve = False, EMPTY_CURVE
    if recipe.learning_rate != "find":
        factor = compute_rate_factor(recipe, learner.dls.train.bs)
        rate, reason = recipe.learning_rate * stage.scale * factor, "given by the recipe"
        if factor != 1:
            reason += f", times {factor:.3g} for batches of {learner.dls.train.bs}"
    else:
        curve = run_lr_find(learner, recipe, stage, progress)
        rate, reason = suggest_learning_rate(curve["rate"].to_numpy(), curve["loss"].to_numpy())
        is_found = rate is not None
        if rate is None:
            rate = FALLBACK_LEARNING_RATE * stage.scale
            log.warning("stage %s: %s; the default learning rate %g is used", stage.name, reason, rate)
        else:
            log.info("stage %s: learning rate finder suggests %.2g (%s)", stage.name, rate, reason)
    group_rates = compute_group_rates(learner, stage, rate)[-stage.groups :].tolist()
    record = {"stage": stage.name, "rate": rate, "found": is_found, "reason": reason, "group_rates": group_rates}
    return rate, record, curve


def run_lr_find(learner: Learner, recipe: Recipe, stage: ResolvedStage, progress: Progress) -> pd.DataFrame:
    """Run fastai's lr_find over the recipe's range and restore the weights.

    Returns:
        Columns stage, rate (of the head; other groups as in the stage) and loss (smoothed).
    """
    start, end = (compute_group_rates(learner, stage, rate) for rate in (recipe.lr_find_min, recipe.lr_find_max))
    with (
        progress.bar(LR_FIND_STEPS, f"{stage.name}: finding a learning rate") as bar,
        learner.added_cbs(Callback(after_batch=lambda callback: bar.advance())),
    ):
        learner.lr_find(start, end, LR_FIND_STEPS, show_plot=False, suggest_funcs=None)
    rates, losses = np.array(learner.recorder.lrs), torch.stack(learner.recorder.losses).numpy()
    return pd.DataFrame({"stage": stage.name, "rate": rates, "loss": losses})


def suggest_learning_rate(rates: np.ndarray, losses: np.ndarray) -> tuple[float | None, str]:
    """Return fastai's "valley" rate (in the longest valley of the curve) or None, and the reason."""
    # as in fastai, without the first tenth, where the loss is flat, and the last steps, where it diverges
    rates, losses = rates[LR_FIND_STEPS // 10 : -5], losses[LR_FIND_STEPS // 10 : -5]
    n_finite = int(np.argmin(np.append(np.isfinite(losses), False)))
    rates, losses = rates[:n_finite], losses[:n_finite]
    if len(losses) < MIN_CURVE_POINTS:
        return None, f"the loss diverged after {len(losses)} steps"
    if losses.min() > (1 - MIN_RELATIVE_DECREASE) * losses[0]:
        return None, "the loss does not decrease at any learning rate"
    curve = torch.tensor(rates), torch.tensor(losses)
    return float(valley(*curve, num_it=LR_FIND_STEPS)[0]), "valley of the loss curve"  # pyright: ignore[reportArgumentType]


def compute_group_rates(learner: Learner, stage: ResolvedStage, rate: float) -> np.ndarray:
    """Return one rate per layer group, stem to head; shape (groups,). Earlier groups have the first factor's rate."""
    if stage.multiples is not None:
        factors = np.array(stage.multiples, dtype=float)
    else:
        factors = np.geomspace(1 / (stage.layer_lr_ratio or 1), 1, stage.groups) if stage.groups > 1 else np.ones(1)
    n_earlier_groups = len(learner.splitter(learner.model)) - len(factors)
    return rate * np.concatenate([np.full(n_earlier_groups, factors[0]), factors])
