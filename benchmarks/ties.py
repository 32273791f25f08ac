"""How often `fastcxr compare` reports equal models as a tie, and unequal models not, by simulation.

    python benchmarks/ties.py [--runs 200]

Models score the same images of two classes. Each score is the sum of the true class, an error that all models share
and an error of the model, so all equal models have the same true AUROC. Patients have 1 to 3 images with correlated
errors. In the last row one model has a lower true AUROC: the proportion of ties is the miss rate of the test.
"""

import time

import numpy as np
import pandas as pd
from common import format_proportion, make_parser
from scipy.special import expit
from scipy.stats import norm

from fastcxr.metrics.comparison import TESTED_METRICS, compare_models
from fastcxr.metrics.predictions import Predictions, make_predictions

LABELS = ("no", "yes")
SHARED, PATIENT = 0.5, 0.3  # fractions of the error variance shared by all models, and by the images of a patient
SITUATIONS = {  # number of patients, true AUROC of each model
    "2 equal models, AUROC .85, 50 patients": (50, [0.85, 0.85]),
    "2 equal models, AUROC .95, 50 patients": (50, [0.95, 0.95]),
    "5 equal models, AUROC .90, 50 patients": (50, [0.90] * 5),
    "AUROC .95 and .85, 100 patients": (100, [0.95, 0.85]),
}


def draw_models(rng: np.random.Generator, patients: int, aurocs: list[float]) -> dict[str, Predictions]:
    """Draw the predictions of each model; half of the patients have the disease."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    truth = patient % 2 == 0
    table = pd.DataFrame({
        "source": "s", "path": [f"{number}.png" for number in range(len(patient))], "split": "test",
        "patient": patient.astype(str), "label": np.where(truth, "yes", "no"),
    })  # fmt: skip
    shared = draw_errors(rng, patient)
    models = {}
    for number, auroc in enumerate(aurocs):
        error = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * draw_errors(rng, patient)
        one = expit(error + np.sqrt(2) * norm.ppf(auroc) * (truth - 0.5))
        models[f"model {number}"] = make_predictions(table, np.stack([1 - one, one], axis=1), LABELS)
    return models


def draw_errors(rng: np.random.Generator, patient: np.ndarray) -> np.ndarray:
    """Draw normal errors of unit variance, correlated within a patient."""
    of_image, of_patient = rng.normal(size=len(patient)), rng.normal(size=patient.max() + 1)[patient]
    return np.sqrt(PATIENT) * of_patient + np.sqrt(1 - PATIENT) * of_image


def main() -> None:
    """Print one row for each situation."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=200, help="simulations per row")
    runs = parser.parse_args().runs
    print(f"{'':<40} " + " ".join(f"{key + ': all ties':>34}" for key in TESTED_METRICS))
    for name, (patients, aurocs) in SITUATIONS.items():
        rng, ties, started = np.random.default_rng(0), dict.fromkeys(TESTED_METRICS, 0), time.perf_counter()
        for _ in range(runs):
            rows = compare_models(draw_models(rng, patients, aurocs)).rows[1:]
            ties = {key: ties[key] + all(row[f"{key}_tie"] for row in rows) for key in TESTED_METRICS}
        cells = " ".join(f"{format_proportion(count / runs, runs):>34}" for count in ties.values())
        print(f"{name:<40} {cells}  {(time.perf_counter() - started) / runs:.2f} s each", flush=True)


if __name__ == "__main__":
    main()
