"""Figures of many redrawn cohorts at once: patients are drawn with replacement, all their images with them.

Each draw is a row of weights, how often every image comes, and every figure is computed from weights; that makes two
thousand draws of a thousand images a matter of a second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from fastcxr.metrics.calibration import compute_brier_scores, compute_log_losses

N_DRAWS = 2000
MAX_WEIGHTS_IN_MEMORY = 1 << 21  # weights in memory at once (16 MiB as float64)
MetricDraws = dict[str, np.ndarray]


def bootstrap_metrics(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: np.ndarray, seed: int
) -> MetricDraws:
    """Every figure of `measure` by its dotted name, in each draw: shape (DRAWS,), nan where a draw leaves it undefined.

    `truth`: positions in `labels`, shape (n,). `probability`: (n, k). `patients`: a name an image.
    """
    images = MetricInputs.of(truth, probability, labels)
    batches = [images.compute(weights) for weights in draw_bootstrap_weights(patients, seed)]
    return {name: np.concatenate([part[name] for part in batches]) for name in batches[0]}


def draw_bootstrap_weights(patients: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """How often each image comes in each draw; shape (some draws, n)."""
    _, patient_index = np.unique(patients, return_inverse=True)
    n_patients, rng, n_left = patient_index.max() + 1, np.random.default_rng(seed), N_DRAWS
    while n_left:
        n_draws = min(n_left, max(1, MAX_WEIGHTS_IN_MEMORY // len(patient_index)))
        patient_counts = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_draws)
        yield patient_counts[:, patient_index].astype(float)
        n_left -= n_draws


def is_in_top2(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Whether the truth is one of the two most probable classes; the last of them in a tie, as in scikit-learn."""
    top2 = np.argsort(probability, axis=1, kind="stable")[:, -2:]
    return (top2 == truth[:, None]).any(axis=1)


@dataclass(frozen=True)
class MetricInputs:
    """What the metrics need of n images, computed once for all draws.

    support, predicted, hits: the images of each true class, of each predicted class, and those where it is the same;
    sparse (k, n), because indicators of all pairs of classes would take n times k squared numbers. rankings: one a
    class. means: metrics that are means over images, each (n,).
    """

    labels: Sequence[str]
    support: csr_array
    predicted: csr_array
    hits: csr_array
    rankings: list["Ranking"]
    means: MetricDraws

    @classmethod
    def of(cls, truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> "MetricInputs":
        """Prepare the images; arguments as in `redraw`."""
        guess, everyone = probability.argmax(axis=1), np.arange(len(truth))
        groups = ((truth, everyone), (guess, everyone), (truth, np.flatnonzero(guess == truth)))
        means = {
            "calibration.log_loss": compute_log_losses(truth, probability),
            "calibration.brier": compute_brier_scores(truth, probability),
        }
        if len(labels) > 2:
            means["top2_accuracy"] = is_in_top2(truth, probability).astype(float)
        rankings = [Ranking.of(truth == k, probability[:, k]) for k in range(len(labels))]
        return cls(labels, *(_make_class_indicators(*group, len(labels)) for group in groups), rankings, means)

    def compute(self, weights: np.ndarray) -> MetricDraws:
        """Every metric in each draw. `weights`: (draws, n)."""
        total, columns = weights.sum(axis=1), np.ascontiguousarray(weights.T)
        counts = ((table @ columns).T for table in (self.hits, self.support, self.predicted))
        with np.errstate(invalid="ignore", divide="ignore"):
            figures = _compute_count_metrics(*counts, total, self.labels)
            ranks = [ranking.compute(columns) for ranking in self.rankings]
        for name, column in (("auroc", 0), ("average_precision", 1)):
            figures |= {f"{name}.per_class.{label}": ranks[k][column] for k, label in enumerate(self.labels)}
            figures[f"{name}.macro"] = _average_defined([rank[column] for rank in ranks])
        return figures | {name: weights @ values / total for name, values in self.means.items()}


@dataclass(frozen=True)
class Ranking:
    """Images in the order of one class's score, highest first, in groups that are summed at once.

    above: the positive images of each distinct score of a positive image, sparse (g, n). named: all images in 2g + 1
    groups: those before each of these scores, those with it, and last those after all of them.
    """

    above: csr_array
    named: csr_array

    @classmethod
    def of(cls, positive: np.ndarray, score: np.ndarray) -> "Ranking":
        """Rank images by `score`; both of shape (n,)."""
        order = np.argsort(-score, kind="stable").astype(np.int32)
        positives = order[positive[order]]
        scores, first = np.unique(-score[positives], return_index=True)
        edges = np.stack([np.searchsorted(-score[order], scores, side=side) for side in ("left", "right")], axis=1)
        return cls(
            _make_group_indicators(positives, first[1:], len(order)),
            _make_group_indicators(order, edges.ravel(), len(order)),
        )

    def compute(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision in each draw; nan without a positive or, for the AUROC, a negative image.

        `columns`: weights, (n, draws).
        """
        above, named = self.above @ columns, (self.named @ columns).cumsum(axis=0)
        hits, before, upto = above.cumsum(axis=0), named[:-1:2], named[1::2]
        if not len(upto):
            return np.full(columns.shape[1], np.nan), np.full(columns.shape[1], np.nan)
        negatives, below = named[-1] - hits[-1], upto - before - above
        # a positive is ranked above the negatives after it, and above half of those of its own score
        auroc = (above * (negatives - (upto - hits) + below / 2)).sum(axis=0) / (hits[-1] * negatives)
        precision = np.where(above > 0, hits / upto, 0.0)
        return auroc, (above * precision).sum(axis=0) / hits[-1]


def _make_class_indicators(place: np.ndarray, rows: np.ndarray, k: int) -> csr_array:
    """Which of the images `rows` are of each class, sparse (k, n); `place`: the class of every image, (n,)."""
    return csr_array((np.ones(len(rows)), (place[rows], rows)), shape=(k, len(place)))


def _make_group_indicators(images: np.ndarray, edges: np.ndarray, n: int) -> csr_array:
    """A row for each run of `images` between two `edges`: its sums are the matrix product; sparse (edges + 1, n)."""
    pointers = np.concatenate([[0], edges, [len(images)]]).astype(np.int32)
    return csr_array((np.ones(len(images), np.int8), images, pointers), shape=(len(pointers) - 1, n))


def _compute_count_metrics(
    n_correct: np.ndarray, support: np.ndarray, predicted: np.ndarray, total: np.ndarray, labels: Sequence[str]
) -> MetricDraws:
    """Metrics of the predicted class. `hits`, `support`, `predicted`: (draws, k); `total`: (draws,)."""
    recall, n_others = n_correct / support, total[:, None] - support
    columns = {
        "sensitivity": recall,
        "specificity": (n_others - (predicted - n_correct)) / n_others,
        "precision": np.where(support > 0, np.where(predicted > 0, n_correct / predicted, 0.0), np.nan),
        "f1": np.where(support > 0, 2 * n_correct / (support + predicted), np.nan),
    }
    metrics = {"accuracy": n_correct.sum(axis=1) / total, "balanced_accuracy": _average_defined(list(recall.T))}
    for k, label in enumerate(labels):
        metrics |= {f"per_class.{label}.{name}": column[:, k] for name, column in columns.items()}
    return metrics


def _average_defined(columns: list[np.ndarray]) -> np.ndarray:
    """Mean over the classes that a draw holds; nan where it holds none."""
    table = np.stack(columns)
    is_defined = np.isfinite(table)
    n_defined = is_defined.sum(axis=0)
    return np.where(n_defined, np.where(is_defined, table, 0.0).sum(axis=0) / np.maximum(n_defined, 1), np.nan)
