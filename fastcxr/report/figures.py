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

from fastcxr.io.formatting import rate, score
from fastcxr.io.html import plain
from fastcxr.metrics.thresholds import NET_RANGE, net_benefit
from fastcxr.report.style import ACCENT, FAINT, GRID, INK, MUTED, class_color, class_dash, house_style, panel, shorten

GUESSED = 4  # more baselines than this would only be a web
INSIDE, LINE = 7, 0.2  # a key of so many lines fits into the axes; the height of one, in inches
POINTS, FEWEST_IN_BIN = 10, 10  # of a reliability curve
LINES = {"train": FAINT, "valid": ACCENT}


@house_style
def learning_curve(history: pd.DataFrame, columns: dict[str, str], title: str) -> Figure:
    """A figure of every epoch; stages are parted by a line, the best epoch is ringed.

    `history`: the table of history.csv. `columns`: what a line is called -> its column, as {"train": "train_loss"}.
    """
    figure, axes = panel(3.5, 2.6, title)
    epochs = history["epoch"].to_numpy(float)
    ends = {}
    for name, column in columns.items():
        values, color = history[column].to_numpy(float), LINES.get(name, ACCENT)
        axes.plot(epochs, values, color=color, marker="o" if len(epochs) <= 20 else "", markersize=3.5)
        seen = np.flatnonzero(np.isfinite(values))
        if len(seen):
            ends[name] = (epochs[seen[-1]], values[seen[-1]], color)
    _ring_best(axes, history, columns.get("valid", next(iter(columns.values()))))
    _limit_to_one(axes, history[list(columns.values())].to_numpy(float), title)
    if len(columns) > 1:
        _name_ends(axes, ends)
    if _part_stages(axes, history):
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=19)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    return figure


@house_style
def rate_curve(rates: Sequence[float], losses: Sequence[float], chosen: float | None, title: str) -> Figure:
    """The curve of a learning-rate finder, and the rate that was taken."""
    figure, axes = panel(3.5, 2.45, title)
    rates, losses = np.asarray(rates, dtype=float), np.asarray(losses, dtype=float)
    axes.plot(rates, losses, color=ACCENT)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_power))
    axes.set_xlabel("learning rate")
    finite = losses[np.isfinite(losses)]
    if len(finite):
        # the last steps diverge by design: they would flatten all the rest
        low, high = finite.min(), min(finite.max(), finite[0] + 0.6 * (finite[0] - finite.min()) + 0.05)
        axes.set_ylim(low - 0.08 * (high - low + 1e-9), high + 0.12 * (high - low + 1e-9))
    if chosen is not None:
        axes.axvline(chosen, color="#d55e00", linewidth=1.4)
        on_left = chosen < np.sqrt(rates.min() * rates.max()) if len(rates) and rates.min() > 0 else True
        place = {"xytext": (5 if on_left else -5, -2), "textcoords": "offset points", "va": "top"}
        words = {"color": "#a84a00", "fontweight": "bold", "ha": "left" if on_left else "right"}
        axes.annotate(rate(chosen), (chosen, 1), xycoords=("data", "axes fraction"), **place, **words)
    return figure


@house_style
def roc_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Each class against the rest; the key names the area. A class without images, or without others, has no curve."""
    entries = []
    figure, axes = _unit_square(
        "Sensitivity (true positive rate)", "1 − specificity (false positive rate)", len(labels)
    )
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
    for k, is_class in _present(truth, len(labels)):
        across, up, _ = roc_curve(is_class, probability[:, k])
        axes.plot(across, up, color=class_color(k), linestyle=class_dash(k))
        entries.append((k, labels[k], roc_auc_score(is_class, probability[:, k])))
    _key(axes, entries, "AUROC", left=0.42)
    return figure


@house_style
def roc_of_models(lines: dict[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """One class against the rest, a curve a model. `lines`: truth and score of each, by the model's name."""
    entries = []
    figure, axes = _unit_square(f"{shorten(plain(label), 24)}: sensitivity", "1 − specificity", len(lines))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
    for k, (name, (truth, score_)) in enumerate(lines.items()):
        across, up, _ = roc_curve(truth, score_)
        axes.plot(across, up, color=class_color(k), linestyle=class_dash(k))
        entries.append((k, name, roc_auc_score(truth, score_)))
    _key(axes, entries, "AUROC", left=0.42)
    return figure


@house_style
def precision_recall_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """Each class against the rest; dotted, for a few classes, is the share of the class, which guessing would reach."""
    entries = []
    figure, axes = _unit_square("Precision (positive predictive value)", "Recall (sensitivity)", len(labels))
    for k, is_class in _present(truth, len(labels)):
        up, across, _ = precision_recall_curve(is_class, probability[:, k])
        axes.plot(across, up, color=class_color(k), linestyle=class_dash(k), drawstyle="steps-post")
        if len(labels) <= GUESSED:
            axes.axhline(is_class.mean(), color=class_color(k), linewidth=0.9, linestyle=(0, (1, 2.5)))
        entries.append((k, labels[k], average_precision_score(is_class, probability[:, k])))
    _key(axes, entries, "Average precision", left=0.03)
    return figure


@house_style
def reliability_curves(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], slopes: Sequence[float | None]
) -> Figure:
    """How often each class was the truth, over the probability it got, in bins of equally many images."""
    entries = []
    figure, axes = _unit_square("Share that is of the class", "probability that the model gave", len(labels))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
    for k, is_class in _present(truth, len(labels)):
        order = np.argsort(probability[:, k], kind="stable")
        bins = np.array_split(order, min(POINTS, max(1, len(order) // FEWEST_IN_BIN)))
        across, up = ([values[bin_].mean() for bin_ in bins] for values in (probability[:, k], is_class))
        axes.plot(across, up, color=class_color(k), linestyle=class_dash(k), marker="o", markersize=3.5)
        entries.append((k, labels[k], np.nan if slopes[k] is None else slopes[k]))
    _key(axes, entries, "Slope", left=0.42)
    return figure


@house_style
def net_benefit_curves(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> Figure:
    """What acting on the model is worth, by the probability at which somebody would; dotted: acting on everybody."""
    figure, axes = panel(4.2, 3.0, "Net benefit")
    for k, is_class in _present(truth, len(labels)):
        benefit, everybody = net_benefit(is_class, probability[:, k])
        axes.plot(
            NET_RANGE, benefit, color=class_color(k), linestyle=class_dash(k), label=shorten(plain(labels[k]), 20)
        )
        axes.plot(NET_RANGE, everybody, color=class_color(k), linewidth=0.9, linestyle=(0, (1, 2.5)))
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set(xlabel="probability at which somebody would act", ylim=(-0.05, None))
    axes.legend(frameon=False, fontsize=9)
    return figure


@house_style
def confusion_matrix(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Rows are the truth; each cell shows its share of the row, which also shades it, and the count."""
    counts, k = np.asarray(matrix), len(labels)
    cell = 1.0 if k <= 4 else 0.72
    names = [shorten(plain(label), 18) for label in labels]
    figure = Figure(figsize=(max(4.2, cell * k + 1.5), max(2.6, cell * 0.72 * k + 0.9)), layout="constrained")
    axes = figure.add_subplot()
    for row, across in np.ndindex(k, k):
        _cell(axes, (row, across), counts[row, across], counts[row].sum())
    axes.set(xlim=(0, k), ylim=(k, 0))
    axes.set_xlabel("predicted", fontweight="bold", color=INK, labelpad=7)
    axes.set_ylabel("truth", fontweight="bold", color=INK)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    tilted = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if k > 4 or max(map(len, names)) > 13 else {}
    axes.set_xticks(np.arange(k) + 0.5, names, **tilted)
    axes.set_yticks(np.arange(k) + 0.5, names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _cell(axes: Axes, place: tuple[int, int], n: int, of: int) -> None:
    row, across = place
    part = n / of if of else 0.0
    # from white to deep blue, along a straight line: the shade is the share
    color = tuple(1 - part * (1 - channel) for channel in (0.043, 0.361, 0.471))
    axes.add_patch(Rectangle((across, row), 1, 1, facecolor=color, edgecolor="white", linewidth=2))
    if part < 0.03:
        axes.add_patch(
            Rectangle((across + 0.02, row + 0.02), 0.96, 0.96, facecolor="none", edgecolor=GRID, linewidth=0.8)
        )
    middle = {"ha": "center", "va": "center"}
    if not n:
        axes.text(across + 0.5, row + 0.5, "0" if of else "–", color=FAINT, fontsize=9, **middle)
        return
    ink, quiet = ("white", "#e6f0f4") if part > 0.65 else (INK, MUTED)
    words = "< 1 %" if part < 0.005 else "> 99 %" if 0.995 <= part < 1 else f"{100 * part:.0f} %"
    axes.text(across + 0.5, row + 0.41, words, color=ink, fontsize=12, fontweight="bold", **middle)
    axes.text(across + 0.5, row + 0.7, f"{n:,}", color=quiet, fontsize=9, **middle)


def _present(truth: np.ndarray, k: int) -> list[tuple[int, np.ndarray]]:
    """The classes that a curve can be drawn for: some images are of the class and some are not."""
    kinds = [(i, truth == i) for i in range(k)]
    return [(i, is_class) for i, is_class in kinds if is_class.any() and not is_class.all()]


def _unit_square(title: str, across: str, k: int) -> tuple[Figure, Axes]:
    """A square from 0 to 1; a key of more than seven lines gets room below it."""
    below = 0.0 if k <= INSIDE else 0.3 + LINE * k
    width, height = 4.2, 4.2 + below
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.5 / width, (0.5 + below) / height, 3.5 / width, 3.4 / height))
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), xlabel=across)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    return figure, axes


def _key(axes: Axes, entries: list[tuple[int, str, float]], heading: str, left: float) -> None:
    """Name and figure of each line: in a corner that curves rarely reach, or below when the names are many."""
    inside, step, place = len(entries) <= INSIDE, LINE / 3.4, {"transform": axes.transAxes, "clip_on": False}
    left, right = (left, left + 0.56) if inside else (0.0, 0.96)
    top = 0.03 + step * (len(entries) + 0.4) if inside else -0.2
    if inside:
        frame = ((left - 0.02, 0.02), right - left + 0.03, top + 0.02)
        axes.add_patch(Rectangle(*frame, facecolor="white", alpha=0.86, edgecolor="none", zorder=3, **place))
    axes.text(right, top, heading, ha="right", va="center", color=MUTED, fontsize=8.5, zorder=4, **place)
    for at, (k, label, value) in enumerate(entries):
        height = top - step * (at + 1)
        line = {"color": class_color(k), "linestyle": class_dash(k), "linewidth": 2.4, "zorder": 4}
        axes.plot([left, left + 0.06], [height, height], **line, **place)
        name = shorten(plain(label), 20 if inside else 40)
        words = {"va": "center", "fontsize": 9, "zorder": 4} | place
        axes.text(left + 0.085, height, name, **words)
        axes.text(right, height, score(value), ha="right", fontweight="bold", **words)


def _ring_best(axes: Axes, history: pd.DataFrame, column: str) -> None:
    best = history[history["best"]] if "best" in history else history.iloc[:0]
    if len(best):
        epoch, value = best[["epoch", column]].to_numpy(float)[-1]
        axes.plot(
            [epoch], [value], "o", markersize=9, markerfacecolor="none", markeredgecolor="#d55e00", markeredgewidth=1.6
        )


def _limit_to_one(axes: Axes, values: np.ndarray, title: str) -> None:
    """Shares end at one: no axis promises more."""
    low, high = axes.get_ylim()
    if high > 1 >= np.nanmax(values, initial=0.0) and "loss" not in title.lower():
        axes.set_ylim(low, 1.0 + 0.02 * (1 - low))


def _name_ends(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Each line's name at its right end, moved apart where lines end close together."""
    low, high = axes.get_ylim()
    gap = 0.075 * (high - low)
    height = -np.inf
    for name, (epoch, value, color) in sorted(ends.items(), key=lambda item: item[1][1]):
        height = max(value, height + gap)
        place = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        ink = MUTED if color == FAINT else color
        axes.annotate(name, (epoch, height), color=ink, fontweight="bold", fontsize=9, **place)


def _part_stages(axes: Axes, history: pd.DataFrame) -> bool:
    """A dashed line where a stage ends, its name above it; whether there is more than one stage."""
    if "stage" not in history or history["stage"].nunique() < 2:
        return False
    epochs, stages = history["epoch"].to_numpy(float), [plain(s) for s in history["stage"]]
    starts = [i for i in range(len(stages)) if i == 0 or stages[i] != stages[i - 1]]
    for start, stop in zip(starts, [*starts[1:], len(stages)], strict=True):
        if start:
            axes.axvline(epochs[start] - 0.5, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        # a name only where there is room for it; the caption has them all
        if (stop - start) / len(stages) * 42 > len(stages[start]) + 1:
            place = {"xytext": (2, 3), "textcoords": "offset points", "va": "bottom"}
            at = (epochs[start] - 0.5, 1)
            axes.annotate(stages[start], at, xycoords=("data", "axes fraction"), color=MUTED, fontsize=8.5, **place)
    return True


def _power(value: float, _: int | None = None) -> str:
    """A power of ten as people write it: 10⁻³."""
    return "10" + f"{round(np.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
