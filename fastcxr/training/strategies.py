"""A strategy is a list of stages; training runs one after the other and keeps the best epoch of them all."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from fastai.learner import Learner

from fastcxr.errors import RecipeError
from fastcxr.progress import Progress, find_progress
from fastcxr.recipe import Recipe, Stage
from fastcxr.training.epochs import BatchNormStays, BestEpoch, EpochReport, FiniteLoss
from fastcxr.training.rates import find_rate, group_rates
from fastcxr.training.schedules import make_scheduler

log = logging.getLogger("fastcxr")

STRATEGIES = {
    "shallow": (Stage(name="head", groups=1),),
    "deep": (Stage(name="all"),),
    # a new head can run ahead of a body that only wants to be nudged, and batches of a small cohort are too few to
    # learn better batch-norm statistics than millions of photographs gave
    "fine": (
        Stage(name="head", groups=1, epochs=2, scale=5.0),
        Stage(name="upper", groups=3, epochs=1, scale=0.5, spread=10.0, batch_norm="frozen"),
        Stage(name="all", scale=0.15, spread=10.0, batch_norm="frozen"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """What happened while the learner learned.

    history: a row an epoch (epoch, stage, losses, metrics, seconds, best). rates: for each stage its learning rate,
    whether it was found, and why. curves: what the learning-rate finder saw (stage, rate, loss). best: epoch, value.
    """

    history: pd.DataFrame
    rates: list[dict[str, Any]]
    curves: pd.DataFrame
    best: dict[str, Any]


def train(learner: Learner, recipe: Recipe, progress: Progress | None = None) -> Training:
    """Teach the learner stage by stage; it ends with the weights of the best epoch by the recipe's `monitor`.

    Each stage starts from the best weights so far, and epochs are counted across stages.
    Raises TrainingError where the loss is no longer a number.
    """
    stages = find_stages(recipe, len(learner.splitter(learner.model)))
    best, rates, curves = BestEpoch(recipe.monitor), [], []
    report = EpochReport(best, progress or find_progress(), sum(stage.epochs for stage in stages))
    with learner.no_bar(), learner.no_logging(), report.bars:
        for stage in stages:
            open_groups(learner, stage)
            rate, record, curve = find_rate(learner, recipe, stage, report.progress)
            rates.append(record)
            curves.append(curve)
            report.begin(stage)
            rate_of_groups = group_rates(learner, stage, rate)
            cbs = [FiniteLoss(), report] + [BatchNormStays()] * (stage.batch_norm == "frozen")
            cbs.append(make_scheduler(learner, recipe, stage.epochs, rate_of_groups))
            learner.fit(stage.epochs, rate_of_groups, cbs=cbs)
            best.restore(learner.model)
    learner.opt = None  # its state belongs to the last epoch, the weights to the best one
    return Training(history=pd.DataFrame(report.rows), rates=rates, curves=pd.concat(curves), best=best.summary())


def find_stages(recipe: Recipe, groups: int) -> list[Stage]:
    """The recipe's stages, every number filled in for a network of so many layer groups."""
    stages = STRATEGIES[recipe.strategy] if isinstance(recipe.strategy, str) else recipe.strategy
    if recipe.strategy == "fine" and recipe.weights == "none":
        log.warning("random weights: a frozen body has nothing to offer, so all layers learn at once (strategy deep)")
        stages = STRATEGIES["deep"]
    return [_fill_in(stage, recipe, groups) for stage in stages]


def open_groups(learner: Learner, stage: Stage) -> None:
    """Let the stage's last layer groups learn and freeze the others, with a fresh optimizer."""
    learner.create_opt()
    learner.freeze_to(-stage.groups if stage.groups < len(learner.opt.param_lists) else 0)
    for parameter in learner.model.parameters():
        parameter.grad = None  # torch's optimizers would let a frozen layer with an old gradient decay


def _fill_in(stage: Stage, recipe: Recipe, groups: int) -> Stage:
    learning = groups if stage.groups == "all" else min(stage.groups, groups)
    if stage.multiples is not None and len(stage.multiples) != learning:
        raise RecipeError(
            f"stage {stage.name!r} gives {len(stage.multiples)} multiples for {learning} learning groups",
            f"Give one a group, from the first that learns to the head; this network has {groups} groups",
        )
    return replace(
        stage,
        groups=learning,
        epochs=recipe.epochs if stage.epochs is None else stage.epochs,
        patience=recipe.patience if stage.patience is None else stage.patience,
    )
