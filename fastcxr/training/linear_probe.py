"""Fit a linear head on cached features with L-BFGS, without epochs.

All L2 penalties are fitted at once, on the device of the loaders: each pass over the features serves all of them.
"""

import copy
import logging
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
from fastcxr.models.devices import find_float64_device
from fastcxr.models.heads import MultiScaleHead
from fastcxr.models.state import set_fitted_state
from fastcxr.progress.base import Bar, Progress
from fastcxr.training.feature_cache import FeatureCache, find_multi_scale_head, make_feature_cache
from fastcxr.training.lbfgs import minimize
from fastcxr.training.losses import WeightedLoss

log = logging.getLogger("fastcxr")
L2_STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
MAX_EVALUATIONS = 250  # of the loss of all images
N_AXES = 64  # principal axes of the features whose large variance is scaled down for the fit
N_POWER_ITERATIONS = 3  # to find these axes
CHUNK_ROWS = 8192  # rows of features in one matrix product
MAX_CACHED_BYTES = 1 << 30  # for a split's features in memory; larger ones are read from disk in each step
MIN_DEVIATION = 1e-4  # floor for the standard deviation of constant features
SILENT_BAR = Bar()


@dataclass(frozen=True)
class FeatureSplit:
    """Cached features of one split. The fit computes on the device of its labels.

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
    def device(self) -> torch.device:
        """The device of all chunks."""
        return self.labels.device

    @property
    def chunk_slices(self) -> list[slice]:
        """The rows of each chunk of a view."""
        return [slice(start, start + CHUNK_ROWS) for start in range(0, len(self.rows), CHUNK_ROWS)]

    @cached_property
    def cached_chunks(self) -> tuple[list[torch.Tensor], torch.Tensor | None] | None:
        """All chunks on the device, and the vector subtracted from each row; None if they exceed MAX_CACHED_BYTES."""
        n_values = len(self.features) * len(self.rows) * self.features.shape[2]
        if 4 * n_values <= MAX_CACHED_BYTES:
            return list(self.read_chunks()), None
        return make_half_precision_cache(self.read_chunks()) if 2 * n_values <= MAX_CACHED_BYTES else None

    def read_chunks(self) -> Iterator[torch.Tensor]:
        """Yield the features of each chunk from disk."""
        for view in range(len(self.features)):
            for chunk_slice in self.chunk_slices:
                chunk = np.ascontiguousarray(self.features[view, self.rows[chunk_slice]])
                yield torch.from_numpy(chunk).to(self.device)

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
    device = find_float64_device(loader.device)
    rows = cache.find_rows(loader.items["file"])
    labels = loader.targets[0]
    sample_weights = torch.ones(len(rows))
    if loader.weights is not None:
        sample_weights = torch.tensor(loader.weights) * len(rows) / sum(loader.weights)
    if loader.rows is not None:
        sample_weights = torch.bincount(torch.tensor(loader.rows), minlength=len(rows)).float()
    return FeatureSplit(cache.features, rows, labels.to(device), sample_weights.to(device))


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
    train_loss = compute_mean_losses(fit.weight[None], head, train, loss).item()
    losses = {"train_loss": train_loss, "valid_loss": fit.valid_loss}
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
    start, loss, l2 = fitted_probe.fit.weight[None], learner.loss_func.func, (fitted_probe.fit.l2,)
    set_head_weight(head, fit_lbfgs(start, head, train_and_valid, loss, l2)[0])
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
    head_weight = torch.cat([head.linear.weight, head.linear.bias[:, None]], dim=1).detach()
    rows, is_held_out = fitted_probe.cache.find_rows(files), np.array(held_out, bool)
    logits = torch.empty(len(files), head.linear.out_features)
    for mask, weight in ((is_held_out, fitted_probe.fit.weight), (~is_held_out, head_weight)):
        logits[mask] = _classify_rows(fitted_probe.cache.features, rows[mask], head, weight)
    return logits


@torch.no_grad()
def _classify_rows(features: np.ndarray, rows: np.ndarray, head: MultiScaleHead, weight: torch.Tensor) -> torch.Tensor:
    """Return the logits of these rows of the feature cache as a forward pass of the network computes them."""
    head = copy.deepcopy(head).eval()
    set_head_weight(head, weight)
    chunks, device = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)], head.mean.device
    views = [[head.classify(torch.from_numpy(view[chunk]).to(device)).cpu() for chunk in chunks] for view in features]
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
    start = torch.zeros(len(L2_STRENGTHS), head.linear.out_features, head.linear.in_features + 1, device=train.device)
    with progress.bar(MAX_EVALUATIONS, "fitting the head") as bar:
        weights = fit_lbfgs(start, head, train, loss, L2_STRENGTHS, bar)
    valid_losses = compute_mean_losses(weights, head, valid, loss).tolist()
    if not np.isfinite(valid_losses).all():
        raise TrainingError(
            "the validation loss of the fitted head is NaN or infinite",
            "Pass `precision='fp32'`, or check the data for images without contrast",
        )
    best = int(np.argmin(valid_losses))
    return ProbeFit(weights[best], L2_STRENGTHS[best], valid_losses[best])


def compute_all_logits(weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit) -> torch.Tensor:
    """Return the logits of all rows, averaged over the views; shape (n, ..., k) for weights (..., k, d + 1)."""
    view_logits = torch.cat([compute_logits(weight, head, chunk) for chunk, _, _ in feature_split.chunks()])
    return view_logits.unflatten(0, (len(feature_split.features), len(feature_split.rows))).mean(dim=0)


def set_standardization(head: MultiScaleHead, feature_split: FeatureSplit) -> None:
    """Set the head's mean and standard deviation of each feature from these rows."""
    n_rows, zero = len(feature_split.features) * len(feature_split.rows), torch.zeros((), device=feature_split.device)
    mean = sum((chunk.double().sum(dim=0) for chunk, _, _ in feature_split.chunks()), zero) / n_rows
    squares = ((chunk.double() - mean).square().sum(dim=0) for chunk, _, _ in feature_split.chunks())
    std = (sum(squares, zero) / n_rows).sqrt().clamp_min(MIN_DEVIATION)
    head.mean.copy_(mean.float())  # an Apple GPU has no float64
    head.std.copy_(std.float())


def compute_logits(weight: torch.Tensor, head: MultiScaleHead, chunk: torch.Tensor) -> torch.Tensor:
    """Return the logits of rows of raw features, shape (n, ..., k).

    `weight`: weights of standardized features, bias in the last column; shape (..., k, d + 1).
    """
    scaled = weight[..., :-1] / head.std.to(weight.device)
    bias = weight[..., -1] - scaled @ head.mean.to(weight.device)
    return (chunk @ scaled.flatten(0, -2).T + bias.flatten()).unflatten(1, bias.shape)


def fit_lbfgs(
    start: torch.Tensor,
    head: MultiScaleHead,
    feature_split: FeatureSplit,
    loss: WeightedLoss,
    l2: Sequence[float],
    bar: Bar = SILENT_BAR,
) -> torch.Tensor:
    """Minimize mean loss + l2 / 2 * squared norm of the weights without bias, for each penalty `l2`.

    Return the weights, shape (s, k, d + 1). `start`: first weights, of the same shape. `bar` advances by one step for
    each pass over the features.
    """
    penalties = torch.tensor(l2, device=start.device)
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    total_weight = len(feature_split.features) * row_weights.sum()
    variances, axes = find_principal_axes(head, feature_split)
    # curvature of cross-entropy at equal probabilities: variance / number of classes
    curvature = variances / start.shape[1] + penalties[:, None]
    factors = (curvature.amin(dim=1, keepdim=True) / curvature).sqrt()

    def evaluate(points: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = scale_along_axes(points.unflatten(1, start.shape[1:]), axes, factors[rows]).requires_grad_()
        objectives = penalties[rows] / 2 * weight[..., :-1].square().sum(dim=(1, 2))
        objectives.sum().backward()
        for chunk, labels, sample_weights in feature_split.chunks():
            losses = compute_losses(loss, compute_logits(weight, head, chunk), labels)
            chunk_losses = _compute_row_weights(loss, labels, sample_weights) @ losses / total_weight
            chunk_losses.sum().backward()  # adds to the gradient; only one chunk is in memory
            objectives = objectives.detach() + chunk_losses.detach()
        bar.advance()
        gradient = scale_along_axes(cast(torch.Tensor, weight.grad), axes, factors[rows])  # the scaling is symmetric
        return objectives.detach(), gradient.flatten(1)

    first_points = scale_along_axes(start, axes, 1 / factors).flatten(1)
    minima = minimize(evaluate, first_points, MAX_EVALUATIONS).view_as(start)
    return scale_along_axes(minima, axes, factors)


def find_principal_axes(head: MultiScaleHead, feature_split: FeatureSplit) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest variances of the standardized features, shape (m,), and their axes, shape (d, m).

    Both are approximate (subspace iteration, Halko 2011, doi:10.1137/090771806).
    """
    mean, std = head.mean.to(feature_split.device), head.std.to(feature_split.device)
    n_rows, n_axes = len(feature_split.features) * len(feature_split.rows), min(N_AXES, len(mean))
    product = torch.randn(len(mean), n_axes, generator=torch.Generator().manual_seed(0)).to(mean.device)
    for _ in range(N_POWER_ITERATIONS):
        basis, product = torch.linalg.qr(product).Q, torch.zeros_like(product)
        for chunk, _, _ in feature_split.chunks():
            scaled = (chunk - mean) / std
            product += scaled.T @ (scaled @ basis) / n_rows
    variances, rotation = torch.linalg.eigh(basis.T @ product)
    return variances.clamp(min=0), basis @ rotation


def scale_along_axes(weight: torch.Tensor, axes: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return heads, shape (s, k, d + 1), scaled along orthonormal axes, (d, m), by the factors (s, m) of each head.

    In these coordinates the objective has nearly the same curvature along all axes, and L-BFGS needs a third of the
    steps. The bias, the last column, does not change.
    """
    change = ((weight[..., :-1] @ axes) * (factors - 1)[:, None]) @ axes.T
    return torch.cat([weight[..., :-1] + change, weight[..., -1:]], dim=-1)


def compute_mean_losses(
    weights: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: WeightedLoss
) -> torch.Tensor:
    """Return the weighted mean loss of all rows for each head, without the penalty; shape (s,)."""
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    losses = compute_losses(loss, compute_all_logits(weights, head, feature_split), feature_split.labels)
    return row_weights @ losses / row_weights.sum()


def compute_losses(loss: WeightedLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the unweighted loss of each row for each head, shape (n, s); `logits`: (n, s, k)."""
    expanded_labels = labels[:, None].expand(logits.shape[:2]).flatten()
    return loss.compute_losses(logits.flatten(0, 1), expanded_labels).view(logits.shape[:2])


def _compute_row_weights(loss: WeightedLoss, labels: torch.Tensor, sample_weights: torch.Tensor) -> torch.Tensor:
    return sample_weights if loss.weight is None else loss.weight.to(labels.device)[labels] * sample_weights
