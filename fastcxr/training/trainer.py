"""Train a network stage by stage and keep the weights of the best epoch of all stages."""

import logging
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import pandas as pd
from fastai.learner import Learner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.config.tasks import resolve_task
from fastcxr.errors import RecipeError, TrainingError, require_type
from fastcxr.metrics.feature_map import EMPTY_MAP
from fastcxr.models.devices import configure_device, search_algorithms
from fastcxr.models.heads import uses_feature_cache
from fastcxr.models.param_groups import N_BACKBONE_GROUPS
from fastcxr.models.precision import describe_precision, resolve_precision
from fastcxr.models.state import get_learner_state, get_loaders_state, require_images, set_fitted_state
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training import interrupt
from fastcxr.training.batch_size import choose_batch_size, compute_rate_factor, set_batch_size
from fastcxr.training.callbacks import BestEpoch, FreezeBatchNormStats, HistoryCallback
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.distributed import fit_head_once, share_batches
from fastcxr.training.fit_ood import fit_ood_detector
from fastcxr.training.linear_probe import refit_head
from fastcxr.training.mixed_precision import precision_scope
from fastcxr.training.non_finite_loss import StopOnNonFiniteLoss
from fastcxr.training.processes import decide, find_processes, is_main_process
from fastcxr.training.resume import (
    CheckpointCallback,
    explain_training_errors,
    fit_from_epoch,
    halve_workers,
    is_worker_loss,
)
from fastcxr.training.schedules import (
    EMPTY_CURVE,
    LR_FIND_STEPS,
    ResolvedStage,
    compute_group_rates,
    find_learning_rate,
    make_scheduler,
)
from fastcxr.training.time_budget import Deadline, compute_epochs_in_time

log = logging.getLogger("fastcxr")

STRATEGIES = {
    "head": (Stage(name="head", groups=1),),
    "full": (Stage(name="all"),),
    # the new head gets a higher rate than the pretrained backbone; batch-norm statistics stay frozen because the
    # batches of a small dataset estimate them worse than pretraining did
    "gradual": (
        Stage(name="head", groups=1, epochs=2, scale=5.0),
        Stage(name="upper", groups=3, epochs=1, scale=0.5, layer_lr_ratio=10.0, batch_norm="frozen"),
        Stage(name="all", scale=0.15, layer_lr_ratio=10.0, batch_norm="frozen"),
    ),
    "linear_probe": (),  # only the head, fitted on cached features
    # the fitted head has small weights: the head's rate is low, and the highest one is in the upper backbone
    "lp_ft": (Stage(name="all", scale=0.15, multiples=(0.1, 0.2, 0.3, 0.5, 0.1), batch_norm="frozen"),),
}
# at the peak of the one-cycle rate two epochs in a row can be worse than later ones: see benchmarks/README.md
LP_FT_PATIENCE = 3
# estimated: a search takes seconds for each shape of a batch, and saves about a tenth of each step of resnet50 on an
# H200; see "GPU" in benchmarks/README.md
MIN_STEPS_FOR_SEARCH = 5000


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """History and decisions of one training.

    Attributes:
        history: One row per epoch (epoch, stage, losses, metrics, seconds, best).
        rates: The learning rate of each stage, whether the learning rate finder chose it, and the reason.
        curves: Loss curves of the learning rate finder (stage, rate, loss).
        best: Monitored metric, epoch and value of the best epoch.
        probe: How the head was fitted on cached features (FittedProbe.describe); empty if it was not.
        feature_map: Two-dimensional map of the features of images (make_feature_map); may have no rows.
    """

    history: pd.DataFrame
    rates: list[dict[str, Any]]
    curves: pd.DataFrame
    best: dict[str, Any]
    probe: dict[str, Any] = field(default_factory=dict)
    feature_map: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Decisions at the start of a stage: epochs, head learning rate with its record, learning rate finder curve."""

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
    *,
    is_trial: bool = False,
) -> TrainingResult:
    """Train the learner stage by stage and restore the weights of the epoch that is best by `recipe.monitor`.

    Each stage starts from the best weights so far. Epochs are numbered across stages.
    `deadline`: default: the recipe's time limit, counted from this call. Training resumes from the newest checkpoint.
    `is_trial`: only the validation images are predicted later: a fitted head is not refitted with them, and there is
    neither an OOD detector nor a feature map.

    Raises:
        ModelError: `make_learner` did not make the learner.
        InputMissingError: The learner was loaded without the images of its run.
        TrainingError: The loss is NaN or infinite, memory is too small, or no epoch fits into the time limit.
        DeviceError: The GPU was lost.
        Interrupted: SIGTERM or SIGINT arrived.
    """
    require_type("learner", learner, Learner)
    require_type("recipe", recipe, Recipe)
    get_learner_state(learner)  # raises ModelError before the training
    require_images(learner.dls)
    deadline = deadline or Deadline.parse(recipe.time_limit)
    with configure_device(learner.dls.device, deterministic=recipe.deterministic):
        return _train(learner, recipe, progress or make_default_progress(), deadline, checkpoints, is_trial)


def _train(
    learner: Learner,
    recipe: Recipe,
    progress: Progress,
    deadline: Deadline,
    checkpoints: Checkpoints | None,
    is_trial: bool,
) -> TrainingResult:
    monitor = resolve_task(recipe, get_loaders_state(learner.dls).task).monitor
    stages = resolve_stages(recipe, len(learner.splitter(learner.model)))
    n_epochs = sum(stage.epochs for stage in stages) + uses_feature_cache(recipe)
    history_callback = HistoryCallback(BestEpoch(monitor), progress, n_epochs, deadline)
    checkpoint_callback = CheckpointCallback(checkpoints, history_callback)
    precision, device = learner.fastcxr.precision, learner.dls.device
    is_auto = recipe.precision == "auto" and resolve_precision("auto", device) == precision
    log.info(describe_precision(precision, device, is_auto=is_auto))
    resolve_batch_size(learner, recipe, stages, checkpoint_callback.load_state())
    with (
        explain_training_errors(recipe, learner.dls.train.bs),
        precision_scope(learner),
        learner.no_bar(),
        learner.no_logging(),
        history_callback.bar_stack,
    ):
        with share_batches(learner, recipe):
            plans = run_stages(learner, recipe, stages, checkpoint_callback)
        fitted_probe = learner.fastcxr.fitted_probe if uses_feature_cache(recipe) else None
        probe = fitted_probe.describe() if fitted_probe else {}  # only the main process has it
        if probe and history_callback.best.epoch == 1:  # no later epoch was better than the fitted head
            if not is_trial:
                refit_head(learner)
        else:
            learner.fastcxr.fitted_probe = None  # its features are of other backbone weights
    if not history_callback.rows:
        raise TrainingError(
            f"no epoch fits into the time limit of {recipe.time_limit}",
            "Pass a longer `time_limit`, or `strategy='linear_probe'`",
        )
    detector, feature_map = None, EMPTY_MAP
    if is_main_process() and not is_trial:
        detector, feature_map = fit_ood_detector(learner, history_callback.progress)
    set_fitted_state(learner, ood_detector=detector, training_recipe=recipe)
    learner.opt = None  # its state belongs to the last epoch, the weights to the best one
    return TrainingResult(
        history=pd.DataFrame(history_callback.rows),
        rates=[plan.record for plan in plans],
        curves=pd.concat([EMPTY_CURVE, *(plan.curve for plan in plans)]),
        best=history_callback.best.summary(),
        probe=probe,
        feature_map=feature_map,
    )


def summarize_own_training(learner: Learner) -> TrainingResult:
    """Return the history of all own calls of fit, fine_tune or fit_one_cycle. Raise TrainingError if there are none.

    No epoch is marked as the best one: the weights are those that the last call left.
    """
    get_learner_state(learner)  # raises for other Learners, which have no fit_history
    history = learner.fit_history
    if not history.rows:
        raise TrainingError("the learner is not trained", "Call train(learner, recipe), or learner.fine_tune(epochs)")
    reason = "highest rate of the user's own call"
    return TrainingResult(
        history=pd.DataFrame(history.rows).assign(best=False),
        rates=[
            {"stage": stage, "rate": rate, "found": False, "reason": reason}
            for stage, rate in history.max_rates.items()
        ],
        curves=EMPTY_CURVE,
        best={"own_training": True},
    )


def resolve_batch_size(
    learner: Learner, recipe: Recipe, stages: list[ResolvedStage], saved_state: dict[str, Any] | None
) -> None:
    """Set the size for `batch_size="auto"`: that of the checkpoint or of an earlier fold, otherwise a new one."""
    if recipe.batch_size != "auto" or not stages:  # the head of a linear probe is fitted without batches
        return
    state = get_loaders_state(learner.dls)
    size = saved_state["batch_size"] if saved_state else state.batch_size
    if size:
        set_batch_size(learner, size)
    else:
        unfreeze(learner, max(stages, key=lambda stage: stage.groups))
        size = choose_batch_size(learner)
    state.batch_size = size
    factor = 1 if recipe.learning_rate == "find" else compute_rate_factor(recipe, size)
    log.info("batch size %d (auto), learning rate multiplied by %.3g", size, factor)


def run_stages(
    learner: Learner, recipe: Recipe, stages: list[ResolvedStage], checkpoint_callback: CheckpointCallback
) -> list[StagePlan]:
    """Run all stages in order, from the loaded checkpoint if there is one, and return their plans."""
    history_callback, saved_state = checkpoint_callback.history_callback, checkpoint_callback.saved_state
    if uses_feature_cache(recipe) and saved_state:  # the checkpoint has the row of this fit; refit_head needs the rest
        fit_head_once(learner, recipe, history_callback.progress)
    elif uses_feature_cache(recipe):
        history_callback.add_fitted_row("probe", fit_head_once, learner, recipe)
    warn_batchnorm_shift(learner, stages)
    saved_plans = saved_state["plans"] if saved_state else []
    plans = [StagePlan(**{**plan, "curve": pd.DataFrame(plan["curve"])}) for plan in saved_plans]
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
            epochs = decide(choose_stage_epochs(learner, stages[index:], history_callback.deadline, n_lr_find_steps))
            if not epochs:
                continue
            rate, record, curve = decide(find_learning_rate(learner, recipe, stage, history_callback.progress))
            plans.append(StagePlan(epochs=epochs, rate=rate, record=record, curve=curve))
        checkpoint_callback.stage_state = {
            "stage": index,
            "plans": [{**vars(plan), "curve": plan.curve.to_dict("list")} for plan in plans],
            "batch_size": learner.dls.train.bs,
        }
        fit_stage(learner, recipe, stage, plans[-1], checkpoint_callback)
        history_callback.best.restore(cast(nn.Module, learner.model))
    return plans


def warn_batchnorm_shift(learner: Learner, stages: list[ResolvedStage]) -> None:
    """Warn about stages that unfreeze layers and update batch-norm statistics, which changes the head's features."""
    has_statistics = any(isinstance(module, _BatchNorm) for module in learner.model.modules())
    for previous, stage in pairwise(stages if has_statistics else ()):
        if stage.groups > previous.groups and stage.batch_norm == "learn":
            log.warning(
                "stage %s changes the batch-norm statistics, and the head of stage %s no longer fits the features. "
                "Fix: Set Stage(batch_norm='frozen')", stage.name, previous.name,
            )  # fmt: skip


def fit_stage(
    learner: Learner, recipe: Recipe, stage: ResolvedStage, plan: StagePlan, checkpoint_callback: CheckpointCallback
) -> None:
    """Train the epochs of one stage; after the loss of a worker, resume from the last checkpoint with fewer workers."""
    rates, needs_recovery = compute_group_rates(learner, stage, plan.rate), False
    history_callback = checkpoint_callback.history_callback
    frozen_callbacks = [FreezeBatchNormStats()] if stage.batch_norm == "frozen" else []
    is_long = plan.epochs * len(learner.dls.train) >= MIN_STEPS_FOR_SEARCH
    while True:
        try:  # recovery is inside: a second exception for the same dead worker may arrive during it
            if needs_recovery:
                history_callback.bar_stack.close()
                history_callback.load_state_dict(cast(dict, checkpoint_callback.load_state()))
                halve_workers(learner)
            scheduler = make_scheduler(learner, recipe, plan.epochs, rates)
            callbacks = [StopOnNonFiniteLoss(), history_callback, checkpoint_callback, *frozen_callbacks, scheduler]
            with interrupt.defer_interrupts(), search_algorithms(enabled=is_long and not recipe.deterministic):
                fit_from_epoch(learner, checkpoint_callback.first_epoch, plan.epochs, rates, callbacks)
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # one of several processes cannot go back alone
            if not is_worker_loss(error) or not checkpoint_callback.checkpoints or find_processes():
                raise
            needs_recovery = True


def choose_stage_epochs(learner: Learner, stages: list[ResolvedStage], deadline: Deadline, n_lr_find_steps: int) -> int:
    """Return how many epochs of the first of these stages fit into its share of the remaining time."""
    n_requested = stages[0].epochs
    time_share = n_requested / max(1, sum(stage.epochs for stage in stages))
    epochs, seconds = compute_epochs_in_time(learner, n_requested, deadline.seconds_left * time_share, n_lr_find_steps)
    if epochs < n_requested:
        log.warning(
            "stage %s: %d of %d epochs fit into the time limit (%.3g s per epoch)",
            stages[0].name, epochs, n_requested, seconds,
        )  # fmt: skip
    return epochs


def resolve_stages(recipe: Recipe, n_groups: int) -> list[ResolvedStage]:
    """Return the recipe's stages for a network of `n_groups` layer groups, with all defaults filled in.

    Raises RecipeError if a stage has more multiples than trained layer groups.
    """
    stages = STRATEGIES[recipe.strategy] if isinstance(recipe.strategy, str) else recipe.strategy
    if recipe.strategy in ("gradual", "lp_ft") and recipe.weights == "none":
        log.warning(
            "strategy %s needs pretrained weights: falling back to full (all layers trained at once)", recipe.strategy
        )
        stages = STRATEGIES["full"]
    elif recipe.strategy == "lp_ft" and recipe.layer_lr_ratio != 1:  # the recipe gives the rates of all layer groups
        stages = [replace(stage, scale=1.0, multiples=None) for stage in stages]
    if isinstance(recipe.strategy, str):
        stages = [_adapt_to_groups(stage, n_groups) for stage in stages]
    return [_fill_defaults(stage, recipe, n_groups) for stage in stages]


def _adapt_to_groups(stage: Stage, n_groups: int) -> Stage:
    """Return a stage, written for four groups of the backbone and the head, for a network of `n_groups` groups.

    A network with fewer groups lacks the first ones. In one with more, as in a transformer, a quarter of the backbone's
    groups replaces each of the four.
    """
    groups, multiples = stage.groups, stage.multiples
    if n_groups <= N_BACKBONE_GROUPS + 1:
        return replace(stage, multiples=multiples and multiples[-n_groups:])
    if groups != "all":
        groups = 1 + _count_groups(groups - 1, n_groups)
    if multiples:
        *quarters, head = multiples
        n_multiples = _count_groups(len(quarters), n_groups)
        multiples = (*(quarters[i * len(quarters) // n_multiples] for i in range(n_multiples)), head)
    return replace(stage, groups=groups, multiples=multiples)


def _count_groups(n_quarters: int, n_groups: int) -> int:
    return round(n_quarters / N_BACKBONE_GROUPS * (n_groups - 1))


def _fill_defaults(stage: Stage, recipe: Recipe, n_groups: int) -> ResolvedStage:
    groups = n_groups if stage.groups == "all" else min(stage.groups, n_groups)
    if stage.multiples is not None and len(stage.multiples) > groups:
        raise RecipeError(
            f"stage {stage.name!r} has {len(stage.multiples)} multiples for {groups} trained layer groups",
            f"Pass at most one per trained group, the head last; the network has {n_groups} groups",
        )
    default_patience = LP_FT_PATIENCE if recipe.strategy == "lp_ft" and uses_feature_cache(recipe) else 0
    patience = next(n for n in (stage.patience, recipe.patience, default_patience) if n is not None)
    epochs = recipe.epochs if stage.epochs is None else stage.epochs
    ratio = recipe.layer_lr_ratio if stage.layer_lr_ratio is None else stage.layer_lr_ratio
    resolved = {"groups": groups, "epochs": epochs, "patience": patience, "layer_lr_ratio": ratio}
    return ResolvedStage(**vars(stage) | resolved)


def unfreeze(learner: Learner, stage: ResolvedStage) -> None:
    """Unfreeze the stage's last layer groups, freeze the others, and create a new optimizer."""
    learner.create_opt()
    learner.freeze_to(len(learner.splitter(learner.model)) - stage.groups)
    for parameter in learner.model.parameters():
        parameter.grad = None  # torch's optimizers would apply weight decay to a frozen layer with an old gradient
