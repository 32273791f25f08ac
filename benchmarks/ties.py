"""How often `fastcxr compare` calls equal models a tie, and unequal ones not, by simulation.

    python benchmarks/ties.py [--runs 200]

Models score the same images of two classes: each score is the truth, an error that all models share (images are hard or
easy for all) and an error of its own, so that all have one true AUROC. Patients have 1 to 3 images, whose errors are
alike. In the last row one model is truly worse: its share of ties is what the test misses.
"""

import argparse
import time

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import binomtest, norm

from fastcxr.metrics.comparison import TESTED_METRICS, compare_models
from fastcxr.metrics.predictions import Predictions, make_predictions

LABELS = ("no", "yes")
SHARED, PATIENT = 0.5, 0.3  # parts of a score's variance: what all models share, and what images of a patient share


def draw_models(rng: np.random.Generator, patients: int, aurocs: list[float]) -> dict[str, Predictions]:
    """What each model says of the images of so many patients, half of whom have the disease."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    truth = patient % 2 == 0
    table = pd.DataFrame({
        "source": "s", "path": [f"{number}.png" for number in range(len(patient))], "split": "test",
        "patient": patient.astype(str), "label": np.where(truth, "yes", "no"),
    })  # fmt: skip
    hard = draw_errors(rng, patient)
    models = {}
    for number, auroc in enumerate(aurocs):
        error = np.sqrt(SHARED) * hard + np.sqrt(1 - SHARED) * draw_errors(rng, patient)
        one = expit(error + np.sqrt(2) * norm.ppf(auroc) * (truth - 0.5))
        models[f"model {number}"] = make_predictions(table, np.stack([1 - one, one], axis=1), LABELS)
    return models


def draw_errors(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    """Normal errors of unit variance, alike within a patient."""
    own, of_patient = rng.normal(size=len(patient)), rng.normal(size=patient.max() + 1)[patient]
    return np.sqrt(PATIENT) * of_patient + np.sqrt(1 - PATIENT) * own


def main() -> None:
    """One row a situation."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--runs", type=int, default=200)
    runs = words.parse_args().runs
    situations = {
        "2 equal models, AUROC .85, 50 patients": (50, [0.85, 0.85]),
        "2 equal models, AUROC .95, 50 patients": (50, [0.95, 0.95]),
        "5 equal models, AUROC .90, 50 patients": (50, [0.90] * 5),
        "AUROC .95 and .85, 100 patients": (100, [0.95, 0.85]),
    }
    print(f"{'':<40} " + " ".join(f"{key + ': all ties':>34}" for key in TESTED_METRICS))
    for name, (patients, aurocs) in situations.items():
        rng, ties, started = np.random.default_rng(0), dict.fromkeys(TESTED_METRICS, 0), time.perf_counter()
        for _ in range(runs):
            rows = compare_models(draw_models(rng, patients, aurocs)).rows[1:]
            ties = {key: ties[key] + all(row[f"{key}_tie"] for row in rows) for key in TESTED_METRICS}
        intervals = {key: binomtest(n, runs).proportion_ci(method="wilson") for key, n in ties.items()}
        shown = [f"{n / runs:>12.3f} ({intervals[key][0]:.3f} to {intervals[key][1]:.3f})" for key, n in ties.items()]
        print(f"{name:<40} " + " ".join(f"{part:>34}" for part in shown)
              + f"  {(time.perf_counter() - started) / runs:.2f} s each", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
