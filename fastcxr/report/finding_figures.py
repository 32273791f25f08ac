"""Matplotlib figures of findings: forest plot, small panels of curves, co-occurrence.

A panel shows one finding and is narrow, so that a page places two panels side by side on a phone, and six on a screen.
Curves have at most MAX_CURVE_POINTS points: the page of 100,000 images stays small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from fastcxr.io.formatting import format_score
from fastcxr.io.html import replace_unprintable
from fastcxr.report.figures import DOTTED
from fastcxr.report.style import (
    ACCENT_COLOR,
    FAINT_COLOR,
    GRID_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    figure_style,
    make_axes,
    set_title,
    shorten,
)

MAX_CURVE_POINTS = 160  # of a panel of 1.4 inches: more points are closer than a pixel
MAX_LABELLED_CELLS = 16  # findings of a heat map with the share in each cell
MAX_NAME_LENGTH, MAX_PANEL_NAME_LENGTH = 24, 22
PANEL_INCHES = 1.95
MEAN_MARKER = "D"
SHARE_COLORS = LinearSegmentedColormap.from_list("share", ["#ffffff", ACCENT_COLOR])

Curve = tuple[np.ndarray, np.ndarray]  # x and y


@dataclass(frozen=True)
class ForestRow:
    """A value with its interval in a forest plot; `low` and `high` are None without an interval.

    chance: the value of a model without information, marked by a gray line.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    is_mean: bool = False
    chance: float | None = None


@dataclass(frozen=True)
class Panel:
    """A curve of one finding between 0 and 1. `baseline`: height of a dotted line; None: the diagonal is dashed."""

    name: str
    curve: Curve
    text: str
    x_label: str
    baseline: float | None = None
    has_points: bool = False
    is_text_low: bool = True
    is_text_left: bool = False


@figure_style
def plot_forest(rows: Sequence[ForestRow], title: str) -> Figure:
    """Plot values with their intervals, the first row at the top; diamonds mark means, gray lines chance levels."""
    figure, axes = make_axes(4.4, 0.25 * len(rows) + 0.95, title)
    for position, row in enumerate(rows):
        color = TEXT_COLOR if row.is_mean else ACCENT_COLOR
        if row.chance is not None:
            axes.plot([row.chance] * 2, [position - 0.32, position + 0.32], color=FAINT_COLOR, linewidth=1.4)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [position, position], color=color, linewidth=1.6)
        axes.plot(row.value, position, MEAN_MARKER if row.is_mean else "o", color=color, markersize=5)
        text_style: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 9, "color": color}
        axes.text(1.02, position, format_score(row.value), transform=axes.get_yaxis_transform(), **text_style)
    axes.set_yticks(range(len(rows)), [shorten(replace_unprintable(row.name), MAX_NAME_LENGTH) for row in rows])
    axes.tick_params(axis="y", labelcolor=TEXT_COLOR)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    lowest = min(value for row in rows for value in (row.value, row.low, row.chance) if value is not None)
    axes.set_xlim(max(-0.01, np.floor(20 * lowest - 0.4) / 20), 1.005)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("95 % confidence interval")
    return figure


@figure_style
def plot_panel(panel: Panel) -> Figure:
    """Plot the curve of one finding, with the name of the finding as title and a number inside the axes."""
    figure = Figure(figsize=(PANEL_INCHES, PANEL_INCHES))
    axes = figure.add_axes((0.155, 0.2, 0.815, 0.68))
    figure.text(0.01, 0.925, shorten(replace_unprintable(panel.name), MAX_PANEL_NAME_LENGTH), **_PANEL_TITLE)
    _style_panel_axes(axes, panel.x_label)
    if panel.baseline is None:
        axes.plot([0, 1], [0, 1], color=FAINT_COLOR, linewidth=1, linestyle=(0, (3, 3)))
    else:
        axes.axhline(panel.baseline, color=ACCENT_COLOR, **DOTTED)
    axes.plot(*panel.curve, color=ACCENT_COLOR, linewidth=1.5, marker="o" if panel.has_points else "", markersize=2.8)
    y, vertical = (0.04, "bottom") if panel.is_text_low else (0.97, "top")
    x, horizontal = (0.04, "left") if panel.is_text_left else (0.97, "right")
    axes.text(x, y, panel.text, transform=axes.transAxes, va=vertical, ha=horizontal, **_PANEL_TEXT)
    return figure


_PANEL_TITLE: dict[str, Any] = {"fontsize": 9, "fontweight": "bold", "color": TEXT_COLOR, "va": "center"}
_PANEL_TEXT: dict[str, Any] = {"fontsize": 9, "color": TEXT_COLOR}


def _style_panel_axes(axes: Axes, x_label: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(labelsize=8, length=2, pad=2)
    axes.set_xlabel(x_label, fontsize=8, labelpad=1.5)


def compute_roc_points(is_present: np.ndarray, scores: np.ndarray) -> Curve:
    """Return 1 − specificity and sensitivity at each threshold, at most MAX_CURVE_POINTS of them."""
    false_rate, true_rate, _ = roc_curve(is_present, scores)
    return _thin_curve(false_rate, true_rate, false_rate + true_rate)


def compute_precision_recall_points(is_present: np.ndarray, scores: np.ndarray) -> Curve:
    """Return recall and precision at each threshold, at most MAX_CURVE_POINTS of them."""
    precision, recall, _ = precision_recall_curve(is_present, scores)
    return _thin_curve(recall[::-1], precision[::-1], recall[::-1])


def _thin_curve(x: np.ndarray, y: np.ndarray, position: np.ndarray) -> Curve:
    """Return points of a curve at equal steps of `position`, which increases from the first to the last point."""
    if len(x) <= MAX_CURVE_POINTS:
        return x, y
    steps = np.linspace(position[0], position[-1], MAX_CURVE_POINTS - 2)
    chosen = np.unique(np.r_[0, np.searchsorted(position, steps).clip(0, len(x) - 1), len(x) - 1])
    return x[chosen], y[chosen]


@figure_style
def plot_co_occurrence(counts: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Plot the share of the images with the finding of the row that also have the finding of the column.

    Args:
        counts: images with both findings, shape (k, k); the diagonal has the images with the finding.
        names: names of the k findings.
        title: title of the figure.
    """
    n_findings = len(names)
    inches = max(4.4, 0.185 * n_findings + 1.9)
    figure = Figure(figsize=(inches, inches + 0.1), layout="constrained")
    axes = figure.add_subplot()
    set_title(axes, title)
    n_images = counts.diagonal()
    shares = np.divide(counts, n_images[:, None], out=np.zeros(counts.shape), where=n_images[:, None] > 0)
    np.fill_diagonal(shares, np.nan)
    axes.imshow(shares, cmap=SHARE_COLORS, vmin=0, vmax=1, interpolation="none")
    short = [shorten(replace_unprintable(name), MAX_NAME_LENGTH) for name in names]
    axes.set_xticks(range(n_findings), short, rotation=90)
    axes.set_yticks(range(n_findings), [f"{name} {n:,}" for name, n in zip(short, n_images, strict=True)])
    axes.tick_params(length=0, labelcolor=TEXT_COLOR, labelsize=8)
    axes.grid(visible=False)
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(GRID_COLOR)
    if n_findings <= MAX_LABELLED_CELLS:
        for row, column in np.argwhere(~np.isnan(shares) & (counts > 0)):
            share = shares[row, column]
            color = "white" if share > 0.55 else MUTED_COLOR
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, color=color)
    return figure
