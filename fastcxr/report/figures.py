"""From plain values to matplotlib Figures: curves of training and test, the confusion matrix. Nothing is written.

Each figure is one panel, small enough to be read on a phone; lines carry their names where they end.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
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
    class_line_style,
    figure_style,
    make_axes,
    shorten,
)

MAX_BASELINE_CLASSES = 4  # more baselines than this would only be a web
MAX_INSIDE_LEGEND_LINES, LEGEND_LINE_INCHES = (
    7,
    0.2,
)  # a key of so many lines fits into the axes; the height of one, in inches
N_RELIABILITY_BINS, MIN_BIN_IMAGES = 10, 10  # of a reliability curve
SPLIT_COLORS = {"train": FAINT_COLOR, "valid": ACCENT_COLOR}


@figure_style
def plot_learning_curve(history: pd.DataFrame, columns: dict[str, str], title: str) -> Figure:
    """A figure of every epoch; stages are parted by a line, the best epoch is ringed.

    `history`: the table of history.csv. `columns`: what a line is called -> its column, as {"train": "train_loss"}.
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
    _mark_best_epoch(axes, history, columns.get("valid", next(iter(columns.values()))))
    _limit_axis_to_one(axes, history[list(columns.values())].to_numpy(float), title)
    if len(columns) > 1:
        _label_line_ends(axes, line_ends)
    if _draw_stage_boundaries(axes, history):
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=TEXT_COLOR, pad=19)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    return figure


@figure_style
def plot_lr_find_curve(rates: Sequence[float], losses: Sequence[float], chosen: float | None, title: str) -> Figure:
    """The curve of a learning-rate finder, and the rate that was taken."""
    figure, axes = make_axes(3.5, 2.45, title)
    rates, losses = np.asarray(rates, dtype=float), np.asarray(losses, dtype=float)
    axes.plot(rates, losses, color=ACCENT_COLOR)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_format_power_of_ten))
    axes.set_xlabel("learning rate")
    finite = losses[np.isfinite(losses)]
    if len(finite):
        # the last steps diverge by design: they would flatten all the rest
        low, high = finite.min(), min(finite.max(), finite[0] + 0.6 * (finite[0] - finite.min()) + 0.05)
        axes.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.12 * (high - low + 1e-9))
    if chosen is not None:
        axes.axvline(chosen, color="#d55e00", linewidth=1.4)
        on_left = chosen < np.sqrt(rates.min() * rates.max()) if len(rates) and rates.min() > 0 else True
        text_position = {"xytext": (5 if on_left else -5, -2), "textcoords": "offset points", "va": "top"}
        text_style = {"color": "#a84a00", "fontweight": "bold", "ha": "left" if on_left else "right"}
        axes.annotate(
            format_learning_rate(chosen), (chosen, 1), xycoords=("data", "axes fraction"), **text_position, **text_style
        )
    return figure


@figure_style
def plot_roc_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Each class against the rest; the key names the area. A class without images, or without others, has no curve."""
    legend_entries = []
    figure, axes = _make_unit_axes(
        "Sensitivity (true positive rate)", "1 − specificity (false positive rate)", len(labels)
    )
    axes.plot([0, 1], [0, 1], color=FAINT_COLOR, linewidth=1, linestyle=(0, (3, 3)))
    for k, is_class in _list_drawable_classes(truth, len(labels)):
        false_positive_rate, true_positive_rate, _ = roc_curve(is_class, probability[:, k])
        axes.plot(false_positive_rate, true_positive_rate, color=class_color(k), linestyle=class_line_style(k))
        legend_entries.append((k, labels[k], roc_auc_score(is_class, probability[:, k])))
    _draw_legend(axes, legend_entries, "AUROC", left=0.42)
    return figure


@figure_style
def plot_roc_by_model(scores_by_model: dict[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """One class against the rest, a curve a model. `scores_by_model`: truth and score of each, by the model's name."""
    legend_entries = []
    figure, axes = _make_unit_axes(
        f"{shorten(replace_unprintable(label), 24)}: sensitivity", "1 − specificity", len(scores_by_model)
    )
    axes.plot([0, 1], [0, 1], color=FAINT_COLOR, linewidth=1, linestyle=(0, (3, 3)))
    for k, (name, (truth, scores)) in enumerate(scores_by_model.items()):
        false_positive_rate, true_positive_rate, _ = roc_curve(truth, scores)
        axes.plot(false_positive_rate, true_positive_rate, color=class_color(k), linestyle=class_line_style(k))
        legend_entries.append((k, name, roc_auc_score(truth, scores)))
    _draw_legend(axes, legend_entries, "AUROC", left=0.42)
    return figure


@figure_style
def plot_precision_recall_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Each class against the rest; dotted, for a few classes, is the share of the class, which guessing would reach."""
    legend_entries = []
    figure, axes = _make_unit_axes("Precision (positive predictive value)", "Recall (sensitivity)", len(labels))
    for k, is_class in _list_drawable_classes(truth, len(labels)):
        precision, recall, _ = precision_recall_curve(is_class, probability[:, k])
        axes.plot(recall, precision, color=class_color(k), linestyle=class_line_style(k), drawstyle="steps-post")
        if len(labels) <= MAX_BASELINE_CLASSES:
            axes.axhline(is_class.mean(), color=class_color(k), linewidth=0.9, linestyle=(0, (1, 2.5)))
        legend_entries.append((k, labels[k], average_precision_score(is_class, probability[:, k])))
    _draw_legend(axes, legend_entries, "Average precision", left=0.03)
    return figure


@figure_style
def plot_reliability_curves(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], slopes: Sequence[float | None]
) -> Figure:
    """How often each class was the truth, over the probability it got, in bins of equally many images."""
    legend_entries = []
    figure, axes = _make_unit_axes("Share that is of the class", "probability that the model gave", len(labels))
    axes.plot([0, 1], [0, 1], color=FAINT_COLOR, linewidth=1, linestyle=(0, (3, 3)))
    for k, is_class in _list_drawable_classes(truth, len(labels)):
        order = np.argsort(probability[:, k], kind="stable")
        bins = np.array_split(order, min(N_RELIABILITY_BINS, max(1, len(order) // MIN_BIN_IMAGES)))
        mean_probability, observed_share = (
            [values[bin_].mean() for bin_ in bins] for values in (probability[:, k], is_class)
        )
        axes.plot(
            mean_probability,
            observed_share,
            color=class_color(k),
            linestyle=class_line_style(k),
            marker="o",
            markersize=3.5,
        )
        legend_entries.append((k, labels[k], np.nan if slopes[k] is None else slopes[k]))
    _draw_legend(axes, legend_entries, "Slope", left=0.42)
    return figure


@figure_style
def plot_net_benefit_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """What acting on the model is worth, by the probability at which somebody would; dotted: acting on everybody."""
    figure, axes = make_axes(4.2, 3.0, "Net benefit")
    for k, is_class in _list_drawable_classes(truth, len(labels)):
        benefit, treat_all_benefit = net_benefit(is_class, probability[:, k])
        axes.plot(
            NET_BENEFIT_THRESHOLDS,
            benefit,
            color=class_color(k),
            linestyle=class_line_style(k),
            label=shorten(replace_unprintable(labels[k]), 20),
        )
        axes.plot(
            NET_BENEFIT_THRESHOLDS, treat_all_benefit, color=class_color(k), linewidth=0.9, linestyle=(0, (1, 2.5))
        )
    axes.axhline(0, color=FAINT_COLOR, linewidth=1)
    axes.set(xlabel="probability at which somebody would act", ylim=(-0.05, None))
    axes.legend(frameon=False, fontsize=9)
    return figure


@figure_style
def plot_confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Rows are the truth; each cell shows its share of the row, which also shades it, and the count."""
    counts, n_classes = np.asarray(matrix), len(labels)
    cell_inches = 1.0 if n_classes <= 4 else 0.72
    names = [shorten(replace_unprintable(label), 18) for label in labels]
    figure = Figure(
        figsize=(max(4.2, cell_inches * n_classes + 1.5), max(2.6, cell_inches * 0.72 * n_classes + 0.9)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    for row, column in np.ndindex(n_classes, n_classes):
        _draw_confusion_cell(axes, (row, column), counts[row, column], counts[row].sum())
    axes.set(xlim=(0, n_classes), ylim=(n_classes, 0))
    axes.set_xlabel("predicted", fontweight="bold", color=TEXT_COLOR, labelpad=7)
    axes.set_ylabel("truth", fontweight="bold", color=TEXT_COLOR)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=TEXT_COLOR)
    tick_options = (
        {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if n_classes > 4 or max(map(len, names)) > 13 else {}
    )
    axes.set_xticks(np.arange(n_classes) + 0.5, names, **tick_options)
    axes.set_yticks(np.arange(n_classes) + 0.5, names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _draw_confusion_cell(axes: Axes, cell: tuple[int, int], n: int, row_total: int) -> None:
    row, column = cell
    row_share = n / row_total if row_total else 0.0
    # from white to deep blue, along a straight line: the shade is the share
    color = tuple(1 - row_share * (1 - channel) for channel in (0.043, 0.361, 0.471))
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=color, edgecolor="white", linewidth=2))
    if row_share < 0.03:
        axes.add_patch(
            Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, facecolor="none", edgecolor=GRID_COLOR, linewidth=0.8)
        )
    centred = {"ha": "center", "va": "center"}
    if not n:
        axes.text(column + 0.5, row + 0.5, "0" if row_total else "–", color=FAINT_COLOR, fontsize=9, **centred)
        return
    text_color, count_color = ("white", "#e6f0f4") if row_share > 0.65 else (TEXT_COLOR, MUTED_COLOR)
    label = "< 1 %" if row_share < 0.005 else "> 99 %" if 0.995 <= row_share < 1 else f"{100 * row_share:.0f} %"
    axes.text(column + 0.5, row + 0.41, label, color=text_color, fontsize=12, fontweight="bold", **centred)
    axes.text(column + 0.5, row + 0.7, f"{n:,}", color=count_color, fontsize=9, **centred)


def _list_drawable_classes(truth: np.ndarray, n_classes: int) -> list[tuple[int, np.ndarray]]:
    """The classes that a curve can be drawn for: some images are of the class and some are not."""
    memberships = [(i, truth == i) for i in range(n_classes)]
    return [(i, is_class) for i, is_class in memberships if is_class.any() and not is_class.all()]


def _make_unit_axes(title: str, x_label: str, n_lines: int) -> tuple[Figure, Axes]:
    """A square from 0 to 1; a key of more than seven lines gets room below it."""
    legend_inches = 0.0 if n_lines <= MAX_INSIDE_LEGEND_LINES else 0.3 + LEGEND_LINE_INCHES * n_lines
    width, height = 4.2, 4.2 + legend_inches
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.5 / width, (0.5 + legend_inches) / height, 3.5 / width, 3.4 / height))
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=TEXT_COLOR, pad=8)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), xlabel=x_label)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    return figure, axes


def _draw_legend(axes: Axes, legend_entries: list[tuple[int, str, float]], heading: str, left: float) -> None:
    """Name and figure of each line: in a corner that curves rarely reach, or below when the names are many."""
    is_inside, line_height, axes_options = (
        len(legend_entries) <= MAX_INSIDE_LEGEND_LINES,
        LEGEND_LINE_INCHES / 3.4,
        {"transform": axes.transAxes, "clip_on": False},
    )
    left, right = (left, left + 0.56) if is_inside else (0.0, 0.96)
    top = 0.03 + line_height * (len(legend_entries) + 0.4) if is_inside else -0.2
    if is_inside:
        frame = ((left - 0.02, 0.02), right - left + 0.03, top + 0.02)
        axes.add_patch(Rectangle(*frame, facecolor="white", alpha=0.86, edgecolor="none", zorder=3, **axes_options))
    axes.text(right, top, heading, ha="right", va="center", color=MUTED_COLOR, fontsize=8.5, zorder=4, **axes_options)
    for row, (k, label, value) in enumerate(legend_entries):
        y = top - line_height * (row + 1)
        line_options = {"color": class_color(k), "linestyle": class_line_style(k), "linewidth": 2.4, "zorder": 4}
        axes.plot([left, left + 0.06], [y, y], **line_options, **axes_options)
        name = shorten(replace_unprintable(label), 20 if is_inside else 40)
        text_options = {"va": "center", "fontsize": 9, "zorder": 4} | axes_options
        axes.text(left + 0.085, y, name, **text_options)
        axes.text(right, y, format_score(value), ha="right", fontweight="bold", **text_options)


def _mark_best_epoch(axes: Axes, history: pd.DataFrame, column: str) -> None:
    best = history[history["best"]] if "best" in history else history.iloc[:0]
    if len(best):
        epoch, value = best[["epoch", column]].to_numpy(float)[-1]
        axes.plot(
            [epoch], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor="#d55e00", markeredgewidth=1.6
        )


def _limit_axis_to_one(axes: Axes, values: np.ndarray, title: str) -> None:
    """Shares end at one: no axis promises more."""
    low, high = axes.get_ylim()
    if high > 1 >= np.nanmax(values, initial=0.0) and "loss" not in title.lower():
        axes.set_ylim(low, 1.0 + 0.02 * (1 - low))


def _label_line_ends(axes: Axes, line_ends: dict[str, tuple[float, float, str]]) -> None:
    """Each line's name at its right end, moved apart where lines end close together."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    y = -np.inf
    for name, (epoch, value, color) in sorted(line_ends.items(), key=lambda item: item[1][1]):
        y = max(value, y + gap)
        text_position = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        text_color = MUTED_COLOR if color == FAINT_COLOR else color
        axes.annotate(name, (epoch, y), color=text_color, fontweight="bold", fontsize=9, **text_position)


def _draw_stage_boundaries(axes: Axes, history: pd.DataFrame) -> bool:
    """A dashed line where a stage ends, its name above it; whether there is more than one stage."""
    if "stage" not in history or history["stage"].nunique() < 2:
        return False
    epochs, stages = history["epoch"].to_numpy(float), [replace_unprintable(s) for s in history["stage"]]
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(epochs[start] - 0.5, color=FAINT_COLOR, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        # a name only where there is room for it; the caption has them all
        if (stop - start) / len(stages) * 42 > len(stages[start]) + 1:
            text_position = {"xytext": (2, 3), "textcoords": "offset points", "va": "bottom"}
            position = (epochs[start] - 0.5, 1)
            axes.annotate(
                stages[start],
                position,
                xycoords=("data", "axes fraction"),
                color=MUTED_COLOR,
                fontsize=8.5,
                **text_position,
            )
    return True


def _format_power_of_ten(value: float, _: int | None = None) -> str:
    """A power of ten as people write it: 10⁻³."""
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
