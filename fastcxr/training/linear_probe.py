"""Heads are fitted on a bank of features in seconds: every row at once, no epochs."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import TrainingError
from fastcxr.models.heads import MultiScaleHead, find_head
from fastcxr.progress.base import Progress
from fastcxr.training.feature_bank import FeatureBank, hash_backbone, make_feature_bank

log = logging.getLogger("fastcxr")
L2_STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the ridge, strongest first: each fit starts from the one before
MAX_LBFGS_STEPS = 60  # of L-BFGS, at most
CHUNK_ROWS = 8192  # of features that enter one matrix product
MAX_CACHED_BYTES = (
    1 << 30
)  # bytes that a copy of a split's features may take; beyond it they are read from the bank in each step
MIN_DEVIATION = 1e-4  # a feature that never moves says nothing


@dataclass(frozen=True)
class FeatureSplit:
    """The rows of one split in a bank. `labels`: class numbers; `times`: how often an epoch shows each row."""

    features: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor
    sample_weights: torch.Tensor

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield features in single precision, labels and times, at most ROWS rows at once."""
        features = self.read_chunks() if self.cached_features is None else self.cached_features.read_chunks()
        for chunk, chunk_slice in zip(features, self.chunk_slices * len(self.features), strict=True):
            yield chunk, self.labels[chunk_slice], self.sample_weights[chunk_slice]

    @property
    def chunk_slices(self) -> list[slice]:
        """The rows of each chunk of a view."""
        return [slice(start, start + CHUNK_ROWS) for start in range(0, len(self.rows), CHUNK_ROWS)]

    @cached_property
    def cached_features(self) -> "CachedFeatures | None":
        """All features in memory, which every step of a fit needs; None if they exceed MEMORY in half precision too."""
        n_values = len(self.features) * len(self.rows) * self.features.shape[2]
        if 4 * n_values <= MAX_CACHED_BYTES:
            return CachedFeatures(list(self.read_chunks()))
        return make_half_precision_cache(self.read_chunks()) if 2 * n_values <= MAX_CACHED_BYTES else None

    def read_chunks(self) -> Iterator[torch.Tensor]:
        """Yield the features of each chunk from the bank."""
        for view in range(len(self.features)):
            for chunk_slice in self.chunk_slices:
                yield torch.from_numpy(np.ascontiguousarray(self.features[view, self.rows[chunk_slice]]))

    def concat(self, other: "FeatureSplit") -> "FeatureSplit":
        """Both parts, in the views of this one."""
        rows = np.concatenate([self.rows, other.rows])
        return FeatureSplit(
            self.features,
            rows,
            torch.cat([self.labels, other.labels]),
            torch.cat([self.sample_weights, other.sample_weights]),
        )


@dataclass(frozen=True)
class CachedFeatures:
    """Chunks of features in memory; `centre` was subtracted from each row, None for chunks as they are in the bank."""

    chunks: list[torch.Tensor]
    centre: torch.Tensor | None = None

    def read_chunks(self) -> Iterator[torch.Tensor]:
        """Yield the chunks in single precision."""
        for chunk in self.chunks:
            yield chunk if self.centre is None else chunk.float().add_(self.centre)


def make_half_precision_cache(chunks: Iterator[torch.Tensor]) -> CachedFeatures | None:
    """Copy chunks in half precision; None if a feature exceeds its range.

    Without their mean features are rounded to 1/2048 of their distance from it, not of their size.
    """
    centred_chunks, centre = [], None
    for chunk in chunks:
        centre = chunk.mean(dim=0) if centre is None else centre
        centred_chunks.append((chunk - centre).half())
        if not centred_chunks[-1].isfinite().all():
            return None
    return CachedFeatures(centred_chunks, centre)


def make_feature_split(loader, bank: FeatureBank) -> FeatureSplit:
    """The rows of a loader in all views, drawn as often as the loader draws them."""
    rows = bank.find_rows(loader.items["file"])
    labels = torch.tensor([int(label) for label in loader.dataset.tls[1]])
    sample_weights = torch.ones(len(rows))
    if loader.weights is not None:
        sample_weights = torch.tensor(loader.weights) * len(rows) / sum(loader.weights)
    if loader.rows is not None:
        sample_weights = torch.bincount(torch.tensor(loader.rows), minlength=len(rows)).float()
    return FeatureSplit(bank.features, rows, labels, sample_weights)


def fit_head(learner: Learner, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Fit the learner's head on a bank of features, in place; returns the figures of a row of history.

    The loss is the recipe's, with an L2 penalty on the weights of the standardised features (multinomial logistic
    regression, where the loss is cross-entropy). Of several strengths the one with the lowest loss on the validation
    patients is taken. Each view of an image teaches by itself; an answer is the mean over the views.
    """
    bank = make_feature_bank(learner, recipe, progress)
    train, valid = make_feature_split(learner.dls.train, bank), make_feature_split(learner.dls.valid, bank)
    head, loss = find_head(learner.model), learner.loss_func.func
    fit = fit_probe(head, loss, train, valid, progress)
    set_head_weight(head, fit.weight)
    splits = replace(train), replace(valid)  # without their copies in memory
    learner.fastcxr.fitted_probe = FittedProbe(bank, hash_backbone(learner.model), *splits, fit, head_weight=fit.weight)
    log.info("the head is fitted on features of %s images (ridge %g)", f"{len(train.rows):,}", fit.l2)
    logits = compute_all_logits(fit.weight, head, valid)
    metric_values = {metric.name: float(metric.func(logits, valid.labels)) for metric in learner.metrics}
    return {
        "train_loss": compute_mean_loss(fit.weight, head, train, loss),
        "valid_loss": fit.valid_loss,
        **metric_values,
    }


def refit_head(learner: Learner) -> None:
    """Fit the head again at its strength, on training and validation images together: nothing else is to be chosen.

    Predictions of the validation images remain those of the head that had not seen them (see predict_from_bank).
    """
    fitted_probe, head = learner.fastcxr.fitted_probe, find_head(learner.model)
    train_and_valid = fitted_probe.train.concat(fitted_probe.valid)
    weight = fit_lbfgs(fitted_probe.fit.weight, head, train_and_valid, learner.loss_func.func, fitted_probe.fit.l2)
    set_head_weight(head, weight)
    learner.fastcxr.fitted_probe = replace(fitted_probe, head_weight=weight)
    log.info("the head is fitted again on %s images, those of validation among them", f"{len(train_and_valid.rows):,}")


def predict_from_bank(learner: Learner, files: Sequence[str], held_out: Sequence[bool]) -> np.ndarray | None:
    """Logits, shape (n, k), as the network would give them; None for files, or a body, that the bank is not of.

    `held_out`: the validation images, which are answered by the head that was fitted without them.
    """
    fitted_probe, head = learner.fastcxr.fitted_probe, find_head(learner.model)
    head_weight = torch.cat([head.linear.weight, head.linear.bias[:, None]], dim=1).detach().cpu()
    is_unchanged = (
        head_weight.equal(fitted_probe.head_weight) and hash_backbone(learner.model) == fitted_probe.backbone_hash
    )
    if not is_unchanged or not all(file in fitted_probe.bank.row_by_file for file in files):
        return None
    no_labels = torch.zeros(len(files), dtype=torch.long)
    feature_split = FeatureSplit(fitted_probe.bank.features, fitted_probe.bank.find_rows(files), no_labels, no_labels)
    with torch.no_grad():
        refitted_logits, train_only_logits = (
            compute_all_logits(weight, head, feature_split) for weight in (head_weight, fitted_probe.fit.weight)
        )
    return torch.where(torch.tensor(list(held_out))[:, None], train_only_logits, refitted_logits).double().numpy()


def set_head_weight(head: MultiScaleHead, weight: torch.Tensor) -> None:
    """Give the head fitted weights; the bias is their last column."""
    with torch.no_grad():
        head.linear.weight.copy_(weight[:, :-1])
        head.linear.bias.copy_(weight[:, -1])


@dataclass(frozen=True)
class ProbeFit:
    """A fitted head: weights with the bias as their last column, the ridge's strength, and the loss on validation."""

    weight: torch.Tensor
    l2: float
    valid_loss: float


@dataclass(frozen=True)
class FittedProbe:
    """What a fit came from. `body`, a checksum, and `last`, the head's weights, tell if the network has changed."""

    bank: FeatureBank
    backbone_hash: bytes
    train: FeatureSplit
    valid: FeatureSplit
    fit: ProbeFit
    head_weight: torch.Tensor


def fit_probe(
    head: MultiScaleHead, loss: nn.Module, train: FeatureSplit, valid: FeatureSplit, progress: Progress
) -> ProbeFit:
    """The best of all strengths by the loss on `valid`; the head's standardisation is set from `train`.

    Raises TrainingError where a loss is no number.
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
            "the fitted head gives a validation loss that is no number",
            "Give --precision fp32; if that does not help, look for images without contrast",
        )
    return min(fits, key=lambda fit: fit.valid_loss)


def compute_all_logits(weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit) -> torch.Tensor:
    """Logits of all rows of a part, the mean over its views; shape (n, k)."""
    view_logits = torch.cat([compute_logits(weight, head, chunk) for chunk, _, _ in feature_split.chunks()])
    return view_logits.view(len(feature_split.features), len(feature_split.rows), -1).mean(dim=0)


def set_standardization(head: MultiScaleHead, feature_split: FeatureSplit) -> None:
    """Let the head take each feature less its mean, over its deviation, in these rows."""
    n_rows = len(feature_split.features) * len(feature_split.rows)
    mean = sum(chunk.double().sum(dim=0) for chunk, _, _ in feature_split.chunks()) / n_rows
    variance = sum((chunk.double() - mean).square().sum(dim=0) for chunk, _, _ in feature_split.chunks()) / n_rows
    head.mean.copy_(mean)
    head.std.copy_(variance.sqrt().clamp_min(MIN_DEVIATION))


def compute_logits(weight: torch.Tensor, head: MultiScaleHead, chunk: torch.Tensor) -> torch.Tensor:
    """Logits of rows of features; `weight`, for standardised ones, holds the bias as its last column."""
    scaled = weight[:, :-1] / head.std.cpu()
    return chunk @ scaled.T + (weight[:, -1] - scaled @ head.mean.cpu())


def fit_lbfgs(
    start: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: nn.Module, l2: float
) -> torch.Tensor:
    """The weights of least loss and penalty, from `start` on, by L-BFGS over all rows at once."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=MAX_LBFGS_STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = l2 / 2 * weight[:, :-1].square().sum()
        penalty.backward()
        return penalty.detach() + sum(_accumulate_loss(weight, head, feature_split, loss))

    optimizer.step(closure)
    return weight.detach()


def compute_mean_loss(
    weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: nn.Module
) -> float:
    """Mean loss of the answers to all rows, without the penalty."""
    row_weights = _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights)
    losses = loss.compute_losses(compute_all_logits(weight, head, feature_split), feature_split.labels)
    return float((losses * row_weights).sum() / row_weights.sum())


def _accumulate_loss(
    weight: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: nn.Module
) -> Iterator[torch.Tensor]:
    """What each chunk adds to the mean loss over rows and views; its gradient is added to that of the weights."""
    total_weight = (
        len(feature_split.features)
        * _compute_row_weights(loss, feature_split.labels, feature_split.sample_weights).sum()
    )
    for chunk, labels, sample_weights in feature_split.chunks():
        logits = compute_logits(weight, head, chunk)
        chunk_loss = (
            loss.compute_losses(logits, labels) * _compute_row_weights(loss, labels, sample_weights)
        ).sum() / total_weight
        chunk_loss.backward()
        yield chunk_loss.detach()


def _compute_row_weights(loss: nn.Module, labels: torch.Tensor, sample_weights: torch.Tensor) -> torch.Tensor:
    return sample_weights if loss.weight is None else loss.weight.cpu()[labels] * sample_weights
