"""Cached features of a split, and what fits of linear heads on them have in common.

The features are standardized by the head. In coordinates scaled along the principal axes of the features, the objective
has nearly the same curvature along all axes, and L-BFGS needs a third of the steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fastcxr.errors import TrainingError
from fastcxr.models.devices import find_float64_device
from fastcxr.models.heads import MultiScaleHead
from fastcxr.training.feature_cache import FeatureCache

N_AXES = 64  # principal axes of the features whose large variance is scaled down for the fit
N_POWER_ITERATIONS = 3  # to find these axes
CHUNK_ROWS = 8192  # rows of features in one matrix product
MAX_CACHED_BYTES = 1 << 30  # for a split's features in memory; larger ones are read from disk in each step
MIN_DEVIATION = 1e-4  # floor for the standard deviation of constant features


@dataclass(frozen=True)
class FeatureSplit:
    """Cached features of one split. The fit computes on the device of its labels.

    Attributes:
        features: Features of the dataset in each view, shape (n, d).
        rows: Rows of the split in `features`.
        labels: Class number of each row, shape (n,); for findings truth of shape (n, k), NaN for unknown labels.
        sample_weights: How often an epoch shows each row.
    """

    features: Sequence[np.ndarray]
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
        n_values = len(self.features) * len(self.rows) * self.features[0].shape[1]
        if 4 * n_values <= MAX_CACHED_BYTES:
            return list(self.read_chunks()), None
        return make_half_precision_cache(self.read_chunks()) if 2 * n_values <= MAX_CACHED_BYTES else None

    def read_chunks(self) -> Iterator[torch.Tensor]:
        """Yield the features of each chunk from disk."""
        for view_features in self.features:
            for chunk_slice in self.chunk_slices:
                chunk = np.ascontiguousarray(view_features[self.rows[chunk_slice]])
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


@dataclass(frozen=True)
class ProbeFit:
    """A fitted head.

    Attributes:
        weight: weights, shape (k, d + 1) with the bias as last column.
        l2: L2 penalty.
        valid_loss: validation loss.
        finding_l2: L2 penalty of each finding; empty for one label per image.
    """

    weight: torch.Tensor
    l2: float
    valid_loss: float
    finding_l2: tuple[float, ...] = ()


def reject_non_finite_losses(valid_losses: Sequence[float]) -> None:
    """Raise TrainingError if a validation loss of a fitted head is NaN or infinite."""
    if not np.isfinite(valid_losses).all():
        raise TrainingError(
            "the validation loss of the fitted head is NaN or infinite",
            "Pass `precision='fp32'`, or check the data for images without contrast",
        )
