"""Calibration of findings: a line of the log odds for each finding."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, logit


def scale_finding_probabilities(
    probability: np.ndarray, labels: Sequence[str], calibration: Mapping[str, Any]
) -> np.ndarray:
    """Return calibrated probabilities, shape (n, k): sigmoid(slope * log odds + intercept) of each finding.

    `calibration`: that of model.json; a finding without a line keeps its probabilities. NaN remains NaN.
    """
    lines = calibration.get("findings", {})
    scaled = probability.copy()
    for k, label in enumerate(labels):
        line = lines.get(label, {"slope": 1.0, "intercept": 0.0})
        if (line["slope"], line["intercept"]) != (1.0, 0.0):
            scaled[:, k] = expit(line["slope"] * logit(probability[:, k]) + line["intercept"])
    return scaled
