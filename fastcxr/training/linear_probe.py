"""Fit a linear head on cached features with L-BFGS, without epochs."""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from fastai.learner import Learner, Metric
from fastai.torch_core import to_detach

from fastcxr.config.recipe import Recipe
from fastcxr.errors import TrainingError
from fastcxr.io.formatting import pluralize
from fastcxr.models.heads import MultiScaleHead
from fastcxr.models.state import set_fitted_state
from fastcxr.progress.base import Progress
from fastcxr.training.feature_cache import FeatureCache, find_multi_scale_head, make_feature_cache
from fastcxr.training.losses import WeightedLoss

log = logging.getLogger("fastcxr")
L2_STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # strongest first: each fit starts from the previous one
MAX_LBFGS_STEPS = 60
CHUNK_ROWS = 8192  # rows of features in one matrix product
MAX_CACHED_BYTES = 1 << 30  # for a split's features in memory; larger ones are read from disk in each step
MIN_DEVIATION = 1e-4  # floor for the standard deviation of constant features


@dataclass(frozen=True)
class FeatureSplit:
    """Cached features of one split.

    Attributes:
        features: Features of the dataset, shape (views, n, d).
        rows: Rows of the split in `features`.
        labels: Class number of each row.
        sample_weights: How often an epoch shows each row.
    """

    features: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor
    sample_weights: torch.Tensor

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield features in single precision, labels and sample weights, at most CHUNK_ROWS rows at a time."""
        chunks, centre = self.cached_chunks or (self.read_chunks(), None)
        for chunk, chunk_slice in zip(chunks, self.chunk_slices * len(self.features), strict=True):
            features = chunk if centre is None else chunk.float().add_(centre)
            yield features, self.labels[chunk_slice], self.sample_weights[chunk_slice]

    @property
    def chunk_slices(self) -> list[slice]:
        """The rows of each chunk of a view."""
        return [slice(start, start + CHUNK_ROWS) for start in range(0, len(self.rows), CHUNK_ROWS)]

    @cached_property
    def cached_chunks(self) -> tuple[list[torch.Tensor], torch.Tensor | None] | None:
        """All chunks in memory, and the vector subtracted from each row; None if they exceed MAX_CACHED_BYTES."""
        n_values = len(self.features) * len(self.rows) * self.features.shape[2]
        if 4 * n_values <= MAX_CACHED_BYTES:
            return list(self.read_chunks()), None
        return make_half_precision_cache(self.read_chunks()) if 2 * n_values <= MAX_CACHED_BYTES else None

    def read_chunks(self) -> Iterator[torch.Tensor]:
        """Yield the features of each chunk from disk."""
        for view in range(len(self.features)):
            for chunk_slice in self.chunk_slices:
                yield torch.from_numpy(np.ascontiguousarray(self.features[view, self.rows[chunk_slice]]))

    def concat(self, other: "FeatureSplit") -> "FeatureSplit":
        """Return the rows of both splits."""
        rows, labels = np.concatenate([self.rows, other.rows]), torch.cat([self.labels, other.labels])
        return FeatureSplit(self.features, rows, labels, torch.cat([self.sample_weights, other.sample_weights]))


def make_half_precision_cache(chunks: Iterator[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor | None] | None:
    """Return half-precision chunks minus the mean of the first chunk, and this mean.

    The rounding error (1/2048) is relative to the distance from the mean. None if a feature exceeds the range.
    """
    centred_chunks, centre = [], None
    for chunk in chunks:
        centre = chunk.mean(dim=0) if centre is None else centre
        centred_chunks.append((chunk - centre).half())
        if not centred_chunks[-1].isfinite().all():
            return None
    return centred_chunks, centre


def make_feature_split(loader, cache: FeatureCache) -> FeatureSplit:
    """Return the features of an ImageLoader's rows in all views, weighted as the loader samples them."""
    rows = cache.find_rows(loader.items["file"])
    labels = loader.targets[0]
    sample_weights = torch.ones(len(rows))
    if loader.weights is not None:
        sample_weights = torch.tensor(loader.weights) * len(rows) / sum(loader.weights)
    if loader.rows is not None:
        sample_weights = torch.bincount(torch.tensor(loader.rows), minlength=len(rows)).float()
    return FeatureSplit(cache.features, rows, labels, sample_weights)


def fit_head(learner: Learner, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Fit the learner's head on cached features, in place, and return the losses and metrics of a history row.

    The objective is the recipe's loss plus an L2 penalty on the weights of the standardized features (multinomial
    logistic regression for cross-entropy). Of several penalties, the one with the lowest validation loss is used.
    Each view of an image is a training row; logits are averaged over the views.
    """
    cache = make_feature_cache(learner, recipe, progress)
    train, valid = make_feature_split(learner.dls.train, cache), make_feature_split(learner.dls.valid, cache)
    head, loss = find_multi_scale_head(learner), find_weighted_loss(learner)
    fit = fit_probe(head, loss, train, valid, progress)
    set_head_weight(head, fit.weight)
    # replace: without their features in memory
    set_fitted_state(learner, fitted_probe=FittedProbe(cache, replace(train), replace(valid), fit))
    log.info("fitted the head on features of %s (L2 penalty %g)", pluralize(len(train.rows), "image"), fit.l2)
    logits = compute_all_logits(fit.weight, head, valid)
    losses = {"train_loss": compute_mean_loss(fit.weight, head, train, loss), "valid_loss": fit.valid_loss}
    return losses | {metric.name: compute_metric(metric, logits, valid.labels) for metric in learner.metrics}


def find_weighted_loss(learner: Learner) -> WeightedLoss:
    """Return the loss that make_learner set. Raise TrainingError for a loss of the user."""
    loss = getattr(learner.loss_func, "func", None)
    if not isinstance(loss, WeightedLoss):
        problem = f"the head cannot be fitted on cached features with the loss {learner.loss_func}"
        raise TrainingError(problem, "Pass Recipe(strategy='full'), or choose one of the losses of Recipe(loss=...)")
    return loss


def compute_metric(metric: Metric, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return a fastai metric, or a metric of the user, of all images as one batch."""
    batch = SimpleNamespace(pred=logits, yb=(labels,), y=labels, to_detach=to_detach)
    metric.reset()
    metric.accumulate(batch)
    return float(cast(Any, metric.value))


def refit_head(learner: Learner) -> None:
    """Refit the head with the selected penalty on training and validation images together.

    Predictions of validation images still use the head that was fitted without them (see predict_from_features).
    """
    fitted_probe, head = learner.fastcxr.fitted_probe, find_multi_scale_head(learner)
    train_and_valid = fitted_probe.train.concat(fitted_probe.valid)
    weight = fit_lbfgs(fitted_probe.fit.weight, head, train_and_valid, learner.loss_func.func, fitted_probe.fit.l2)
    set_head_weight(head, weight)
    set_fitted_state(learner, fitted_probe=fitted_probe, fitted_splits=("train", "valid"))
    log.info("refitted the head on %s images, validation images included", f"{len(train_and_valid.rows):,}")


def predict_from_features(learner: Learner, files: Sequence[str], held_out: Sequence[bool]) -> torch.Tensor | None:
    """Return logits computed from cached features, shape (n, k); equal to those of a forward pass of the images.

    Return None if a file has no cached features. The network must be unchanged since the fit (find_learner_state).
    `held_out` marks the validation images: their logits come from the head that was fitted without them, so they are
    out-of-sample predictions and differ from those of the saved model, whose head was refitted on them too.
    """
    fitted_probe, head = learner.fastcxr.fitted_probe, find_multi_scale_head(learner)
    if not all(file in fitted_probe.cache.row_by_file for file in files):
        return None
    head_weight = torch.cat([head.linear.weight, head.linear.bias[:, None]], dim=1).detach().cpu()
    rows, is_held_out = fitted_probe.cache.find_rows(files), np.array(held_out, bool)
    logits = torch.empty(len(files), head.linear.out_features)
    for mask, weight in ((is_held_out, fitted_probe.fit.weight), (~is_held_out, head_weight)):
        logits[mask] = _classify_rows(fitted_probe.cache.features, rows[mask], head, weight)
    return logits


@torch.no_grad()
def _classify_rows(features: np.ndarray, rows: np.ndarray, head: MultiScaleHead, weight: torch.Tensor) -> torch.Tensor:
    """Return the logits of these rows of the feature cache as a forward pass of the network computes them."""
    head = copy.deepcopy(head).cpu().eval()
    set_head_weight(head, weight)
    chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
    views = [[head.classify(torch.from_numpy(view[chunk])) for chunk in chunks] for view in features]
    return torch.stack([torch.cat([torch.empty(0, len(weight)), *view]) for view in views]).mean(dim=0)


def set_head_weight(head: MultiScaleHead, weight: torch.Tensor) -> None:
    """Copy fitted weights to the head; the last column is the bias."""
    with torch.no_grad():
        head.linear.weight.copy_(weight[:, :-1])
        head.linear.bias.copy_(weight[:, -1])


@dataclass(frozen=True)
class ProbeFit:
    """Fitted weights, shape (k, d + 1) with the bias as last column, L2 penalty and validation loss."""

    weight: torch.Tensor
    l2: float
    valid_loss: float


@dataclass(frozen=True)
class FittedProbe:
    """A fit on training images with its data."""

    cache: FeatureCache
    train: FeatureSplit
    valid: FeatureSplit
    fit: ProbeFit

    def describe(self) -> dict[str, Any]:
        """Return how the head was fitted, for model.json."""
        return {
            "solver": "L-BFGS",
            "l2": self.fit.l2,
            "l2_tried": list(L2_STRENGTHS),
            "views": len(self.cache.features),
        }


def fit_probe(
    head: MultiScaleHead, loss: WeightedLoss, train: FeatureSplit, valid: FeatureSplit, progress: Progress
) -> ProbeFit:
    """Return the fit with the lowest loss on `valid`, and set the head's standardization from `train`.

    Raises TrainingError for a NaN or infinite loss.
    """
    set_standardization(head, train)
    weight, fits = torch.zeros(head.linear.out_features, head.linear.in_features + 1), []
    with progress.bar(len(L2_STRENGTHS), "fitting the head") as bar:
        for l2 in L2_STRENGTHS:
            weight = fit_lbfgs(weight, head, train, loss, l2)
            fits.append(ProbeFit(weight, l2, compute_mean_loss(weight, head, valid, loss)))
            bar.advance()
    if not all(math.isfinite(fit.valid_loss) for fit in fits):
        raise TrainingError(
            "the validation loss of the fitted head is NaN or infinite",
            "Pass `precision='fp32'`, or check the data for images without contrast",
        )
    return min(fits, key=lambda fit: fit.valid_loss)


def compute_all_logits(weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit) -> torch.Tensor:
    """Return the logits of all rows, averaged over the views; shape (n, k)."""
    view_logits = torch.cat([compute_logits(weight, head, chunk) for chunk, _, _ in feature_split.chunks()])
    return view_logits.view(len(feature_split.features), len(feature_split.rows), -1).mean(dim=0)


def set_standardization(head: MultiScaleHead, feature_split: FeatureSplit) -> None:
    """Set the head's mean and standard deviation of each feature from these rows."""
    n_rows, zero = len(feature_split.features) * len(feature_split.rows), torch.zeros(())
    mean = sum((chunk.double().sum(dim=0) for chunk, _, _ in feature_split.chunks()), zero) / n_rows
    squares = ((chunk.double() - mean).square().sum(dim=0) for chunk, _, _ in feature_split.chunks())
    head.mean.copy_(mean)
    head.std.copy_((sum(squares, zero) / n_rows).sqrt().clamp_min(MIN_DEVIATION))


def compute_logits(weight: torch.Tensor, head: MultiScaleHead, chunk: torch.Tensor) -> torch.Tensor:
    """Return the logits of rows of raw features; `weight` applies to standardized ones, bias in the last column."""
    scaled = weight[:, :-1] / head.std.cpu()
    return chunk @ scaled.T + (weight[:, -1] - scaled @ head.mean.cpu())


def fit_lbfgs(
    start: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: WeightedLoss, l2: float
) -> torch.Tensor:
    """Minimize mean loss + l2 / 2 * squared norm of the weights without bias, from `start`, with full-batch L-BFGS."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=MAX_LBFGS_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    total_weight = len(feature_split.features) * row_weights.sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        objective = l2 / 2 * weight[:, :-1].square().sum()
        objective.backward()
        chunk_losses = []
        for chunk, labels, sample_weights in feature_split.chunks():
            losses = loss.compute_losses(compute_logits(weight, head, chunk), labels)
            chunk_loss = (losses * _compute_row_weights(loss, labels, sample_weights)).sum() / total_weight
            chunk_loss.backward()  # adds to the gradient; only one chunk is in memory
            chunk_losses.append(chunk_loss.detach())
        return objective.detach() + sum(chunk_losses)

    optimizer.step(closure)
    return weight.detach()


def compute_mean_loss(
    weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: WeightedLoss
) -> float:
    """Return the weighted mean loss of all rows, without the penalty."""
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    losses = loss.compute_losses(compute_all_logits(weight, head, feature_split), feature_split.labels)
    return float((losses * row_weights).sum() / row_weights.sum())


def _compute_row_weights(loss: WeightedLoss, labels: torch.Tensor, sample_weights: torch.Tensor) -> torch.Tensor:
    return sample_weights if loss.weight is None else loss.weight.cpu()[labels] * sample_weights
