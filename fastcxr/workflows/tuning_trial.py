"""One trial of a tuning: train on the training images, return the metric on the validation images, write nothing.

The manifest of the trials has no test images: no trial predicts them, and no statistic uses them.
"""

import gc
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import open_dataset_images
from fastcxr.data.cache.images import ImageCache
from fastcxr.errors import DeviceError, TrainingError
from fastcxr.inference.predict import predict
from fastcxr.metrics.calibration import fit_calibration, scale_predictions
from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.models.device_errors import is_memory_error
from fastcxr.models.devices import configure_device, find_device
from fastcxr.models.encoders import find_image_size
from fastcxr.models.heads import uses_feature_cache
from fastcxr.progress.base import Bar, Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.non_finite_loss import BATCH_WARNING
from fastcxr.training.time_budget import Deadline
from fastcxr.training.trainer import STRATEGIES, train
from fastcxr.workflows.tuning_space import find_strategy

log = logging.getLogger("fastcxr")
TRIAL_SPLITS = ("train", "valid")
METRICS = {"auroc": "macro AUROC", "accuracy": "accuracy", "valid_loss": "loss"}  # of validation images
MINIMIZED = ("valid_loss",)
SHORT_TASKS = ("fitting the head", "predicting")  # without a bar in a trial


def find_metric(recipe: Recipe) -> str:
    """Return the metric that compares trials: the monitor of the recipe, auroc (macro) for auto."""
    return "auroc" if recipe.monitor == "auto" else recipe.monitor


def count_epochs(recipe: Recipe) -> int | None:
    """Return the number of history rows of a trial without early stopping; None for a fitted head without epochs."""
    if recipe.strategy == "linear_probe":
        return None
    strategy = find_strategy(recipe)
    stages = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    return sum(recipe.epochs if s.epochs is None else s.epochs for s in stages) + uses_feature_cache(recipe)


class TrialImages:
    """The training and validation images of all trials: each size is decoded once."""

    def __init__(self, manifest: pd.DataFrame, image_cache: ImageCache):
        """`manifest`: all images with their splits; `image_cache`: its images in one size."""
        self.manifest = manifest[manifest["split"].isin(TRIAL_SPLITS)].reset_index(drop=True)
        self._by_size = {image_cache.size: image_cache}

    def open(self, size: int, progress: Progress) -> ImageCache:
        """Return the images in this size [pixels]."""
        if size not in self._by_size:
            self._by_size[size] = open_dataset_images(self.manifest, size, progress)[1]
        return self._by_size[size]


class TrialProgress(Progress):
    """The display of a trial: bars with its number, and a function that receives the metric of each epoch."""

    def __init__(self, progress: Progress, prefix: str, metric: str, report_epoch: Callable[[int, float], None]):
        self.progress, self.prefix, self.metric, self.report_epoch = progress, prefix, metric, report_epoch

    def bar(self, total: int, text: str) -> AbstractContextManager[Bar]:
        """Show a bar, except for short tasks; that of an epoch keeps its first word, by which displays recognize it."""
        if text in SHORT_TASKS:
            return nullcontext(Bar())
        label = f"{text}, {self.prefix}" if text.startswith("epoch") else f"{self.prefix}, {text}"
        return self.progress.bar(total, label)

    def epoch(self, row: dict[str, Any]) -> None:
        """Pass the metric of a history row on; the table of epochs is not shown."""
        self.report_epoch(row["epoch"], row[self.metric])


@contextmanager
def log_warnings_only() -> Iterator[None]:
    """Log only warnings in this block: the other messages of all trials are the same.

    The images of a batch are not listed: the loss is NaN because of the options, and tuning.csv has the reason.
    """
    level = log.level
    log.setLevel(logging.WARNING)
    log.addFilter(_is_shown)
    try:
        yield
    finally:
        log.removeFilter(_is_shown)
        log.setLevel(level)


def _is_shown(record: logging.LogRecord) -> bool:
    return record.msg != BATCH_WARNING


def evaluate_trial(recipe: Recipe, images: TrialImages, metric: str, progress: Progress) -> float:
    """Train, and return the metric of the validation images as the report of a run computes it.

    Of a fitted head, the one that was fitted on training images only predicts them.
    Raises TrainingError if the training fails, memory is too small or the metric is undefined.
    """
    try:
        value = compute_metric(recipe, images, metric, progress)
    except (MemoryError, RuntimeError, DeviceError) as error:
        if not is_memory_error(error.__cause__ or error):
            raise
        raise TrainingError("out of memory", "Pass a smaller `batch_size` or `image_size`") from error
    finally:
        if recipe.strategy != "linear_probe":
            gc.collect()  # the learner and its callbacks refer to each other: their memory is on the GPU until then
    if value is None or not math.isfinite(value):
        problem = f"the {METRICS[metric]} of the validation images is undefined"
        raise TrainingError(problem, "Check that the validation split has images of several classes")
    return value


def compute_metric(recipe: Recipe, images: TrialImages, metric: str, progress: Progress) -> float | None:
    """Train, and return the metric of the validation images; None if it is undefined."""
    with ExitStack() as cleanup:
        cleanup.enter_context(configure_device(find_device(recipe.device), deterministic=recipe.deterministic))
        image_cache = images.open(find_image_size(recipe), progress)
        loaders = make_loaders(images.manifest, recipe, progress, image_cache)
        cleanup.callback(loaders.fastcxr.images.release)
        learner = make_learner(loaders, recipe)
        training = train(learner, recipe, progress, Deadline(), is_trial=True)
        if metric == "valid_loss":
            return float(training.history["valid_loss"].min())
        predictions = predict(learner, images.manifest, splits=("valid",), progress=progress)
        predictions = scale_predictions(predictions, fit_calibration(predictions))
        found = compute_image_metrics(predictions.scorable().to_arrays())[metric]
        return found["macro"] if isinstance(found, dict) else found
