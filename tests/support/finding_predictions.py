"""Simulated predictions of findings: several images per patient that resemble each other, and unknown labels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastcxr.metrics.predictions import Predictions, make_predictions

FINDINGS = ("Edema", "Effusion", "Mass")


def simulate_findings(
    n_patients: int,
    labels: Sequence[str] = FINDINGS,
    *,
    seed: int = 0,
    unknown: float = 0.0,
    split: str = "test",
    prevalence: float = 0.3,
) -> Predictions:
    """Return predictions of about two images per patient; `unknown` is the share of unknown labels.

    Probabilities have two decimals, so there are ties.
    """
    rng = np.random.default_rng(seed)
    patients = np.sort(rng.integers(0, n_patients, 2 * n_patients))
    shape = len(patients), len(labels)
    disease = rng.normal(size=(n_patients, len(labels)))[patients] + 0.5 * rng.normal(size=shape)
    truth = (disease > np.quantile(disease, 1 - prevalence)).astype(float)
    score = disease + rng.normal(size=(n_patients, len(labels)))[patients] + 0.5 * rng.normal(size=shape)
    truth[rng.random(shape) < unknown] = np.nan
    return to_predictions(truth, np.round(1 / (1 + np.exp(1 - score)), 2), labels, patients=patients, split=split)


def to_predictions(
    truth: np.ndarray,
    probability: np.ndarray,
    labels: Sequence[str] = FINDINGS,
    *,
    patients: Sequence[int] | np.ndarray | None = None,
    split: str = "test",
) -> Predictions:
    """Return predictions of findings; `truth`: 1, 0 or NaN, shape (n, k), as `probability`."""
    numbers = range(len(truth)) if patients is None else patients
    findings = {
        f"finding_{label}": pd.array(np.asarray(truth, float)[:, k], dtype="Float64").astype("Int8")
        for k, label in enumerate(labels)
    }
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i:06}.png" for i in range(len(truth))], "label": "",
        "patient": [f"p{number}" for number in numbers], "split": split, **findings,
    })  # fmt: skip
    return make_predictions(rows, probability, labels, findings=True)
