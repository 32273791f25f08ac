"""Figures of many redrawn cohorts at once: patients are drawn with replacement, all their images with them.

Each draw is a row of weights, how often every image comes, and every figure is computed from weights; that makes two
thousand draws of a thousand images a matter of a second.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fastcxr.evaluation.calibration import image_briers, image_losses

DRAWS = 2000
CELLS = 1 << 22  # of weights that are in memory at once
Figures = dict[str, np.ndarray]


def redraw(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: np.ndarray, seed: int
) -> Figures:
    """Every figure of `measure` by its dotted name, in each draw: shape (DRAWS,), nan where a draw leaves it undefined.

    `truth`: positions in `labels`, shape (n,). `probability`: (n, k). `patients`: a name an image.
    """
    parts = [_figures(weights, truth, probability, labels) for weights in draw_weights(patients, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def draw_weights(patients: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """How often each image comes in each draw; shape (some draws, n)."""
    _, place = np.unique(patients, return_inverse=True)
    count, rng, left = place.max() + 1, np.random.default_rng(seed), DRAWS
    while left:
        draws = min(left, max(1, CELLS // len(place)))
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        yield times[:, place].astype(float)
        left -= draws


def _figures(weights: np.ndarray, truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figures:
    k = len(labels)
    cells = np.eye(k * k)[truth * k + probability.argmax(axis=1)]
    confusion = (weights @ cells).reshape(-1, k, k)
    with np.errstate(invalid="ignore", divide="ignore"):
        figures = _of_counts(confusion, labels)
        ranks = [_of_ranks(weights, truth == k, probability[:, k]) for k in range(len(labels))]
    for name, column in (("auroc", 0), ("average_precision", 1)):
        figures |= {f"{name}.per_class.{label}": ranks[k][column] for k, label in enumerate(labels)}
        figures[f"{name}.macro"] = _mean([rank[column] for rank in ranks])
    losses = {"log_loss": image_losses(truth, probability), "brier": image_briers(truth, probability)}
    total = weights.sum(axis=1)
    figures |= {f"calibration.{name}": weights @ loss / total for name, loss in losses.items()}
    if k > 2:
        figures["top2_accuracy"] = weights @ is_among_two(truth, probability) / total
    return figures


def is_among_two(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Whether the truth is one of the two most probable classes; the last of them in a tie, as in scikit-learn."""
    two = np.argsort(probability, axis=1, kind="stable")[:, -2:]
    return (two == truth[:, None]).any(axis=1)


def _of_counts(confusion: np.ndarray, labels: Sequence[str]) -> Figures:
    """`confusion`: (draws, k, k)."""
    total, support, predicted = confusion.sum(axis=(1, 2)), confusion.sum(axis=2), confusion.sum(axis=1)
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    recall, rest = hits / support, total[:, None] - support
    columns = {
        "sensitivity": recall,
        "specificity": (rest - (predicted - hits)) / rest,
        "precision": np.where(support > 0, np.where(predicted > 0, hits / predicted, 0.0), np.nan),
        "f1": np.where(support > 0, 2 * hits / (support + predicted), np.nan),
    }
    figures = {"accuracy": hits.sum(axis=1) / total, "balanced_accuracy": _mean(list(recall.T))}
    for k, label in enumerate(labels):
        figures |= {f"per_class.{label}.{name}": column[:, k] for name, column in columns.items()}
    return figures


def _of_ranks(weights: np.ndarray, positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of one class in each draw, images of one score taken together."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.inf))
    above, below = (np.add.reduceat(weights[:, order] * side[order], starts, axis=1) for side in (positive, ~positive))
    hits, falls = above.cumsum(axis=1), below.cumsum(axis=1)
    # a negative is beaten by the positives before it, and by half of those beside it
    auroc = (below * (hits - above / 2)).sum(axis=1) / (hits[:, -1] * falls[:, -1])
    precision = np.where(above > 0, hits / (hits + falls), 0.0)
    return auroc, (above * precision).sum(axis=1) / hits[:, -1]


def _mean(columns: list[np.ndarray]) -> np.ndarray:
    """Mean over the classes that a draw holds; nan where it holds none."""
    table = np.stack(columns)
    known = np.isfinite(table)
    count = known.sum(axis=0)
    return np.where(count, np.where(known, table, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
