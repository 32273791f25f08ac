"""A schedule's name and a stage's rates become the rate of every step, as a fastai ParamScheduler.

Each stage runs its schedule from the start, over the epochs that it was given: an early stop cuts it short.

one_cycle    up from rate/25 in the first quarter, down to rate/100,000; momentum .95, .85, .95 (fastai's fit_one_cycle)
flat_cosine  the rate for three quarters, then down to rate/100,000 along a cosine (fastai's fit_flat_cos)
step         the rate times step_factor after every step_epochs epochs of the stage
constant     the rate
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.callback.schedule import ParamScheduler, combined_cos, valley
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.progress.base import Progress
from fastcxr.training.callbacks import ProgressBarCallback

WARM_UP_SHARE, FLAT_SHARE = 0.25, 0.75  # shares of the stage
START_DIVISOR, END_DIVISOR = 25.0, 1e5  # what the rate is divided by at either end
Schedule = Callable[[float], np.ndarray | float]  # of the share of the stage that is done, 0 to 1
log = logging.getLogger("fastcxr")
FALLBACK_LEARNING_RATE = 1e-3  # when the curve gives no answer
LR_FIND_STEPS = 100
MIN_CURVE_POINTS = 30  # an early divergence leaves too few for a valley
EMPTY_CURVE = pd.DataFrame(columns=["stage", "rate", "loss"])
MIN_RELATIVE_DECREASE = 0.02  # share by which the loss must fall somewhere on the curve


def make_scheduler(learner: Learner, recipe: Recipe, epochs: int, rates: np.ndarray) -> ParamScheduler:
    """The callback that sets the rates of a stage of `epochs` epochs. `rates`: one a layer group, the largest each."""
    schedules = make_schedules(recipe, epochs, rates, learner.moms)
    # not every optimizer of timm's has a momentum
    hyperparameters = learner.opt.hypers[0]
    return ParamScheduler({name: schedule for name, schedule in schedules.items() if name in hyperparameters})


def make_schedules(
    recipe: Recipe, epochs: int, rates: np.ndarray, momenta: tuple[float, float, float]
) -> dict[str, Schedule]:
    """For "lr", and "mom" where it moves, a function of the share of the stage that is done."""
    if recipe.schedule == "one_cycle":
        return {
            "lr": combined_cos(WARM_UP_SHARE, rates / START_DIVISOR, rates, rates / END_DIVISOR),
            "mom": combined_cos(WARM_UP_SHARE, *momenta),
        }
    if recipe.schedule == "flat_cosine":
        return {"lr": combined_cos(FLAT_SHARE, rates, rates, rates / END_DIVISOR)}
    if recipe.schedule == "step":
        return {
            "lr": lambda done: (
                rates * recipe.step_factor ** (_count_completed_epochs(done, epochs) // recipe.step_epochs)
            )
        }
    return {"lr": lambda done: rates}


def _count_completed_epochs(fraction_done: float, epochs: int) -> int:
    """Full epochs behind us; fastai adds the share up batch by batch, so a start of an epoch may lie a hair below."""
    return int(fraction_done * epochs + 1e-6)


def find_learning_rate(
    learner: Learner, recipe: Recipe, stage: Stage, progress: Progress
) -> tuple[float, dict[str, Any], pd.DataFrame]:
    """The head's rate in this stage, a record of how it came about, and the finder's curve (empty for a fixed rate)."""
    if recipe.learning_rate != "find":
        rate = recipe.learning_rate * stage.scale
        return rate, _make_record(stage, rate, False, "given by the recipe"), EMPTY_CURVE
    curve = run_lr_find(learner, recipe, stage, progress)
    rate, reason = suggest_learning_rate(curve["rate"].to_numpy(), curve["loss"].to_numpy())
    is_found = rate is not None
    if not is_found:
        rate = FALLBACK_LEARNING_RATE * stage.scale
        log.warning("stage %s: %s; the default rate %g is used", stage.name, reason, rate)
    else:
        log.info("stage %s: learning rate %.2g found (%s)", stage.name, rate, reason)
    return rate, _make_record(stage, rate, is_found, reason), curve


def run_lr_find(learner: Learner, recipe: Recipe, stage: Stage, progress: Progress) -> pd.DataFrame:
    """fastai's lr_find over the recipe's range, the groups spread as in the stage; the weights are put back afterwards.

    Columns stage, rate (of the head), loss (smoothed).
    """
    # arrays: fastai takes lists of rates here and then trips over them
    start, end = (compute_group_rates(learner, stage, rate) for rate in (recipe.lr_find_min, recipe.lr_find_max))
    with (
        progress.bar(LR_FIND_STEPS, f"{stage.name}: finding a learning rate") as bar,
        learner.added_cbs(ProgressBarCallback(bar)),
    ):
        learner.lr_find(start, end, LR_FIND_STEPS, show_plot=False, suggest_funcs=None)
    recorder = learner.recorder
    return pd.DataFrame(
        {"stage": stage.name, "rate": np.array(recorder.lrs), "loss": torch.stack(recorder.losses).numpy()}
    )


def suggest_learning_rate(rates: np.ndarray, losses: np.ndarray) -> tuple[float | None, str]:
    """The rate in the middle of the longest valley, as fastai suggests it, or None; and the reason in words."""
    # fastai leaves out the first tenth, where nothing moves yet, and the last steps, where it diverges
    rates, losses = rates[LR_FIND_STEPS // 10 : -5], losses[LR_FIND_STEPS // 10 : -5]
    n_finite = int(np.argmin(np.append(np.isfinite(losses), False)))
    rates, losses = rates[:n_finite], losses[:n_finite]
    if len(losses) < MIN_CURVE_POINTS:
        return None, f"the loss diverged after {len(losses)} steps"
    if losses.min() > (1 - MIN_RELATIVE_DECREASE) * losses[0]:
        return None, "the loss falls nowhere on the curve"
    return float(valley(torch.tensor(rates), torch.tensor(losses), LR_FIND_STEPS)[0]), "valley of the loss curve"


def compute_group_rates(learner: Learner, stage: Stage, rate: float) -> np.ndarray:
    """One rate a layer group, stem to head: shape (groups,). Frozen groups carry the first learning group's."""
    n_groups = len(learner.opt.param_lists)
    if stage.multiples is not None:
        factors = np.array(stage.multiples, dtype=float)
    else:
        factors = np.geomspace(1 / (stage.layer_lr_ratio or 1), 1, stage.groups) if stage.groups > 1 else np.ones(1)
    return rate * np.concatenate([np.full(n_groups - len(factors), factors[0]), factors])


def _make_record(stage: Stage, rate: float, is_found: bool, reason: str) -> dict[str, Any]:
    return {"stage": stage.name, "rate": rate, "found": is_found, "reason": reason}
