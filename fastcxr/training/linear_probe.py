"""Fit a linear head on cached features with L-BFGS, without epochs.

All L2 penalties are fitted at once, on the device of the loaders: each pass over the features serves all of them.
"""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from fastcxr.progress.base import Bar, Progress
from fastcxr.training.feature_cache import FeatureCache, find_multi_scale_head, make_feature_cache
from fastcxr.training.feature_split import (
    FeatureSplit,
    ProbeFit,
    compute_all_logits,
    compute_logits,
    compute_view_mean,
    find_principal_axes,
    make_feature_split,
    reject_non_finite_losses,
    scale_along_axes,
    set_standardization,
)
from fastcxr.training.finding_losses import FindingLoss
from fastcxr.training.finding_probe import compute_mean_finding_losses, fit_findings, refit_findings
from fastcxr.training.lbfgs import MAX_EVALUATIONS, minimize
from fastcxr.training.losses import WeightedLoss

log = logging.getLogger("fastcxr")
L2_STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
SILENT_BAR = Bar()


def fit_head(learner: Learner, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Fit the learner's head on cached features, in place, and return the losses and metrics of a history row.

    The objective is the recipe's loss plus an L2 penalty on the weights of the standardized features (multinomial
    logistic regression for cross-entropy, for findings one logistic regression each). Of several penalties, the one
    with the lowest validation loss is used.
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


def find_weighted_loss(learner: Learner) -> WeightedLoss | FindingLoss:
    """Return the loss that make_learner set. Raise TrainingError for a loss of the user."""
    loss = getattr(learner.loss_func, "func", None)
    if not isinstance(loss, WeightedLoss | FindingLoss):
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
    fit, loss = fitted_probe.fit, find_weighted_loss(learner)
    if isinstance(loss, FindingLoss):
        weight = refit_findings(head, loss, train_and_valid, fit, SILENT_BAR)
    else:
        weight = fit_lbfgs(fit.weight[None], head, train_and_valid, loss, (fit.l2,))[0]
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
    head_weight = torch.cat([head.linear.weight, head.linear.bias[:, None]], dim=1).detach()
    rows, is_held_out = fitted_probe.cache.find_rows(files), np.array(held_out, bool)
    logits = torch.empty(len(files), head.linear.out_features)
    for mask, weight in ((is_held_out, fitted_probe.fit.weight), (~is_held_out, head_weight)):
        logits[mask] = _classify_rows(fitted_probe.cache.features, rows[mask], head, weight)
    return logits


@torch.no_grad()
def _classify_rows(
    features: Sequence[np.ndarray], rows: np.ndarray, head: MultiScaleHead, weight: torch.Tensor
) -> torch.Tensor:
    """Return the logits of these rows of the feature cache as a forward pass of the network computes them."""
    head = copy.deepcopy(head).eval()
    set_head_weight(head, weight)
    device, unused = head.mean.device, torch.zeros(len(rows))
    split = FeatureSplit(features, rows, unused.to(device), unused)
    chunks = (torch.stack([head.classify(view).cpu() for view in views]).mean(dim=0) for views, _ in split.row_chunks())
    return torch.cat([torch.empty(0, len(weight)), *chunks])


def set_head_weight(head: MultiScaleHead, weight: torch.Tensor) -> None:
    """Copy fitted weights to the head; the last column is the bias."""
    with torch.no_grad():
        head.linear.weight.copy_(weight[:, :-1])
        head.linear.bias.copy_(weight[:, -1])


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
        } | ({"l2_per_finding": list(self.fit.finding_l2)} if self.fit.finding_l2 else {})


def fit_probe(
    head: MultiScaleHead, loss: WeightedLoss | FindingLoss, train: FeatureSplit, valid: FeatureSplit, progress: Progress
) -> ProbeFit:
    """Return the fit with the lowest loss on `valid`, and set the head's standardization from `train`.

    Raises TrainingError for a NaN or infinite loss.
    """
    set_standardization(head, train)
    with progress.bar(MAX_EVALUATIONS, "fitting the head") as bar:
        if isinstance(loss, FindingLoss):
            return fit_findings(head, loss, train, valid, L2_STRENGTHS, bar)
        start = torch.zeros(
            len(L2_STRENGTHS), head.linear.out_features, head.linear.in_features + 1, device=train.device
        )
        weights = fit_lbfgs(start, head, train, loss, L2_STRENGTHS, bar)
    valid_losses = compute_mean_losses(weights, head, valid, loss).tolist()
    reject_non_finite_losses(valid_losses)
    best = int(np.argmin(valid_losses))
    return ProbeFit(weights[best], L2_STRENGTHS[best], valid_losses[best])


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


def compute_mean_losses(
    weights: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: WeightedLoss | FindingLoss
) -> torch.Tensor:
    """Return the weighted mean loss of all rows for each head, without the penalty; shape (s,)."""
    if isinstance(loss, FindingLoss):
        return compute_mean_finding_losses(weights, head, feature_split, loss)
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    totals = row_weights.new_zeros(len(weights))
    for views, rows in feature_split.row_chunks():
        losses = compute_losses(loss, compute_view_mean(weights, head, views), feature_split.labels[rows])
        totals += row_weights[rows] @ losses
    return totals / row_weights.sum()


def compute_losses(loss: WeightedLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the unweighted loss of each row for each head, shape (n, s); `logits`: (n, s, k)."""
    expanded_labels = labels[:, None].expand(logits.shape[:2]).flatten()
    return loss.compute_losses(logits.flatten(0, 1), expanded_labels).view(logits.shape[:2])


def _compute_row_weights(loss: WeightedLoss, labels: torch.Tensor, sample_weights: torch.Tensor) -> torch.Tensor:
    return sample_weights if loss.weight is None else loss.weight.to(labels.device)[labels] * sample_weights
