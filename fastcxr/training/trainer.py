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
from fastcxr.models.heads import uses_feature_bank
from fastcxr.models.precision import describe_precision
from fastcxr.models.state import get_learner_state, get_loaders_state
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training import interrupt
from fastcxr.training.callbacks import BestEpoch, FreezeBatchNormStats, HistoryCallback, StopOnNonFiniteLoss
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.fit_ood import fit_ood_detector
from fastcxr.training.learner import restore_full_precision
from fastcxr.training.linear_probe import fit_head, refit_head
from fastcxr.training.resume import (
    CheckpointCallback,
    explain_memory_errors,
    fit_from_epoch,
    halve_workers,
    is_worker_loss,
)
from fastcxr.training.schedules import (
    EMPTY_CURVE,
    LR_FIND_STEPS,
    compute_group_rates,
    find_learning_rate,
    make_scheduler,
)
from fastcxr.training.time_budget import Deadline, compute_epochs_in_time

log = logging.getLogger("fastcxr")

STRATEGIES = {
    "head": (Stage(name="head", groups=1),),
    "full": (Stage(name="all"),),
    # a new head can run ahead of a body that only wants to be nudged, and batches of a small cohort are too few to
    # learn better batch-norm statistics than millions of photographs gave
    "gradual": (
        Stage(name="head", groups=1, epochs=2, scale=5.0),
        Stage(name="upper", groups=3, epochs=1, scale=0.5, layer_lr_ratio=10.0, batch_norm="frozen"),
        Stage(name="all", scale=0.15, layer_lr_ratio=10.0, batch_norm="frozen"),
    ),
    "linear_probe": (),  # the head alone, fitted on a bank of features
    # from that head on the body learns to see; a rate that suits it would shake a head of small weights
    "lp_ft": (Stage(name="all", scale=0.15, multiples=(0.1, 0.2, 0.3, 0.5, 0.1), batch_norm="frozen"),),
}
# two epochs at the top of one cycle were worse than those before and after them, and a fitted head was beaten by the
# last epoch alone: see "The default road" in benchmarks/README.md
LP_FT_PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What happened while the learner learned.

    history: a row an epoch (epoch, stage, losses, metrics, seconds, best). rates: for each stage its learning rate,
    whether it was found, and why. curves: what the learning-rate finder saw (stage, rate, loss). best: epoch, value.
    """

    history: pd.DataFrame
    rates: list[dict[str, Any]]
    curves: pd.DataFrame
    best: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
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
) -> TrainingResult:
    """Teach the learner stage by stage; it ends with the weights of the best epoch by the recipe's `monitor`.

    Each stage starts from the best weights so far, and epochs are counted across stages. `deadline`: without one, the
    recipe's time limit counts from here. `checkpoints`: where states are kept, and where one is gone on from.
    Raises TrainingError where the loss is no longer a number, or no epoch fits into the time; Stopped where somebody
    wants that.
    """
    get_learner_state(learner), get_loaders_state(learner.dls)  # raise for a Learner that was made otherwise
    deadline = deadline or Deadline.parse(recipe.time_limit)
    stages = resolve_stages(recipe, len(learner.splitter(learner.model)))
    n_epochs = sum(stage.epochs for stage in stages) + uses_feature_bank(recipe)
    history_callback = HistoryCallback(
        BestEpoch(recipe.monitor), progress or make_default_progress(), n_epochs, deadline
    )
    checkpoint_callback = CheckpointCallback(checkpoints, history_callback)
    log.info(describe_precision(recipe.precision, learner.dls.device))
    with (
        explain_memory_errors(recipe),
        restore_full_precision(learner),
        learner.no_bar(),
        learner.no_logging(),
        history_callback.bar_stack,
    ):
        plans = run_stages(learner, recipe, stages, checkpoint_callback)
        if uses_feature_bank(recipe):
            finalize_head(learner, history_callback.best)
    if not history_callback.rows:
        raise TrainingError(
            f"not one epoch fits into {recipe.time_limit}", "Give a longer --time-limit, or --strategy linear_probe"
        )
    learner.fastcxr.ood_detector = fit_ood_detector(learner, history_callback.progress)
    learner.opt = None  # its state belongs to the last epoch, the weights to the best one
    curves = pd.concat([EMPTY_CURVE, *(plan.curve for plan in plans)])
    rates = [plan.record for plan in plans]
    return TrainingResult(
        history=pd.DataFrame(history_callback.rows), rates=rates, curves=curves, best=history_callback.best.summary()
    )


def run_stages(
    learner: Learner, recipe: Recipe, stages: list[Stage], checkpoint_callback: CheckpointCallback
) -> list[StagePlan]:
    """All stages one after the other, from where the kept state is on; returns what was decided for each."""
    history_callback, saved_state = checkpoint_callback.history_callback, checkpoint_callback.load_state()
    if (
        uses_feature_bank(recipe) and saved_state
    ):  # what it fitted then is in the state; here it prepares for the head's last fit
        fit_head(learner, recipe, history_callback.progress)
    elif uses_feature_bank(recipe):
        history_callback.add_fitted_row("probe", fit_head, learner, recipe)
    warn_batchnorm_shift(learner, stages)
    plans = (
        [StagePlan(**{**plan, "curve": pd.DataFrame(plan["curve"])}) for plan in saved_state["plans"]]
        if saved_state
        else []
    )
    for index, stage in enumerate(stages):
        if saved_state and index < saved_state["stage"]:
            continue
        unfreeze(learner, stage)
        history_callback.start_stage(stage)
        if saved_state and index == saved_state["stage"]:
            history_callback.load_state_dict(saved_state)
            history_callback.show_history()
        else:
            n_lr_find_steps = LR_FIND_STEPS if recipe.learning_rate == "find" else 0
            epochs = choose_stage_epochs(learner, stages[index:], history_callback.deadline, n_lr_find_steps)
            if not epochs:
                continue
            rate, record, curve = find_learning_rate(learner, recipe, stage, history_callback.progress)
            plans.append(StagePlan(epochs=epochs, rate=rate, record=record, curve=curve))
        checkpoint_callback.stage_state = make_stage_state(index, plans)
        fit_stage(learner, recipe, stage, plans[-1], checkpoint_callback)
        history_callback.best.restore(learner.model)
    return plans


def warn_batchnorm_shift(learner: Learner, stages: list[Stage]) -> None:
    """Say which stages begin elsewhere than the one before them ended: frozen layers keep their batch norm statistics,
    and layers that take them from each batch instead give other features than the head was made for.
    """
    has_statistics = any(isinstance(module, _BatchNorm) for module in learner.model.modules())
    for previous, stage in pairwise(stages if has_statistics else ()):
        if stage.groups > previous.groups and stage.batch_norm == "learn":
            log.warning(
                "stage %s learns other batch norm statistics than stage %s had, and so does not begin where that ends; "
                "Stage(batch_norm='frozen') does", stage.name, previous.name,
            )  # fmt: skip


def make_stage_state(stage: int, plans: list[StagePlan]) -> dict[str, Any]:
    """What every state of a stage holds of the decisions so far."""
    return {"stage": stage, "plans": [{**vars(plan), "curve": plan.curve.to_dict("list")} for plan in plans]}


def fit_stage(
    learner: Learner, recipe: Recipe, stage: Stage, plan: StagePlan, checkpoint_callback: CheckpointCallback
) -> None:
    """The epochs of one stage; where a loader's process dies, on from the last state with fewer of them."""
    rates, needs_recovery = compute_group_rates(learner, stage, plan.rate), False
    while True:
        try:  # a second word of the same death may reach us while we mend what the first one broke
            if needs_recovery:
                recover_from_worker_loss(learner, checkpoint_callback)
            callbacks = [StopOnNonFiniteLoss(), checkpoint_callback.history_callback, checkpoint_callback] + [
                FreezeBatchNormStats()
            ] * (stage.batch_norm == "frozen")
            callbacks.append(make_scheduler(learner, recipe, plan.epochs, rates))
            with interrupt.defer_interrupts():
                fit_from_epoch(learner, checkpoint_callback.first_epoch, plan.epochs, rates, callbacks)
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not is_worker_loss(error) or not checkpoint_callback.checkpoints:
                raise
            needs_recovery = True


def recover_from_worker_loss(learner: Learner, checkpoint_callback: CheckpointCallback) -> None:
    """Back to the last state, with fewer processes that prepare batches."""
    checkpoint_callback.history_callback.bar_stack.close()
    checkpoint_callback.history_callback.load_state_dict(checkpoint_callback.load_state())
    halve_workers(learner)


def choose_stage_epochs(learner: Learner, stages: list[Stage], deadline: Deadline, n_lr_find_steps: int) -> int:
    """How many epochs of the first of these stages, after `finding` steps, fit into its share of what time is left."""
    n_requested = stages[0].epochs
    time_share = n_requested / max(1, sum(stage.epochs for stage in stages))
    epochs, seconds = compute_epochs_in_time(learner, n_requested, deadline.seconds_left * time_share, n_lr_find_steps)
    if epochs < n_requested:
        log.warning(
            "stage %s: %d of %d epochs fit into the time limit (one takes about %.3g s)",
            stages[0].name, epochs, n_requested, seconds,
        )  # fmt: skip
    return epochs


def finalize_head(learner: Learner, best: BestEpoch) -> None:
    """A head that no epoch has beaten learns from the validation images too; otherwise the bank is of no more use."""
    if best.epoch == 1:
        refit_head(learner)
    else:
        learner.fastcxr.fitted_probe = None


def resolve_stages(recipe: Recipe, n_groups: int) -> list[Stage]:
    """The recipe's stages, every number filled in for a network of so many layer groups."""
    stages = STRATEGIES[recipe.strategy] if isinstance(recipe.strategy, str) else recipe.strategy
    patience = LP_FT_PATIENCE if recipe.strategy == "lp_ft" and uses_feature_bank(recipe) else 0
    recipe = recipe if recipe.patience is not None else recipe.replace(patience=patience)
    if recipe.strategy in ("gradual", "lp_ft") and recipe.weights == "none":
        log.warning(
            "strategy %s needs pretrained weights: falling back to full (all layers trained at once)", recipe.strategy
        )
        stages = STRATEGIES["full"]
    if isinstance(recipe.strategy, str):  # ours are made for five groups; a network with fewer lacks the first
        stages = [replace(stage, multiples=stage.multiples and stage.multiples[-n_groups:]) for stage in stages]
    return [_fill_defaults(stage, recipe, n_groups) for stage in stages]


def unfreeze(learner: Learner, stage: Stage) -> None:
    """Let the stage's last layer groups learn and freeze the others, with a fresh optimizer."""
    learner.create_opt()
    learner.freeze_to(-stage.groups if stage.groups < len(learner.opt.param_lists) else 0)
    for parameter in learner.model.parameters():
        parameter.grad = None  # torch's optimizers would let a frozen layer with an old gradient decay


def _fill_defaults(stage: Stage, recipe: Recipe, n_groups: int) -> Stage:
    n_learning_groups = n_groups if stage.groups == "all" else min(stage.groups, n_groups)
    if stage.multiples is not None and len(stage.multiples) > n_learning_groups:
        raise RecipeError(
            f"stage {stage.name!r} gives {len(stage.multiples)} multiples for {n_learning_groups} learning groups",
            f"Give at most one a group, the head's last; this network has {n_groups} groups",
        )
    return replace(
        stage,
        groups=n_learning_groups,
        epochs=recipe.epochs if stage.epochs is None else stage.epochs,
        patience=recipe.patience if stage.patience is None else stage.patience,
        layer_lr_ratio=recipe.layer_lr_ratio if stage.layer_lr_ratio is None else stage.layer_lr_ratio,
    )
