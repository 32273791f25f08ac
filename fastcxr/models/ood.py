"""The fitted out-of-distribution (OOD) detector: its parameters and its score."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fastcxr.models.devices import find_float64_device

ARRAY_FIELDS = ("mean", "std", "directions", "variances", "noise")


@dataclass(frozen=True, kw_only=True, eq=False)
class OODDetector:
    """Distribution of the pooled stage features of the training images, and the distance threshold for OOD images.

    The distance is a squared Mahalanobis distance whose covariance is that of a probabilistic PCA
    (Tipping 1999, doi:10.1111/1467-9868.00196); see fastcxr.training.fit_ood.

    Attributes:
        stage_channels: number of channels of each stage of the network, d in total.
        mean: mean of each feature, shape (d,).
        std: standard deviation of each feature, shape (d,).
        directions: principal directions of the standardized features, shape (m, d).
        variances: variances along these directions, shape (m,).
        noise: variance along every other direction, shape (1,).
        threshold: largest distance of an image that is in distribution.
        images: number of validation images that the threshold was set on.
        patients: number of validation patients that the threshold was set on.
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

    def compute_scores(self, features: torch.Tensor) -> np.ndarray:
        """Return distance / threshold for features of shape (n, d): above 1 the image is out of distribution.

        The distances are computed on the device of the features, in float64. Scores are rounded to float32: the last
        digits in float64 depend on the number of rows, and the image that sets the threshold has the score 1.
        """
        device = find_float64_device(features.device)
        mean, std, directions, variances, noise = (
            torch.from_numpy(getattr(self, name)).to(device, torch.float64) for name in ARRAY_FIELDS
        )
        scaled = (features.to(device, torch.float64) - mean) / std
        projected = scaled @ directions.T
        residual = scaled.square().sum(dim=1) - projected.square().sum(dim=1)
        distance = (projected.square() / variances).sum(dim=1) + residual / noise
        return (distance / self.threshold).float().double().cpu().numpy()
