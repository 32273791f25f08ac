"""Time a few training steps of each stage of a recipe, on a sample of its images, for an estimate before a run."""

from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.models.devices import configure_device, read_clock
from fastcxr.models.heads import find_head, uses_feature_cache
from fastcxr.models.precision import autocast, describe_precision
from fastcxr.training.batch_size import choose_batch_size, estimate_step_bytes
from fastcxr.training.feature_cache import count_features
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import ImageLoader, make_loaders
from fastcxr.training.mixed_precision import precision_scope
from fastcxr.training.schedules import LR_FIND_STEPS, ResolvedStage
from fastcxr.training.time_budget import N_TIMED_STEPS, measure_step_seconds
from fastcxr.training.trainer import resolve_stages, unfreeze

MAX_SAMPLE_BATCHES = 2  # batches of images that are read


@dataclass(frozen=True, kw_only=True)
class TimedStage:
    """A stage with the measured duration of its training steps.

    Attributes:
        name: name of the stage.
        epochs: epochs that the recipe requests.
        step_seconds: seconds of a training step.
        search_steps: steps of the learning rate finder before the first epoch.
    """

    name: str
    epochs: int
    step_seconds: float
    search_steps: int


@dataclass(frozen=True, kw_only=True)
class TimedSteps:
    """Measured durations and memory of a recipe on this device.

    Attributes:
        stages: the stages with epochs; none for a linear probe.
        batch_size: images of a training step.
        forward_seconds: seconds of a forward pass of one image, in batches of the training size.
        weights_bytes: size of all weights.
        n_features: inputs of the head.
        step_bytes: peak memory of a training step: measured on a GPU, estimated on a CPU; 0 on a CPU without steps.
        is_measured: whether it is measured.
        precision: precision in words.
    """

    stages: tuple[TimedStage, ...]
    batch_size: int
    forward_seconds: float
    weights_bytes: int
    n_features: int
    step_bytes: int
    is_measured: bool
    precision: str


def time_steps(recipe: Recipe, sample: pd.DataFrame, n_train_rows: int) -> TimedSteps:
    """Time training steps of each stage with a network with random weights, which needs as long as a pretrained one.

    Args:
        recipe: the experiment.
        sample: a manifest of readable images with train and valid rows and all classes.
        n_train_rows: images of an epoch of the whole dataset.
    """
    # the strategy of the timed network decides its head; that of the recipe needs pretrained weights
    strategy = "linear_probe" if uses_feature_cache(recipe) else "full"
    changes = {"weights": "none", "strategy": strategy, "oversample": (), "time_limit": None, "workers": 0}
    timed_recipe = recipe.replace(**changes)
    loaders = make_loaders(sample, timed_recipe)
    learner = make_learner(loaders, timed_recipe)
    device = learner.dls.device
    with configure_device(device, deterministic=recipe.deterministic), precision_scope(learner):
        stages = resolve_stages(recipe, len(cast(Any, learner.splitter)(learner.model)))
        batch_size = _find_batch_size(learner, recipe, stages, n_train_rows)
        _repeat_rows(learner.dls.train, batch_size * MAX_SAMPLE_BATCHES)
        learner.dls.train.bs = batch_size
        n_search_steps = LR_FIND_STEPS if recipe.learning_rate == "find" else 0
        n_before = _reset_peak_memory(device)
        timed = []
        for stage in stages:
            unfreeze(learner, stage)
            seconds = measure_step_seconds(learner)
            timed.append(
                TimedStage(name=stage.name, epochs=stage.epochs, step_seconds=seconds, search_steps=n_search_steps)
            )
        network = cast(nn.Module, learner.model)
        forward_seconds = _measure_forward_seconds(learner) / batch_size
        is_measured = device.type == "cuda"
        step_bytes = torch.cuda.max_memory_allocated(device) - n_before if is_measured else 0
        if not is_measured and stages:
            step_bytes = estimate_step_bytes(learner, batch_size)
        return TimedSteps(
            stages=tuple(timed),
            batch_size=batch_size,
            forward_seconds=forward_seconds,
            weights_bytes=sum(tensor.nbytes for tensor in network.state_dict().values()),
            n_features=count_features(find_head(network)),
            step_bytes=step_bytes,
            is_measured=is_measured,
            precision=describe_precision(learner.fastcxr.precision, device, is_auto=recipe.precision == "auto"),
        )


def _find_batch_size(learner: Learner, recipe: Recipe, stages: list[ResolvedStage], n_train_rows: int) -> int:
    """Return the batch size of the run; for "auto" the one that is chosen for this number of images."""
    if recipe.batch_size != "auto":
        return min(recipe.batch_size, n_train_rows)
    if not stages:
        return learner.dls.train.bs
    unfreeze(learner, max(stages, key=lambda stage: stage.groups))
    _repeat_rows(learner.dls.train, n_train_rows)
    return choose_batch_size(learner)


def _repeat_rows(loader: ImageLoader, n_rows: int) -> None:
    """Let an epoch of the loader show the images of the sample repeatedly."""
    n_images = len(cast(Any, loader).items)
    loader.weights, loader.rows = None, [row % n_images for row in range(n_rows)]
    loader.n = n_rows  # pyright: ignore[reportAttributeAccessIssue]  of fastai's loader


def _reset_peak_memory(device: torch.device) -> int:
    """Return the bytes in use on a GPU before the steps; 0 on another device."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


@torch.no_grad()
def _measure_forward_seconds(learner: Learner) -> float:
    """Return the seconds of a forward pass of one training batch."""
    network, device = cast(nn.Module, learner.model), learner.dls.device
    was_training = network.training
    images = learner.dls.train.one_batch()[0].as_subclass(torch.Tensor).contiguous(memory_format=torch.channels_last)
    network.eval().to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(N_TIMED_STEPS):
        started = read_clock(device)
        with autocast(learner.fastcxr.precision, device):
            network(images)
        seconds.append(read_clock(device) - started)
    network.train(was_training)
    return min(seconds[1:])
