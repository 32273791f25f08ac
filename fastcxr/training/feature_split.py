"""Cached features of a split, and what fits of linear heads on them have in common.

A fit reads the features in chunks, from memory if they fit into a share of it, else from the memory-mapped file again
for each evaluation. Both compute the same sums in the same order, so that the results are equal.

The features are standardized by the head. In coordinates scaled along the principal axes of the features, the objective
has nearly the same curvature along all axes, and L-BFGS needs a third of the steps.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch

from fastcxr.data.cache.features import release_pages
from fastcxr.errors import TrainingError
from fastcxr.io.memory import read_available_memory
from fastcxr.io.threads import map_ahead
from fastcxr.models.devices import find_float64_device, read_free_memory
from fastcxr.models.heads import MultiScaleHead
from fastcxr.training.feature_cache import FeatureCache

log = logging.getLogger("fastcxr")
N_AXES = 64  # principal axes of the features whose large variance is scaled down for the fit
N_POWER_ITERATIONS = 3  # to find these axes
CHUNK_ROWS, CHUNK_BYTES = 8192, 1 << 24  # largest number of rows, and of bytes, of features in one matrix product
MAX_MEMORY_SHARE = 0.25  # of the available memory, for a split's features; larger ones are read from disk in each step
DEFAULT_MEMORY_BYTES = 1 << 32  # available memory where the system does not state it
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
        """Yield features, labels and sample weights of one view after the other, at most CHUNK_ROWS rows at a time."""
        parts = [(view, rows) for view in self.features for rows in self.chunk_slices]
        for chunk, (_, rows) in zip(self.cached_chunks or self._read_chunks(parts), parts, strict=True):
            yield chunk, self.labels[rows], self.sample_weights[rows]

    def row_chunks(self) -> Iterator[tuple[list[torch.Tensor], slice]]:
        """Yield features in all views, each of shape (n, d), and their rows, at most CHUNK_ROWS rows at a time."""
        n_views, chunk_slices = len(self.features), self.chunk_slices
        read = self._read_chunks([(view, rows) for rows in chunk_slices for view in self.features])
        with closing(read):
            for number, rows in enumerate(chunk_slices):
                cached = self.cached_chunks and self.cached_chunks[number :: len(chunk_slices)]
                yield cached or list(islice(read, n_views)), rows

    @property
    def device(self) -> torch.device:
        """The device of all chunks."""
        return self.labels.device

    @property
    def chunk_slices(self) -> list[slice]:
        """The rows of each chunk of a view."""
        n_rows = min(CHUNK_ROWS, max(1, CHUNK_BYTES // (4 * self.features[0].shape[1])))
        return [slice(start, start + n_rows) for start in range(0, len(self.rows), n_rows)]

    @cached_property
    def cached_chunks(self) -> list[torch.Tensor] | None:
        """All chunks on the device; None if they exceed MAX_MEMORY_SHARE of its memory."""
        n_bytes = 4 * len(self.features) * len(self.rows) * self.features[0].shape[1]
        if n_bytes > MAX_MEMORY_SHARE * read_device_memory(self.device):
            log.info("%.1f GB of features exceed the memory for them: read from disk", n_bytes / 1e9)
            return None
        return list(self._read_chunks([(view, rows) for view in self.features for rows in self.chunk_slices]))

    def _read_chunks(self, parts: Sequence[tuple[np.ndarray, slice]]) -> Generator[torch.Tensor, None, None]:
        """Yield the features of each part, a view and a slice of its rows; a thread reads the next one ahead."""

        def read(part: tuple[np.ndarray, slice]) -> torch.Tensor:
            view, rows = part
            chunk = torch.from_numpy(np.ascontiguousarray(view[self.rows[rows]]))
            release_pages(view)
            return chunk

        with closing(map_ahead(read, parts, n_threads=1, n_ahead=1)) as chunks:
            for chunk in chunks:
                yield chunk.to(self.device)

    def concat(self, other: "FeatureSplit") -> "FeatureSplit":
        """Return the rows of both splits."""
        rows, labels = np.concatenate([self.rows, other.rows]), torch.cat([self.labels, other.labels])
        return FeatureSplit(self.features, rows, labels, torch.cat([self.sample_weights, other.sample_weights]))


def read_device_memory(device: torch.device) -> int:
    """Return the bytes that are available on a device."""
    if device.type == "cuda":
        return read_free_memory(device)
    available = read_available_memory()
    return DEFAULT_MEMORY_BYTES if available is None else available


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
    chunks = (compute_view_mean(weight, head, views) for views, _ in feature_split.row_chunks())
    return torch.cat([weight.new_zeros(0, *weight.shape[:-1]), *chunks])


def compute_view_mean(weight: torch.Tensor, head: MultiScaleHead, views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the logits of some rows, averaged over the views; see compute_logits."""
    return torch.stack([compute_logits(weight, head, chunk) for chunk in views]).mean(dim=0)


def set_standardization(head: MultiScaleHead, feature_split: FeatureSplit) -> None:
    """Set the head's mean and standard deviation of each feature from these rows."""
    n_rows, zero = len(feature_split.features) * len(feature_split.rows), torch.zeros((), device=feature_split.device)
    mean = sum((chunk.double().sum(dim=0) for chunk, _, _ in feature_split.chunks()), zero) / n_rows
    squares = (
        chunk.to(torch.float64, copy=True).sub_(mean).square_().sum(dim=0) for chunk, _, _ in feature_split.chunks()
    )
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
            scaled = (chunk - mean).div_(std)
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
