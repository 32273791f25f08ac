"""Plots of predictions in the style of scikit-learn's displays: an object holds the numbers, and `plot` draws them.

Each function draws one split into `ax`, or into a new figure of pyplot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import roc_auc_score, roc_curve

from fastcxr.errors import DataError, require_type
from fastcxr.io.formatting import format_score
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.calibration import compute_image_calibration
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.predictions import Predictions
from fastcxr.report.figures import (
    compute_reliability_points,
    draw_confusion_matrix,
    style_unit_axes,
)
from fastcxr.report.style import class_line, shorten

MAX_NAME_LENGTH = 18


@dataclass(kw_only=True, eq=False)
class CurveDisplay:
    """One curve per class, each class against the others, or one curve per finding.

    Attributes:
        split: the split of the images.
        labels: the classes or findings.
        title: what the vertical axis shows.
        x_label: what the horizontal axis shows.
        curves: x and y of each curve by class; a class without positive or without negative images has none.
        scores: the number of each curve in the legend by class: AUROC, or slope of the calibration line (NaN if no
            line can be fitted).
        score_name: the name of this number.
        ax_: the axes of the last plot.
    """

    split: str
    labels: tuple[str, ...]
    title: str
    x_label: str
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    scores: dict[str, float]
    score_name: str
    ax_: Axes | None = field(default=None, init=False)

    def plot(self, ax: Axes | None = None) -> "CurveDisplay":
        """Draw the curves into `ax`, or into a new figure."""
        self.ax_ = ax = ax or _make_pyplot_axes()
        style_unit_axes(ax, self.title, self.x_label, has_diagonal=True)
        marker = "o" if self.score_name == "slope" else ""
        for k, label in enumerate(self.labels):
            if label in self.curves:
                name = f"{_shorten(label)} ({self.score_name} {format_score(self.scores[label])})"
                ax.plot(*self.curves[label], label=name, marker=marker, markersize=3.5, **class_line(k))
        if self.curves:
            ax.legend(frameon=False, fontsize=9)
        return self


@dataclass(kw_only=True, eq=False)
class ConfusionDisplay:
    """Counts of images, shape (k, k): one row per true class, one column per predicted class."""

    split: str
    labels: tuple[str, ...]
    matrix: np.ndarray
    ax_: Axes | None = field(default=None, init=False)

    def plot(self, ax: Axes | None = None) -> "ConfusionDisplay":
        """Draw the matrix into `ax`, or into a new figure."""
        self.ax_ = ax = ax or _make_pyplot_axes()
        draw_confusion_matrix(ax, self.matrix.tolist(), [_shorten(label) for label in self.labels])
        return self


def plot_roc(predictions: Predictions, ax: Axes | None = None, *, split: str | None = None) -> CurveDisplay:
    """Plot the ROC curve of each class or finding.

    `split`: default: the split of the main metrics (test, if there is one).
    """
    split, part = _select_split(predictions, split)
    classes = _list_classes(part)
    return CurveDisplay(
        split=split,
        labels=part.labels,
        title="Sensitivity (true positive rate)",
        x_label="1 − specificity (false positive rate)",
        curves={label: roc_curve(is_class, scores)[:2] for label, is_class, scores in classes},
        scores={label: float(roc_auc_score(is_class, scores)) for label, is_class, scores in classes},
        score_name="AUROC",
    ).plot(ax)


def plot_calibration(predictions: Predictions, ax: Axes | None = None, *, split: str | None = None) -> CurveDisplay:
    """Plot the observed fraction of each class or finding over its mean probability. `split`: see plot_roc."""
    split, part = _select_split(predictions, split)
    lines = compute_image_calibration(part.to_arrays())["per_class"]
    return CurveDisplay(
        split=split,
        labels=part.labels,
        title="Observed fraction",
        x_label="predicted probability",
        curves={label: compute_reliability_points(is_class, scores) for label, is_class, scores in _list_classes(part)},
        scores={label: line["slope"][0] if line else np.nan for label, line in lines.items()},
        score_name="slope",
    ).plot(ax)


def plot_confusion(predictions: Predictions, ax: Axes | None = None, *, split: str | None = None) -> ConfusionDisplay:
    """Plot the confusion matrix. `split`: see plot_roc. Raises DataError for findings, which have none."""
    require_type("predictions", predictions, Predictions)
    if predictions.is_multi_label:
        problem = "an image can have several findings, so there is no confusion matrix"
        raise DataError(problem, "Plot `plot_roc` or `plot_calibration`, or use `predictions.metrics()`")
    split, part = _select_split(predictions, split)
    matrix = compute_metrics(part.class_index, part.probability, part.labels)["confusion_matrix"]
    return ConfusionDisplay(split=split, labels=part.labels, matrix=np.array(matrix)).plot(ax)


def _select_split(predictions: Predictions, split: str | None) -> tuple[str, Predictions]:
    require_type("predictions", predictions, Predictions)
    split = split or predictions.primary_split
    part = predictions.for_split(split).scorable()
    if split is None or not len(part.table):
        found = ", ".join(predictions.splits) or "no split"
        problem = f"no image with a label is in the split {split!r}; the predictions have {found}"
        raise DataError(problem, "Pass predictions of a manifest with labels and splits")
    return split, part


def _list_classes(part: Predictions) -> Sequence[tuple[str, np.ndarray, np.ndarray]]:
    """Return label, membership and scores of each class that has both positive and negative images.

    Images whose label of a finding is unknown are left out for this finding.
    """
    images = part.to_arrays()
    is_known, is_present, scores = images.known, images.positive, images.probability
    rows = [(label, is_present[is_known[:, k], k], scores[is_known[:, k], k]) for k, label in enumerate(images.labels)]
    return [row for row in rows if row[1].any() and not row[1].all()]


def _make_pyplot_axes() -> Axes:
    from matplotlib import pyplot  # it selects a backend: only if the user gives no axes

    return pyplot.subplots(figsize=(4.6, 4.4), layout="constrained")[1]


def _shorten(label: str) -> str:
    return shorten(replace_unprintable(label), MAX_NAME_LENGTH)
