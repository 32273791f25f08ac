"""A schedule's name and a stage's rates become the rate of every step, as a fastai ParamScheduler.

Each stage runs its schedule from the start, over the epochs that it was given: an early stop cuts it short.

one_cycle    up from rate/25 in the first quarter, down to rate/100,000; momentum .95, .85, .95 (fastai's fit_one_cycle)
flat_cosine  the rate for three quarters, then down to rate/100,000 along a cosine (fastai's fit_flat_cos)
step         the rate times step_factor after every step_epochs epochs of the stage
constant     the rate
"""

from collections.abc import Callable

import numpy as np
from fastai.callback.schedule import ParamScheduler, combined_cos
from fastai.learner import Learner

from fastcxr.recipe import Recipe

WARM_UP, FLAT = 0.25, 0.75  # shares of the stage
START, END = 25.0, 1e5  # what the rate is divided by at either end
Schedule = Callable[[float], np.ndarray | float]  # of the share of the stage that is done, 0 to 1


def make_scheduler(learner: Learner, recipe: Recipe, epochs: int, rates: np.ndarray) -> ParamScheduler:
    """The callback that sets the rates of a stage of `epochs` epochs. `rates`: one a layer group, the largest each."""
    schedules = make_schedules(recipe, epochs, rates, learner.moms)
    # not every optimizer of timm's has a momentum
    known = learner.opt.hypers[0]
    return ParamScheduler({name: schedule for name, schedule in schedules.items() if name in known})


def make_schedules(
    recipe: Recipe, epochs: int, rates: np.ndarray, momenta: tuple[float, float, float]
) -> dict[str, Schedule]:
    """For "lr", and "mom" where it moves, a function of the share of the stage that is done."""
    if recipe.schedule == "one_cycle":
        return {
            "lr": combined_cos(WARM_UP, rates / START, rates, rates / END),
            "mom": combined_cos(WARM_UP, *momenta),
        }
    if recipe.schedule == "flat_cosine":
        return {"lr": combined_cos(FLAT, rates, rates, rates / END)}
    if recipe.schedule == "step":
        return {"lr": lambda done: rates * recipe.step_factor ** (_epoch(done, epochs) // recipe.step_epochs)}
    return {"lr": lambda done: rates}


def _epoch(done: float, epochs: int) -> int:
    """Full epochs behind us; fastai adds the share up batch by batch, so a start of an epoch may lie a hair below."""
    return int(done * epochs + 1e-6)
