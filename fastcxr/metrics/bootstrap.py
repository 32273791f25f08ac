"""Cluster bootstrap of all metrics: patients are drawn with replacement, together with all their images.

A draw is a row of image weights, and every metric is computed from weights. 2,000 draws of 1,000 images take a second.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from fastcxr.metrics.scoring_rules import compute_brier_scores, compute_log_losses

N_DRAWS = 2000
MAX_BOOTSTRAP_PATIENTS = 20_000  # above, AUROC intervals are analytic, and there are fewer draws
N_DRAWS_OF_LARGE_SETS = 200
MAX_WEIGHTS_IN_MEMORY = 1 << 21  # 16 MiB as float64
MetricDraws = dict[str, np.ndarray]


class DrawnMetrics(Protocol):
    """Inputs of metrics that are computed from weights of the images."""

    def compute(self, weights: np.ndarray) -> MetricDraws:
        """Return every metric of each draw, shape (draws,); `weights`: shape (draws, n)."""
        ...


def bootstrap_metrics(inputs: DrawnMetrics, patients: np.ndarray, seed: int, n_draws: int | None = None) -> MetricDraws:
    """Return each metric of every draw, shape (n_draws,), by dotted name; NaN if the metric is undefined in the draw.

    `patients`: of each image, shape (n,). `n_draws`: default N_DRAWS.
    """
    batches = [inputs.compute(weights) for weights in draw_bootstrap_weights(patients, seed, n_draws)]
    return {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}


def find_n_draws(n_patients: int) -> int:
    """Return the number of draws for a number of patients."""
    return N_DRAWS if n_patients <= MAX_BOOTSTRAP_PATIENTS else N_DRAWS_OF_LARGE_SETS


def draw_bootstrap_weights(patients: np.ndarray, seed: int, n_draws: int | None = None) -> Iterator[np.ndarray]:
    """Yield the weights of some draws at a time, shape (draws, n): how often each image is drawn."""
    _, patient_index = np.unique(patients, return_inverse=True)
    n_patients, rng, n_left = patient_index.max() + 1, np.random.default_rng(seed), n_draws or N_DRAWS
    while n_left:
        n_batch = min(n_left, max(1, MAX_WEIGHTS_IN_MEMORY // len(patient_index)))
        patient_counts = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_batch)
        yield patient_counts[:, patient_index].astype(float)
        n_left -= n_batch


def is_in_top2(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return whether the true class is among the two most probable, shape (n,); ties: the last, as in scikit-learn."""
    top2 = np.argsort(probability, axis=1, kind="stable")[:, -2:]
    return (top2 == truth[:, None]).any(axis=1)


@dataclass(frozen=True)
class MetricInputs:
    """Inputs of the metrics of n images, computed once for all draws.

    support, predicted, hits: indicators of the images of each true class, of each predicted class, and of the correct
    images of each class; sparse (k, n), because indicators of all pairs of classes would take n * k**2 numbers.
    rankings: one per class, or none without AUROC and average precision. means: per-image values of the metrics that
    are means, each (n,).
    """

    labels: Sequence[str]
    support: csr_array
    predicted: csr_array
    hits: csr_array
    rankings: list["Ranking"]
    means: MetricDraws

    @classmethod
    def of(
        cls, truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], *, with_rankings: bool = True
    ) -> "MetricInputs":
        """Prepare the inputs; `truth`: positions in `labels`, shape (n,), `probability`: shape (n, k)."""
        predicted, rows, k = probability.argmax(axis=1), np.arange(len(truth)), len(labels)
        means = {
            "calibration.log_loss": compute_log_losses(truth, probability),
            "calibration.brier": compute_brier_scores(truth, probability),
        }
        if k > 2:
            means["top2_accuracy"] = is_in_top2(truth, probability).astype(float)
        return cls(
            labels=labels,
            support=_make_class_indicators(truth, rows, k),
            predicted=_make_class_indicators(predicted, rows, k),
            hits=_make_class_indicators(truth, np.flatnonzero(predicted == truth), k),
            rankings=[
                Ranking.of(truth == number, probability[:, number]) for number in range(k if with_rankings else 0)
            ],
            means=means,
        )

    def compute(self, weights: np.ndarray) -> MetricDraws:
        """Return every metric of each draw; `weights`: (draws, n)."""
        total, columns = weights.sum(axis=1), np.ascontiguousarray(weights.T)
        hits, support, predicted = ((table @ columns).T for table in (self.hits, self.support, self.predicted))
        with np.errstate(invalid="ignore", divide="ignore"):
            metrics = _compute_count_metrics(hits, support, predicted, total, self.labels)
            ranking_metrics = list(zip(*(ranking.compute(columns) for ranking in self.rankings), strict=True))
        for name, per_class in zip(
            ("auroc", "average_precision") if ranking_metrics else (), ranking_metrics, strict=True
        ):
            metrics |= dict(zip((f"{name}.per_class.{label}" for label in self.labels), per_class, strict=True))
            metrics[f"{name}.macro"] = average_defined(per_class)
        return metrics | {name: weights @ values / total for name, values in self.means.items()}


@dataclass(frozen=True)
class Ranking:
    """Images ranked by the score of one class, highest first, and grouped by the scores of its positive images.

    positives: the positive images at each of these g distinct scores, sparse (g, n). groups: all images, sparse
    (2g + 1, n), alternately those between two of the scores and those at one of them.
    """

    positives: csr_array
    groups: csr_array

    @classmethod
    def of(cls, positive: np.ndarray, score: np.ndarray, known: np.ndarray | None = None) -> "Ranking":
        """Rank the images by `score`, only those with a `known` label if it is given; each has shape (n,)."""
        order = np.argsort(-score, kind="stable").astype(np.int32)
        order = order if known is None else order[known[order]]
        positives = order[positive[order]]
        scores, first = np.unique(-score[positives], return_index=True)
        edges = np.stack([np.searchsorted(-score[order], scores, side=side) for side in ("left", "right")], axis=1)
        return cls(
            _make_group_indicators(positives, first[1:], len(score)),
            _make_group_indicators(order, edges.ravel(), len(score)),
        )

    def compute(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return AUROC and average precision of each draw; `columns`: weights, (n, draws).

        Both are NaN without a positive image; the AUROC is also NaN without a negative image.
        """
        positives, n_ranked = self.positives @ columns, (self.groups @ columns).cumsum(axis=0)
        hits, n_above, n_up_to = positives.cumsum(axis=0), n_ranked[:-1:2], n_ranked[1::2]
        if not len(n_up_to):
            return np.full(columns.shape[1], np.nan), np.full(columns.shape[1], np.nan)
        n_negatives, tied_negatives = n_ranked[-1] - hits[-1], n_up_to - n_above - positives
        # a positive counts the negatives with a lower score, and half of those with the same score
        auroc = (positives * (n_negatives - (n_up_to - hits) + tied_negatives / 2)).sum(axis=0)
        precision = np.where(positives > 0, hits / n_up_to, 0.0)
        return auroc / (hits[-1] * n_negatives), (positives * precision).sum(axis=0) / hits[-1]


def _make_class_indicators(class_index: np.ndarray, rows: np.ndarray, k: int) -> csr_array:
    """Return which of the images `rows` belong to each class, sparse (k, n); `class_index`: of every image, (n,)."""
    return csr_array((np.ones(len(rows)), (class_index[rows], rows)), shape=(k, len(class_index)))


def _make_group_indicators(images: np.ndarray, edges: np.ndarray, n: int) -> csr_array:
    """Return one row of indicators for each slice of `images` between two `edges`, sparse (edges + 1, n)."""
    pointers = np.concatenate([[0], edges, [len(images)]]).astype(np.int32)
    return csr_array((np.ones(len(images), np.int8), images, pointers), shape=(len(pointers) - 1, n))


def _compute_count_metrics(
    n_correct: np.ndarray, support: np.ndarray, predicted: np.ndarray, total: np.ndarray, labels: Sequence[str]
) -> MetricDraws:
    """Return the metrics of the predicted class from counts of shape (draws, k); `total`: images, (draws,)."""
    recall, n_others = n_correct / support, total[:, None] - support
    columns = {
        "sensitivity": recall,
        "specificity": (n_others - (predicted - n_correct)) / n_others,
        "precision": np.where(support > 0, np.where(predicted > 0, n_correct / predicted, 0.0), np.nan),
        "f1": np.where(support > 0, 2 * n_correct / (support + predicted), np.nan),
    }
    metrics = {"accuracy": n_correct.sum(axis=1) / total, "balanced_accuracy": average_defined(recall.T)}
    for k, label in enumerate(labels):
        metrics |= {f"per_class.{label}.{name}": column[:, k] for name, column in columns.items()}
    return metrics


def average_defined(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Return the mean over the classes with a finite value in a draw; NaN if no class has one."""
    table = np.stack(list(columns))
    is_defined = np.isfinite(table)
    n_defined = is_defined.sum(axis=0)
    return np.where(n_defined, np.where(is_defined, table, 0.0).sum(axis=0) / np.maximum(n_defined, 1), np.nan)
