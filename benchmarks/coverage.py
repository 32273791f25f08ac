"""How often the 95 % intervals of an AUROC contain the true value, by simulation.

    python benchmarks/coverage.py [--runs 2000]

Scores of both classes are normal; their distance is set by the true AUROC. In the last row patients have 1 to 7 images
each, whose scores share 70 % of their variance (intraclass correlation). "fastcxr" is the interval of a report.
"""

import numpy as np
from common import make_parser
from scipy.stats import norm

from fastcxr.metrics.analytic_intervals import Z_95, auroc_interval, delong
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals
from fastcxr.metrics.scored_images import ScoredImages

LABELS = ["no", "yes"]
SITUATIONS = {  # number of images of each class or of patients, true AUROC
    "20 + 20 images, AUROC .95": ((20, 20), 0.95),
    "20 + 20 images, AUROC .99": ((20, 20), 0.99),
    "50 + 50 images, AUROC .95": ((50, 50), 0.95),
    "40 patients of 1 to 7 images, .85": (40, 0.85),
}


def draw_scores(rng: np.random.Generator, count: tuple[int, int] | int, auroc: float) -> tuple[np.ndarray, ...]:
    """Draw truth, score and patient of independent images (number of each class), or of the images of patients.

    Half of the patients are positive.
    """
    if isinstance(count, tuple):
        truth = np.repeat([True, False], count)
        patient, noise = np.arange(len(truth)), rng.normal(size=len(truth))
    else:
        patient = np.repeat(np.arange(count), rng.integers(1, 8, count))
        truth = patient % 2 == 0
        of_image, of_patient = rng.normal(size=len(patient)), rng.normal(size=count)[patient]
        noise = np.sqrt(0.7) * of_patient + np.sqrt(0.3) * of_image
    return truth, noise + np.sqrt(2) * norm.ppf(auroc) * truth, patient


def compute_reported_interval(truth: np.ndarray, score: np.ndarray, patient: np.ndarray) -> tuple[float, float]:
    """Return the interval of a report."""
    one = norm.cdf(score)
    probability, truth = np.stack([1 - one, one], axis=1), truth.astype(int)
    metrics = compute_metrics(truth, probability, LABELS)
    return confidence_intervals(ScoredImages(truth, probability, LABELS, patient), metrics)["of"]["auroc.per_class.yes"]


def compute_delong_interval(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Return DeLong's interval without a transformation, as in most tools."""
    auroc, variance = delong(truth, score)
    return auroc - Z_95 * variance**0.5, auroc + Z_95 * variance**0.5


def main() -> None:
    """Print one row for each situation."""
    parser = make_parser(__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="simulations per row")
    runs = parser.parse_args().runs
    rng = np.random.default_rng(0)
    print(f"{'':<36} {'fastcxr':>10} {'independent':>13} {'plain DeLong':>13}")
    for name, (count, auroc) in SITUATIONS.items():
        covered = np.zeros(3)
        for _ in range(runs):
            truth, score, patient = draw_scores(rng, count, auroc)
            intervals = (
                compute_reported_interval(truth, score, patient), auroc_interval(truth, score),
                compute_delong_interval(truth, score),
            )  # fmt: skip
            covered += [low <= auroc <= high for low, high in intervals]
        print(
            f"{name:<36} {covered[0] / runs:>10.3f} {covered[1] / runs:>13.3f} {covered[2] / runs:>13.3f}", flush=True
        )


if __name__ == "__main__":
    main()
