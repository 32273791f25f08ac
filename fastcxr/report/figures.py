"""Matplotlib figures of a run: learning curves, learning rate finder, curves of the test metrics, confusion matrix.

Each figure has one panel, readable on a phone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from rich.cells import cell_len, chop_cells
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from fastcxr.io.formatting import format_learning_rate, format_score
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.thresholds import NET_BENEFIT_THRESHOLDS, net_benefit
from fastcxr.report.style import (
    ACCENT_COLOR,
    FAINT_COLOR,
    GRID_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    class_color,
    class_line,
    figure_style,
    make_axes,
    set_title,
    shorten,
)

MAX_BASELINE_CLASSES = 4  # with more classes, the baselines of a precision-recall curve are unreadable
# larger legends are placed below the axes; widths in character cells, for the widest of the fonts of the page
MAX_INSIDE_LEGEND_LINES, MAX_INSIDE_NAME_CELLS, MAX_BELOW_NAME_CELLS = 7, 14, 32
MAX_LEGEND_NAME_LENGTH = 255  # of a file name, so that no two run folders get the same name
LEGEND_LINE_INCHES = 0.2
N_RELIABILITY_BINS, MIN_BIN_IMAGES = 10, 10
SPLIT_COLORS = {"train": FAINT_COLOR, "validation": ACCENT_COLOR}
BEST_COLOR = "#d55e00"  # the best epoch, the learning rate in use
DOTTED: dict[str, Any] = {"linewidth": 0.9, "linestyle": (0, (1, 2.5))}


@figure_style
def plot_learning_curve(history: pd.DataFrame, columns: dict[str, str], title: str) -> Figure:
    """Plot one metric by epoch; dashed lines separate stages, a ring marks the best epoch.

    Args:
        history: The table of history.csv.
        columns: Name of each line and its column, such as {"train": "train_loss"}.
        title: Title of the figure.
    """
    figure, axes = make_axes(3.5, 2.6, title)
    epochs = history["epoch"].to_numpy(float)
    line_ends = {}
    for name, column in columns.items():
        values, color = history[column].to_numpy(float), SPLIT_COLORS.get(name, ACCENT_COLOR)
        axes.plot(epochs, values, color=color, marker="o" if len(epochs) <= 20 else "", markersize=3.5)
        finite_positions = np.flatnonzero(np.isfinite(values))
        if len(finite_positions):
            line_ends[name] = (epochs[finite_positions[-1]], values[finite_positions[-1]], color)
    _mark_best_epoch(axes, history, columns.get("validation", next(iter(columns.values()))))
    _limit_axis_to_one(axes, history[list(columns.values())].to_numpy(float), title)
    if len(columns) > 1:
        _label_line_ends(axes, line_ends)
    if _draw_stage_boundaries(axes, history):
        set_title(axes, title, pad=19)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    return figure


@figure_style
def plot_lr_find_curve(rates: pd.Series, losses: pd.Series, chosen: float | None, title: str) -> Figure:
    """Plot the loss of a learning rate finder and the chosen rate."""
    figure, axes = make_axes(3.5, 2.45, title)
    x, y = rates.to_numpy(float), losses.to_numpy(float)
    axes.plot(x, y, color=ACCENT_COLOR)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_format_power_of_ten))
    axes.set_xlabel("learning rate")
    finite = y[np.isfinite(y)]
    if len(finite):
        # the loss diverges in the last steps by design, which would flatten the rest of the curve
        low, high = finite.min(), min(finite.max(), finite[0] + 0.6 * (finite[0] - finite.min()) + 0.05)
        axes.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.12 * (high - low + 1e-9))
    if chosen is not None:
        axes.axvline(chosen, color=BEST_COLOR, linewidth=1.4)
        on_left = chosen < np.sqrt(x.min() * x.max()) if len(x) and x.min() > 0 else True
        text_style: dict[str, Any] = {"color": "#a84a00", "fontweight": "bold", "ha": "left" if on_left else "right"}
        text_style |= {"xytext": (5 if on_left else -5, -2), "textcoords": "offset points", "va": "top"}
        axes.annotate(format_learning_rate(chosen), (chosen, 1), xycoords=("data", "axes fraction"), **text_style)
    return figure


@figure_style
def plot_roc_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Plot each class against the rest, AUROC in the legend; a class without positives or negatives has no curve."""
    curves = [(k, labels[k], is_class, probability[:, k]) for k, is_class in list_drawable_classes(truth, len(labels))]
    title, x_label = "Sensitivity (true positive rate)", "1 − specificity (false positive rate)"
    return _plot_roc_curves(curves, title, x_label)


@figure_style
def plot_roc_by_model(scores_by_model: dict[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """Plot one class against the rest, one curve per model. `scores_by_model`: truth and score of each model."""
    curves = [(k, name, truth, scores) for k, (name, (truth, scores)) in enumerate(scores_by_model.items())]
    title = f"{shorten(replace_unprintable(label), 24)}: sensitivity"
    return _plot_roc_curves(curves, title, "1 − specificity")


def _plot_roc_curves(curves: list[tuple[int, str, np.ndarray, np.ndarray]], title: str, x_label: str) -> Figure:
    figure, axes = _make_unit_axes(title, x_label, [name for _, name, _, _ in curves], has_diagonal=True)
    for k, _, truth, scores in curves:
        axes.plot(*roc_curve(truth, scores)[:2], **class_line(k))
    _draw_legend(axes, [(k, name, roc_auc_score(truth, scores)) for k, name, truth, scores in curves], "AUROC")
    return figure


@figure_style
def plot_precision_recall_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Plot each class against the rest; for few classes a dotted line marks the prevalence (chance level)."""
    legend_entries = []
    figure, axes = _make_unit_axes("Precision (positive predictive value)", "Recall (sensitivity)", labels)
    for k, is_class in list_drawable_classes(truth, len(labels)):
        precision, recall, _ = precision_recall_curve(is_class, probability[:, k])
        axes.plot(recall, precision, drawstyle="steps-post", **class_line(k))
        if len(labels) <= MAX_BASELINE_CLASSES:
            axes.axhline(is_class.mean(), color=class_color(k), **DOTTED)
        legend_entries.append((k, labels[k], average_precision_score(is_class, probability[:, k])))
    _draw_legend(axes, legend_entries, "Average precision", left=0.03)
    return figure


@figure_style
def plot_reliability_curves(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], slopes: Sequence[float | None]
) -> Figure:
    """Plot the observed fraction of each class over its mean predicted probability, in bins of equal image counts."""
    legend_entries = []
    figure, axes = _make_unit_axes("Observed fraction", "predicted probability", labels, has_diagonal=True)
    for k, is_class in list_drawable_classes(truth, len(labels)):
        points = compute_reliability_points(is_class, probability[:, k])
        axes.plot(*points, marker="o", markersize=3.5, **class_line(k))
        slope = slopes[k]
        legend_entries.append((k, labels[k], np.nan if slope is None else slope))
    _draw_legend(axes, legend_entries, "Slope")
    return figure


def compute_reliability_points(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean probability and observed fraction in bins of equal image counts."""
    order = np.argsort(scores, kind="stable")
    bins = np.array_split(order, min(N_RELIABILITY_BINS, max(1, len(order) // MIN_BIN_IMAGES)))
    return np.array([scores[bin_].mean() for bin_ in bins]), np.array([is_class[bin_].mean() for bin_ in bins])


@figure_style
def plot_net_benefit_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Plot the net benefit of each class by threshold probability; dotted: treat all."""
    figure, axes = make_axes(4.2, 3.0, "Net benefit")
    for k, is_class in list_drawable_classes(truth, len(labels)):
        benefit, treat_all_benefit = net_benefit(is_class, probability[:, k])
        label = shorten(replace_unprintable(labels[k]), 20)
        axes.plot(NET_BENEFIT_THRESHOLDS, benefit, label=label, **class_line(k))
        axes.plot(NET_BENEFIT_THRESHOLDS, treat_all_benefit, color=class_color(k), **DOTTED)
    axes.axhline(0, color=FAINT_COLOR, linewidth=1)
    axes.set(xlabel="threshold probability", ylim=(-0.05, None))
    axes.legend(frameon=False, fontsize=9)
    return figure


@figure_style
def plot_confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Plot counts with true classes as rows; each cell is shaded by and labelled with its share of the row."""
    n_classes = len(labels)
    cell_inches = 1.0 if n_classes <= 4 else 0.72
    names = [shorten(replace_unprintable(label), 18) for label in labels]
    width, height = max(4.2, cell_inches * n_classes + 1.5), max(2.6, cell_inches * 0.72 * n_classes + 0.9)
    figure = Figure(figsize=(width, height), layout="constrained")
    draw_confusion_matrix(figure.add_subplot(), matrix, names)
    return figure


def draw_confusion_matrix(axes: Axes, matrix: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Draw the cells and the names of the classes."""
    n_classes = len(names)
    for row, column in np.ndindex(n_classes, n_classes):
        _draw_confusion_cell(axes, (row, column), int(matrix[row][column]), int(sum(matrix[row])))
    axes.set(xlim=(0, n_classes), ylim=(n_classes, 0))
    axes.set_xlabel("predicted class", fontweight="bold", color=TEXT_COLOR, labelpad=7)
    axes.set_ylabel("true class", fontweight="bold", color=TEXT_COLOR)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=TEXT_COLOR)
    is_rotated = n_classes > 4 or max(map(len, names)) > 13
    tick_options: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if is_rotated else {}
    axes.set_xticks(np.arange(n_classes) + 0.5, names, **tick_options)
    axes.set_yticks(np.arange(n_classes) + 0.5, names)
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _draw_confusion_cell(axes: Axes, cell: tuple[int, int], n: int, row_total: int) -> None:
    row, column = cell
    row_share = n / row_total if row_total else 0.0
    # linear from white (0) to dark blue (1)
    color = tuple(1 - row_share * (1 - channel) for channel in (0.043, 0.361, 0.471))
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white", linewidth=2))
    if row_share < 0.03:
        frame = Rectangle(
            (column + 0.02, row + 0.02), 0.96, 0.96, facecolor="none", edgecolor=GRID_COLOR, linewidth=0.8
        )
        axes.add_patch(frame)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    if not n:
        axes.text(column + 0.5, row + 0.5, "0" if row_total else "–", color=FAINT_COLOR, fontsize=9, **centred)
        return
    text_color, count_color = ("white", "#e6f0f4") if row_share > 0.65 else (TEXT_COLOR, MUTED_COLOR)
    label = "< 1 %" if row_share < 0.005 else "> 99 %" if 0.995 <= row_share < 1 else f"{100 * row_share:.0f} %"
    axes.text(column + 0.5, row + 0.41, label, color=text_color, fontsize=12, fontweight="bold", **centred)
    axes.text(column + 0.5, row + 0.7, f"{n:,}", color=count_color, fontsize=9, **centred)


def list_drawable_classes(truth: np.ndarray, n_classes: int) -> list[tuple[int, np.ndarray]]:
    """Return number and membership of each class that has both positive and negative images."""
    memberships = [(i, truth == i) for i in range(n_classes)]
    return [(i, is_class) for i, is_class in memberships if is_class.any() and not is_class.all()]


def _make_unit_axes(title: str, x_label: str, names: Sequence[str], has_diagonal: bool = False) -> tuple[Figure, Axes]:
    """Return square axes from 0 to 1, with space for a large legend below."""
    n_lines = sum(map(len, map(_wrap_legend_name, names)))
    legend_inches = 0.0 if _fits_inside(names) else 0.3 + LEGEND_LINE_INCHES * n_lines
    width, height = 4.2, 4.2 + legend_inches
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.5 / width, (0.5 + legend_inches) / height, 3.5 / width, 3.4 / height))
    style_unit_axes(axes, title, x_label, has_diagonal=has_diagonal)
    return figure, axes


def style_unit_axes(axes: Axes, title: str, x_label: str, *, has_diagonal: bool) -> None:
    """Set title, label and limits of axes from 0 to 1."""
    set_title(axes, title)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), xlabel=x_label)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    if has_diagonal:
        axes.plot([0, 1], [0, 1], color=FAINT_COLOR, linewidth=1, linestyle=(0, (3, 3)))


def _draw_legend(axes: Axes, entries: Sequence[tuple[int, str, float]], heading: str, left: float = 0.42) -> None:
    """Draw name and metric of each line: in a corner that curves rarely reach, or below the axes if names are long."""
    is_inside, line_height = _fits_inside([name for _, name, _ in entries]), LEGEND_LINE_INCHES / 3.4
    left, right = (left, left + 0.56) if is_inside else (0.0, 0.96)
    top = 0.03 + line_height * (len(entries) + 0.4) if is_inside else -0.2
    axes_options: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False}
    if is_inside:
        box = Rectangle((left - 0.02, 0.02), right - left + 0.03, top + 0.02, **axes_options)
        box.set(facecolor="white", alpha=0.86, edgecolor="none", zorder=3)
        axes.add_patch(box)
    axes.text(right, top, heading, ha="right", va="center", color=MUTED_COLOR, fontsize=8.5, zorder=4, **axes_options)
    text_options = {"va": "center", "fontsize": 9, "zorder": 4} | axes_options
    y = top
    for k, label, value in entries:
        for i, line in enumerate(_wrap_legend_name(label)):
            y -= line_height
            axes.text(left + 0.085, y, line, **text_options)
            if i == 0:
                axes.plot([left, left + 0.06], [y, y], linewidth=2.4, zorder=4, **class_line(k), **axes_options)
                axes.text(right, y, format_score(value), ha="right", fontweight="bold", **text_options)


def _fits_inside(names: Sequence[str]) -> bool:
    is_short = all(cell_len(replace_unprintable(name)) <= MAX_INSIDE_NAME_CELLS for name in names)
    return is_short and len(names) <= MAX_INSIDE_LEGEND_LINES


def _wrap_legend_name(name: str) -> list[str]:
    """Return the lines of a name, which leave space for the metric at their right."""
    return chop_cells(shorten(replace_unprintable(name), MAX_LEGEND_NAME_LENGTH), MAX_BELOW_NAME_CELLS) or [""]


def _mark_best_epoch(axes: Axes, history: pd.DataFrame, column: str) -> None:
    best = history[history["best"]] if "best" in history else history.iloc[:0]
    if len(best):
        epoch, value = best[["epoch", column]].to_numpy(float)[-1]
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": BEST_COLOR, "markeredgewidth": 1.6}
        axes.plot([epoch], [value], "o", markersize=9, **ring)


def _limit_axis_to_one(axes: Axes, values: np.ndarray, title: str) -> None:
    """End the axis of a metric that cannot exceed 1 at 1."""
    low, high = axes.get_ylim()
    if high > 1 >= np.nanmax(values, initial=0.0) and "loss" not in title.lower():
        axes.set_ylim(low, 1.0 + 0.02 * (1 - low))


def _label_line_ends(axes: Axes, line_ends: dict[str, tuple[float, float, str]]) -> None:
    """Write the name of each line at its right end; names of close line ends are moved apart."""
    low, high = axes.get_ylim()
    y = -np.inf
    for name, (epoch, value, color) in sorted(line_ends.items(), key=lambda item: item[1][1]):
        y = max(value, y + 0.075 * (high - low))
        text_options: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
        text_options |= {"color": MUTED_COLOR if color == FAINT_COLOR else color, "annotation_clip": False}
        axes.annotate(name, (epoch, y), fontweight="bold", fontsize=9, **text_options)


def _draw_stage_boundaries(axes: Axes, history: pd.DataFrame) -> bool:
    """Draw a dashed line between stages, with their names above; return whether there are several stages."""
    if "stage" not in history or history["stage"].nunique() < 2:
        return False
    epochs, stages = history["epoch"].to_numpy(float), [replace_unprintable(s) for s in history["stage"]]
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(stages)], strict=True):
        x = epochs[start] - 0.5
        if start:
            axes.axvline(x, color=FAINT_COLOR, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        # short stages have no space for their name; the text of the page lists all
        if (stop - start) / len(stages) * 42 > len(stages[start]) + 1:
            text_options: dict[str, Any] = {"xytext": (2, 3), "textcoords": "offset points", "va": "bottom"}
            text_options |= {"xycoords": ("data", "axes fraction"), "color": MUTED_COLOR, "fontsize": 8.5}
            axes.annotate(stages[start], (x, 1), **text_options)
    return True


def _format_power_of_ten(value: float, _: int | None = None) -> str:
    """Return a power of ten with a superscript exponent, such as 10⁻³."""
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
