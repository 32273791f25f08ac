"""The out-of-distribution detector as a value: its arrays and its score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass

ARRAY_FIELDS = ("mean", "deviation", "directions", "variances", "noise")


@dataclass(frozen=True, kw_only=True, eq=False)
class OODDetector:
    """What the training images look like to a network. `depths`: its stages with their channels, d in all.

    mean, deviation: of each feature, shape (d,). directions: shape (m, d), of the standardised features; variances:
    along them, shape (m,); noise: along every other, shape (1,). limit: the largest distance of a picture that is let
    through. images, patients: of the validation split, that set the limit.
    """

    stage_channels: Mapping[str, int]
    mean: np.ndarray
    deviation: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    noise: np.ndarray
    limit: float = 1.0
    images: int = 0
    patients: int = 0

    def compute_scores(self, features: np.ndarray) -> np.ndarray:
        """How strange each row of features is, as a share of the limit: beyond 1 is not like the training images."""
        scaled = (features.astype(np.float64) - self.mean) / self.deviation
        projected = scaled @ self.directions.T
        residual = np.square(scaled).sum(axis=1) - np.square(projected).sum(axis=1)
        return (np.square(projected) / self.variances).sum(axis=1) / self.limit + residual / self.noise / self.limit
