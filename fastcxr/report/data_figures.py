"""From plain tables of a cohort to matplotlib Figures: classes and splits as bars, gray values as histograms."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from fastcxr.io.formatting import share
from fastcxr.io.html import plain
from fastcxr.report.style import ACCENT, FAINT, GRID, INK, MUTED, class_color, class_dash, house_style, panel, shorten

TOGETHER = 7  # more lines than this in one figure would only be a web
SHADES = {"train": ("#0b5c78", "white"), "valid": ("#6aaac0", INK), "test": ("#c9e0e8", INK)}
OTHER_SHADE = ("#9aa7b4", INK)
GRAY = 256


@house_style
def class_bars(counts: pd.DataFrame) -> Figure:
    """Images of each class, parted by split. `counts`: a row a class, a column a split."""
    figure = Figure(figsize=(4.3, 0.7 + 0.4 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    sums, widest = counts.sum(axis=1), max(int(counts.to_numpy().sum(axis=1).max(initial=0)), 1)
    left = np.zeros(len(counts))
    for split in counts.columns:
        shade, ink = SHADES.get(split, OTHER_SHADE)
        values = counts[split].to_numpy()
        axes.barh(np.arange(len(counts)), values, left=left, height=0.62, color=shade)
        for row, value in enumerate(values):
            # a number only where it fits
            if value / widest > 0.028 * (len(f"{value:,}") + 1):
                place = {"ha": "center", "va": "center_baseline", "fontsize": 8.5}
                axes.text(left[row] + value / 2, row, f"{value:,}", color=ink, **place)
        left = left + values
    for row, n in enumerate(sums):
        words = f"{n:,}  ({share(n / max(sums.sum(), 1))})"
        place = {"xytext": (5, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(words, (n, row), color=INK, fontsize=9, annotation_clip=False, **place)
    _dress_bars(axes, counts, widest)
    return figure


def _dress_bars(axes: Axes, counts: pd.DataFrame, widest: int) -> None:
    names = [shorten(plain(label), 22) for label in counts.index]
    axes.set_yticks(np.arange(len(counts)), names)
    axes.set(xlim=(0, 1.42 * widest), ylim=(len(counts) - 0.45, -1.0))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    across = 0.0
    for split in counts.columns:
        shade, _ = SHADES.get(split, OTHER_SHADE)
        axes.plot(across, -0.72, marker="s", color=shade, markersize=7, clip_on=False)
        place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(plain(split), (across, -0.72), color=MUTED, fontsize=9, **place)
        across += 0.3 * widest


@house_style
def mean_histograms(histograms: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """The mean histogram of every class, in one pair of axes. `histograms`: columns label, bin, mean, low, high."""
    present = [(k, label) for k, label in enumerate(labels) if (histograms["label"] == label).any()]
    figure, axes = panel(4.2, 2.7 + 0.2 * ((len(present) + 1) // 2), "Share of the pixels")
    for at, (k, label) in enumerate(present):
        rows = histograms[histograms["label"] == label]
        axes.plot(_grays(rows), rows["mean"], color=class_color(k), linestyle=class_dash(k))
        # the names stand below, two abreast: no corner of a histogram is surely free
        place = {"xytext": (0, -44 - 14 * (at // 2)), "textcoords": "offset points", "annotation_clip": False}
        words = {"color": class_color(k), "fontsize": 9.5, "fontweight": "bold"}
        axes.annotate(shorten(plain(label), 22), (at % 2 * 0.5, 0), xycoords="axes fraction", **place, **words)
    _dress(axes, _top(histograms["mean"], histograms["bin"]))
    return figure


@house_style
def class_histogram(histograms: pd.DataFrame, label: str, number: int) -> Figure:
    """One class: its mean, and the band where eight of ten images lie; gray, for comparison, the other classes."""
    figure, axes = panel(3.7, 2.1, "Share of the pixels")
    rows, others = histograms[histograms["label"] == label], histograms[histograms["label"] != label]
    # one height for all classes, so that their panels can be compared
    top = _top(histograms["high"], histograms["bin"])
    if others["label"].nunique() < TOGETHER:
        for _, other in others.groupby("label"):
            axes.plot(_grays(other), other["mean"], color=FAINT, linewidth=0.9)
    color = class_color(number)
    axes.fill_between(_grays(rows), rows["low"], rows["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(_grays(rows), rows["mean"], color=color)
    _dress(axes, top)
    first = float(rows["mean"].iloc[0])
    if first > top:  # black margins: the bar would flatten all the rest
        place = {"xytext": (6, -2), "textcoords": "offset points", "va": "top", "fontsize": 8.5, "color": MUTED}
        axes.annotate(f"↑ black: {share(first)}", (0, top), **place)
    return figure


def _grays(rows: pd.DataFrame) -> np.ndarray:
    """The middle of each bin, as a gray value."""
    return (rows["bin"].to_numpy() + 0.5) * GRAY / (rows["bin"].max() + 1)


def _top(shares: pd.Series, bins: pd.Series) -> float:
    """The height of the axes: of all but pure black and white, which margins and markers fill."""
    inner = shares[(bins > bins.min()) & (bins < bins.max())]
    return 1.12 * max(float(inner.max()), 1e-3)


def _dress(axes: Axes, top: float) -> None:
    axes.set(xlim=(0, GRAY), ylim=(0, top), xlabel="gray value, black to white")
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid(axis="x", color=GRID, linewidth=0.6)


@house_style
def speed_against_quality(table: pd.DataFrame) -> Figure:
    """A dot with its spread for each ranked backbone. Columns backbone, auroc, spread, images_per_second."""
    figure, axes = panel(6.4, 4.2, "AUROC of a linear head on the frozen backbone")
    ranked = table[table["auroc"].notna()]
    speed, auroc = ranked["images_per_second"], ranked["auroc"]
    axes.errorbar(speed, auroc, yerr=ranked["spread"], fmt="o", color=ACCENT, ecolor=FAINT, markersize=5)
    for row in ranked.itertuples():
        place = {"xytext": (6, 4), "textcoords": "offset points", "fontsize": 8.5, "color": INK}
        axes.annotate(row.backbone, (row.images_per_second, row.auroc), **place)
    if len(ranked) > 1:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.25)
    axes.set_xlabel("images a second through the network on this machine; bars: standard deviation over patient folds")
    if ranked.empty:
        axes.text(0.5, 0.5, "no backbone could be ranked", transform=axes.transAxes, ha="center", color=INK)
    return figure
