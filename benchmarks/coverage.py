"""How often the 95 % intervals of an AUROC hold the true value, by simulation.

    python benchmarks/coverage.py [--runs 2000]

Scores of both classes are normal, their distance set to the true AUROC. In the last row patients have 1 to 7 images
each, whose scores share 70 % of their variance (intraclass correlation). "as fastcxr" is what a report prints.
"""

import argparse

import numpy as np
from scipy.stats import norm

from fastcxr.metrics.analytic_intervals import Z_95, auroc_interval, delong
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals

LABELS = ["no", "yes"]


def draw_images(rng: np.random.Generator, counts: tuple[int, int], auroc: float) -> tuple[np.ndarray, ...]:
    """Truth, score and patient of independent images."""
    truth = np.repeat([True, False], counts)
    score = rng.normal(size=len(truth)) + np.sqrt(2) * norm.ppf(auroc) * truth
    return truth, score, np.arange(len(truth))


def draw_patients(rng: np.random.Generator, count: int, auroc: float) -> tuple[np.ndarray, ...]:
    """Truth, score and patient of the images of so many patients, half of them positive."""
    patient = np.repeat(np.arange(count), rng.integers(1, 8, count))
    truth = patient % 2 == 0
    own, shared = rng.normal(size=len(patient)), rng.normal(size=count)[patient]
    return truth, np.sqrt(0.7) * shared + np.sqrt(0.3) * own + np.sqrt(2) * norm.ppf(auroc) * truth, patient


def as_printed(truth: np.ndarray, score: np.ndarray, patient: np.ndarray) -> tuple[float, float]:
    """The interval that a report gives."""
    one = norm.cdf(score)
    probability = np.stack([1 - one, one], axis=1)
    figures = compute_metrics(truth.astype(int), probability, LABELS)
    return confidence_intervals(truth.astype(int), probability, LABELS, patient, figures)["of"]["auroc.per_class.yes"]


def plain(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """DeLong's interval as most tools print it."""
    auroc, variance = delong(truth, score)
    return auroc - Z_95 * variance**0.5, auroc + Z_95 * variance**0.5


def main() -> None:
    """One row a situation."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--runs", type=int, default=2000)
    runs = words.parse_args().runs
    rng = np.random.default_rng(0)
    situations = {
        "20 + 20 images, AUROC .95": (0.95, lambda: draw_images(rng, (20, 20), 0.95)),
        "20 + 20 images, AUROC .99": (0.99, lambda: draw_images(rng, (20, 20), 0.99)),
        "50 + 50 images, AUROC .95": (0.95, lambda: draw_images(rng, (50, 50), 0.95)),
        "40 patients of 1 to 7 images, .85": (0.85, lambda: draw_patients(rng, 40, 0.85)),
    }
    print(f"{'':<36} {'as fastcxr':>10} {'images alone':>13} {'plain DeLong':>13}")
    for name, (auroc, draw) in situations.items():
        held = np.zeros(3)
        for _ in range(runs):
            truth, score, patient = draw()
            found = as_printed(truth, score, patient), auroc_interval(truth, score), plain(truth, score)
            held += [low <= auroc <= high for low, high in found]
        print(f"{name:<36} {held[0] / runs:>10.3f} {held[1] / runs:>13.3f} {held[2] / runs:>13.3f}", flush=True)


if __name__ == "__main__":
    main()
