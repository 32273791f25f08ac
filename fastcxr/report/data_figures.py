"""From plain tables of a cohort to matplotlib Figures: classes and splits as bars, gray values as histograms."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from fastcxr.io.formatting import format_percent
from fastcxr.io.html import replace_unprintable
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

MAX_COMBINED_CLASSES = 7  # more lines than this in one figure would only be a web
SPLIT_BAR_COLORS = {"train": ("#0b5c78", "white"), "valid": ("#6aaac0", TEXT_COLOR), "test": ("#c9e0e8", TEXT_COLOR)}
OTHER_BAR_COLORS = ("#9aa7b4", TEXT_COLOR)
N_GRAY_LEVELS = 256


@figure_style
def plot_class_counts(counts: pd.DataFrame) -> Figure:
    """Images of each class, parted by split. `counts`: a row a class, a column a split."""
    figure = Figure(figsize=(4.3, 0.7 + 0.4 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    class_totals, max_total = counts.sum(axis=1), max(int(counts.to_numpy().sum(axis=1).max(initial=0)), 1)
    left = np.zeros(len(counts))
    for split in counts.columns:
        bar_color, text_color = SPLIT_BAR_COLORS.get(split, OTHER_BAR_COLORS)
        values = counts[split].to_numpy()
        axes.barh(np.arange(len(counts)), values, left=left, height=0.62, color=bar_color)
        for row, value in enumerate(values):
            # a number only where it fits
            if value / max_total > 0.028 * (len(f"{value:,}") + 1):
                text_options = {"ha": "center", "va": "center_baseline", "fontsize": 8.5}
                axes.text(left[row] + value / 2, row, f"{value:,}", color=text_color, **text_options)
        left = left + values
    for row, n in enumerate(class_totals):
        label = f"{n:,}  ({format_percent(n / max(class_totals.sum(), 1))})"
        text_options = {"xytext": (5, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(label, (n, row), color=TEXT_COLOR, fontsize=9, annotation_clip=False, **text_options)
    _format_bar_axes(axes, counts, max_total)
    return figure


def _format_bar_axes(axes: Axes, counts: pd.DataFrame, max_total: int) -> None:
    names = [shorten(replace_unprintable(label), 22) for label in counts.index]
    axes.set_yticks(np.arange(len(counts)), names)
    axes.set(xlim=(0, 1.42 * max_total), ylim=(len(counts) - 0.45, -1.0))
    axes.tick_params(axis="y", length=0, labelcolor=TEXT_COLOR)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    x = 0.0
    for split in counts.columns:
        bar_color, _ = SPLIT_BAR_COLORS.get(split, OTHER_BAR_COLORS)
        axes.plot(x, -0.72, marker="s", color=bar_color, markersize=7, clip_on=False)
        text_position = {"xytext": (7, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(replace_unprintable(split), (x, -0.72), color=MUTED_COLOR, fontsize=9, **text_position)
        x += 0.3 * max_total


@figure_style
def plot_mean_histograms(histograms: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """The mean histogram of every class, in one pair of axes. `histograms`: columns label, bin, mean, low, high."""
    present = [(k, label) for k, label in enumerate(labels) if (histograms["label"] == label).any()]
    figure, axes = make_axes(4.2, 2.7 + 0.2 * ((len(present) + 1) // 2), "Share of the pixels")
    for position, (k, label) in enumerate(present):
        rows = histograms[histograms["label"] == label]
        axes.plot(_compute_bin_centres(rows), rows["mean"], color=class_color(k), linestyle=class_line_style(k))
        # the names stand below, two abreast: no corner of a histogram is surely free
        text_position = {
            "xytext": (0, -44 - 14 * (position // 2)),
            "textcoords": "offset points",
            "annotation_clip": False,
        }
        text_style = {"color": class_color(k), "fontsize": 9.5, "fontweight": "bold"}
        axes.annotate(
            shorten(replace_unprintable(label), 22),
            (position % 2 * 0.5, 0),
            xycoords="axes fraction",
            **text_position,
            **text_style,
        )
    _format_histogram_axes(axes, _compute_axis_top(histograms["mean"], histograms["bin"]))
    return figure


@figure_style
def plot_class_histogram(histograms: pd.DataFrame, label: str, class_index: int) -> Figure:
    """One class: its mean, and the band where eight of ten images lie; gray, for comparison, the other classes."""
    figure, axes = make_axes(3.7, 2.1, "Share of the pixels")
    rows, other_classes = histograms[histograms["label"] == label], histograms[histograms["label"] != label]
    # one height for all classes, so that their panels can be compared
    axis_top = _compute_axis_top(histograms["high"], histograms["bin"])
    if other_classes["label"].nunique() < MAX_COMBINED_CLASSES:
        for _, other in other_classes.groupby("label"):
            axes.plot(_compute_bin_centres(other), other["mean"], color=FAINT_COLOR, linewidth=0.9)
    color = class_color(class_index)
    axes.fill_between(_compute_bin_centres(rows), rows["low"], rows["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(_compute_bin_centres(rows), rows["mean"], color=color)
    _format_histogram_axes(axes, axis_top)
    black_share = float(rows["mean"].iloc[0])
    if black_share > axis_top:  # black margins: the bar would flatten all the rest
        text_options = {
            "xytext": (6, -2),
            "textcoords": "offset points",
            "va": "top",
            "fontsize": 8.5,
            "color": MUTED_COLOR,
        }
        axes.annotate(f"↑ black: {format_percent(black_share)}", (0, axis_top), **text_options)
    return figure


def _compute_bin_centres(rows: pd.DataFrame) -> np.ndarray:
    """The middle of each bin, as a gray value."""
    return (rows["bin"].to_numpy() + 0.5) * N_GRAY_LEVELS / (rows["bin"].max() + 1)


def _compute_axis_top(shares: pd.Series, bins: pd.Series) -> float:
    """The height of the axes: of all but pure black and white, which margins and markers fill."""
    inner_shares = shares[(bins > bins.min()) & (bins < bins.max())]
    return 1.12 * max(float(inner_shares.max()), 1e-3)


def _format_histogram_axes(axes: Axes, axis_top: float) -> None:
    axes.set(xlim=(0, N_GRAY_LEVELS), ylim=(0, axis_top), xlabel="gray value, black to white")
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)


@figure_style
def plot_speed_and_auroc(table: pd.DataFrame) -> Figure:
    """A dot with its spread for each ranked backbone. Columns backbone, auroc, auroc_sd, images_per_second."""
    figure, axes = make_axes(6.4, 4.2, "AUROC of a linear head on the frozen backbone")
    ranked = table[table["auroc"].notna()]
    speed, auroc = ranked["images_per_second"], ranked["auroc"]
    axes.errorbar(speed, auroc, yerr=ranked["auroc_sd"], fmt="o", color=ACCENT_COLOR, ecolor=FAINT_COLOR, markersize=5)
    for row in ranked.itertuples():
        text_options = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 8.5, "color": TEXT_COLOR}
        axes.annotate(row.backbone, (row.images_per_second, row.auroc), **text_options)
    if len(ranked) > 1:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.25)
    axes.set_xlabel("images a second through the network on this machine; bars: standard deviation over patient folds")
    if ranked.empty:
        axes.text(0.5, 0.5, "no backbone could be ranked", transform=axes.transAxes, ha="center", color=TEXT_COLOR)
    return figure
