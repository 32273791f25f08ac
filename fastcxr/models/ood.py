"""The out-of-distribution detector as a value: its arrays and its score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass

ARRAY_FIELDS = ("mean", "std", "directions", "variances", "noise")


@dataclass(frozen=True, kw_only=True, eq=False)
class OODDetector:
    """What the training images look like to a network. `stage_channels`: its stages with their channels, d in all.

    mean, std: of each feature, shape (d,). directions: shape (m, d), of the standardised features; variances:
    along them, shape (m,); noise: along every other, shape (1,). threshold: the largest
    distance that counts as in distribution. images, patients: of the validation split, which sets the threshold.
    """

    stage_channels: Mapping[str, int]
    mean: np.ndarray
    std: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    noise: np.ndarray
    threshold: float = 1.0
    images: int = 0
    patients: int = 0

    def compute_scores(self, features: np.ndarray) -> np.ndarray:
        """Return the distance of each row of features divided by the threshold: above 1 is out of distribution."""
        scaled = (features.astype(np.float64) - self.mean) / self.std
        projected = scaled @ self.directions.T
        residual = np.square(scaled).sum(axis=1) - np.square(projected).sum(axis=1)
        return (np.square(projected) / self.variances).sum(
            axis=1
        ) / self.threshold + residual / self.noise / self.threshold
