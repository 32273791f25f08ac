"""A strategy is a list of stages; training runs one after the other and keeps the best epoch of them all."""

import logging
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pandas as pd
from fastai.learner import Learner
from torch.nn.modules.batchnorm import _BatchNorm

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import RecipeError, TrainingError
from fastcxr.models.heads import is_banked
from fastcxr.models.precision import explain_precision
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.training import interrupt
from fastcxr.training.callbacks import BatchNormStays, BestEpoch, EpochReport, FiniteLoss
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.fit_ood import fit_gate
from fastcxr.training.learner import whole_batches
from fastcxr.training.linear_probe import fit_head, refit_head
from fastcxr.training.resume import StateKeeper, explaining_memory, fit_from, lost_worker, take_fewer_workers
from fastcxr.training.schedules import NO_CURVE, find_rate, group_rates, make_scheduler
from fastcxr.training.schedules import STEPS as RATE_STEPS
from fastcxr.training.time_budget import Deadline, find_epochs

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
    "probe": (),  # the head alone, fitted on a bank of features
    # from that head on the body learns to see; a rate that suits it would shake a head of small weights
    "rapid": (Stage(name="all", scale=0.15, multiples=(0.1, 0.2, 0.3, 0.5, 0.1), batch_norm="frozen"),),
}
# two epochs at the top of one cycle were worse than those before and after them, and a fitted head was beaten by the
# last epoch alone: see "The default road" in benchmarks/README.md
RAPID_PATIENCE = 3


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was decided when a stage began: its epochs, the head's rate, how that came about, and the finder's curve."""

    epochs: int
    rate: float
    record: dict[str, Any]
    curve: pd.DataFrame


def train(
    learner: Learner,
    recipe: Recipe,
    progress: Progress | None = None,
    deadline: Deadline | None = None,
    checkpoints: Checkpoints | None = None,
) -> Training:
    """Teach the learner stage by stage; it ends with the weights of the best epoch by the recipe's `monitor`.

    Each stage starts from the best weights so far, and epochs are counted across stages. `deadline`: without one, the
    recipe's time limit counts from here. `checkpoints`: where states are kept, and where one is gone on from.
    Raises TrainingError where the loss is no longer a number, or no epoch fits into the time; Stopped where somebody
    wants that.
    """
    deadline = deadline or Deadline.read(recipe.time_limit)
    stages = find_stages(recipe, len(learner.splitter(learner.model)))
    planned = sum(stage.epochs for stage in stages) + is_banked(recipe)
    report = EpochReport(BestEpoch(recipe.monitor), progress or find_progress(), planned, deadline)
    keeper = StateKeeper(checkpoints, report)
    log.info(explain_precision(recipe.precision, learner.dls.device))
    with explaining_memory(recipe), whole_batches(learner), learner.no_bar(), learner.no_logging(), report.bars:
        plans = teach(learner, recipe, stages, keeper)
        if is_banked(recipe):
            settle_head(learner, report.best)
    if not report.rows:
        raise TrainingError(
            f"not one epoch fits into {recipe.time_limit}", "Give a longer --time-limit, or --strategy probe"
        )
    learner.gate = fit_gate(learner, report.progress)
    learner.opt = None  # its state belongs to the last epoch, the weights to the best one
    curves = pd.concat([NO_CURVE, *(plan.curve for plan in plans)])
    rates = [plan.record for plan in plans]
    return Training(history=pd.DataFrame(report.rows), rates=rates, curves=curves, best=report.best.summary())


def teach(learner: Learner, recipe: Recipe, stages: list[Stage], keeper: StateKeeper) -> list[Plan]:
    """All stages one after the other, from where the kept state is on; returns what was decided for each."""
    report, found = keeper.report, keeper.find()
    if is_banked(recipe) and found:  # what it fitted then is in the state; here it prepares for the head's last fit
        fit_head(learner, recipe, report.progress)
    elif is_banked(recipe):
        report.add("probe", fit_head, learner, recipe)
    tell_shaken(learner, stages)
    plans = [Plan(**{**plan, "curve": pd.DataFrame(plan["curve"])}) for plan in found["plans"]] if found else []
    for number, stage in enumerate(stages):
        if found and number < found["stage"]:
            continue
        open_groups(learner, stage)
        report.begin(stage)
        if found and number == found["stage"]:
            report.go_on(found)
            report.tell_past()
        else:
            finding = RATE_STEPS if recipe.learning_rate == "find" else 0
            epochs = choose_epochs(learner, stages[number:], report.deadline, finding)
            if not epochs:
                continue
            rate, record, curve = find_rate(learner, recipe, stage, report.progress)
            plans.append(Plan(epochs=epochs, rate=rate, record=record, curve=curve))
        keeper.frame = frame_of(number, plans)
        fit_stage(learner, recipe, stage, plans[-1], keeper)
        report.best.restore(learner.model)
    return plans


def tell_shaken(learner: Learner, stages: list[Stage]) -> None:
    """Say which stages begin elsewhere than the one before them ended: frozen layers keep their batch norm statistics,
    and layers that take them from each batch instead give other features than the head was made for.
    """
    has_statistics = any(isinstance(module, _BatchNorm) for module in learner.model.modules())
    for before, stage in pairwise(stages if has_statistics else ()):
        if stage.groups > before.groups and stage.batch_norm == "learn":
            log.warning(
                "stage %s learns other batch norm statistics than stage %s had, and so does not begin where that ends; "
                "Stage(batch_norm='frozen') does", stage.name, before.name,
            )  # fmt: skip


def frame_of(stage: int, plans: list[Plan]) -> dict[str, Any]:
    """What every state of a stage holds of the decisions so far."""
    return {"stage": stage, "plans": [{**vars(plan), "curve": plan.curve.to_dict("list")} for plan in plans]}


def fit_stage(learner: Learner, recipe: Recipe, stage: Stage, plan: Plan, keeper: StateKeeper) -> None:
    """The epochs of one stage; where a loader's process dies, on from the last state with fewer of them."""
    rates, is_broken = group_rates(learner, stage, plan.rate), False
    while True:
        try:  # a second word of the same death may reach us while we mend what the first one broke
            if is_broken:
                mend(learner, keeper)
            callbacks = [FiniteLoss(), keeper.report, keeper] + [BatchNormStays()] * (stage.batch_norm == "frozen")
            callbacks.append(make_scheduler(learner, recipe, plan.epochs, rates))
            with interrupt.finishing():
                fit_from(learner, keeper.first_epoch, plan.epochs, rates, callbacks)
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not lost_worker(error) or not keeper.checkpoints:
                raise
            is_broken = True


def mend(learner: Learner, keeper: StateKeeper) -> None:
    """Back to the last state, with fewer processes that prepare batches."""
    keeper.report.bars.close()
    keeper.report.go_on(keeper.find())
    take_fewer_workers(learner)


def choose_epochs(learner: Learner, stages: list[Stage], deadline: Deadline, finding: int) -> int:
    """How many epochs of the first of these stages, after `finding` steps, fit into its share of what time is left."""
    wanted = stages[0].epochs
    share = wanted / max(1, sum(stage.epochs for stage in stages))
    epochs, seconds = find_epochs(learner, wanted, deadline.left * share, finding)
    if epochs < wanted:
        log.warning(
            "stage %s: %d of %d epochs fit into the time limit (one takes about %.3g s)",
            stages[0].name, epochs, wanted, seconds,
        )  # fmt: skip
    return epochs


def settle_head(learner: Learner, best: BestEpoch) -> None:
    """A head that no epoch has beaten learns from the validation images too; otherwise the bank is of no more use."""
    if best.epoch == 1:
        refit_head(learner)
    else:
        learner.fitted = None


def find_stages(recipe: Recipe, groups: int) -> list[Stage]:
    """The recipe's stages, every number filled in for a network of so many layer groups."""
    stages = STRATEGIES[recipe.strategy] if isinstance(recipe.strategy, str) else recipe.strategy
    patience = RAPID_PATIENCE if recipe.strategy == "rapid" and is_banked(recipe) else 0
    recipe = recipe if recipe.patience is not None else recipe.but(patience=patience)
    if recipe.strategy in ("fine", "rapid") and recipe.weights == "none":
        log.warning("random weights: a frozen body has nothing to offer, so all layers learn at once (strategy deep)")
        stages = STRATEGIES["deep"]
    if isinstance(recipe.strategy, str):  # ours are made for five groups; a network with fewer lacks the first
        stages = [replace(stage, multiples=stage.multiples and stage.multiples[-groups:]) for stage in stages]
    return [_fill_in(stage, recipe, groups) for stage in stages]


def open_groups(learner: Learner, stage: Stage) -> None:
    """Let the stage's last layer groups learn and freeze the others, with a fresh optimizer."""
    learner.create_opt()
    learner.freeze_to(-stage.groups if stage.groups < len(learner.opt.param_lists) else 0)
    for parameter in learner.model.parameters():
        parameter.grad = None  # torch's optimizers would let a frozen layer with an old gradient decay


def _fill_in(stage: Stage, recipe: Recipe, groups: int) -> Stage:
    learning = groups if stage.groups == "all" else min(stage.groups, groups)
    if stage.multiples is not None and len(stage.multiples) > learning:
        raise RecipeError(
            f"stage {stage.name!r} gives {len(stage.multiples)} multiples for {learning} learning groups",
            f"Give at most one a group, the head's last; this network has {groups} groups",
        )
    return replace(
        stage,
        groups=learning,
        epochs=recipe.epochs if stage.epochs is None else stage.epochs,
        patience=recipe.patience if stage.patience is None else stage.patience,
        spread=recipe.spread if stage.spread is None else stage.spread,
    )
