"""Arrays of the images that are evaluated: the input of all metrics, for one class per image and for findings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

DEFAULT_THRESHOLD = 0.5  # of a finding, before a threshold is fitted


@dataclass(frozen=True, eq=False)
class ScoredImages:
    """n readable images with labels and probabilities.

    truth: positions in `labels`, shape (n,); of findings, labels of shape (n, k): 1 present, 0 absent, NaN unknown.
    probability: shape (n, k). labels: k classes or findings. patients: of each image, shape (n,).
    decisions: whether an image has a finding by the model, booleans of shape (n, k); None for one class per image, and
    for findings that are decided at DEFAULT_THRESHOLD.
    """

    truth: np.ndarray
    probability: np.ndarray
    labels: Sequence[str]
    patients: np.ndarray
    decisions: np.ndarray | None = None

    @property
    def is_multi_label(self) -> bool:
        """Whether the labels are findings of which an image may have several."""
        return self.truth.ndim == 2

    @cached_property
    def known(self) -> np.ndarray:
        """Whether the label is known, booleans of shape (n, k); of one class per image, all are."""
        return ~np.isnan(self.truth) if self.is_multi_label else np.ones(self.probability.shape, bool)

    @cached_property
    def positive(self) -> np.ndarray:
        """Whether an image has the class or finding, booleans of shape (n, k); False for an unknown label."""
        return self.truth == 1 if self.is_multi_label else self.truth[:, None] == np.arange(len(self.labels))

    @property
    def negative(self) -> np.ndarray:
        """Whether an image does not have the class or finding, booleans of shape (n, k); False for an unknown label."""
        return self.known & ~self.positive

    @cached_property
    def predicted(self) -> np.ndarray:
        """Whether the class is the most probable one, or the image has the finding by the model; shape (n, k)."""
        if self.is_multi_label:
            return self.probability >= DEFAULT_THRESHOLD if self.decisions is None else self.decisions
        return self.probability.argmax(axis=1)[:, None] == np.arange(len(self.labels))


def list_thresholds(thresholds: Mapping[str, Any], labels: Sequence[str]) -> np.ndarray:
    """Return the threshold of each finding, shape (k,); DEFAULT_THRESHOLD for a finding without one.

    `thresholds`: `thresholds` of the calibration in model.json, by finding.
    """
    return np.array([thresholds.get(label, {}).get("threshold", DEFAULT_THRESHOLD) for label in labels])
