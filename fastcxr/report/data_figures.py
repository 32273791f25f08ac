"""Matplotlib figures of a dataset: counts per class and split, age, sex, gray values, speed and AUROC of backbones."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from fastcxr.io.formatting import format_percent
from fastcxr.io.html import replace_unprintable
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
    shorten,
)

MAX_COMBINED_CLASSES = 7  # more lines in one figure are unreadable
SPLIT_BAR_COLORS = {
    "train": ("#0b5c78", "white"),
    "validation": ("#6aaac0", TEXT_COLOR),
    "test": ("#c9e0e8", TEXT_COLOR),
}
OTHER_BAR_COLORS = ("#9aa7b4", TEXT_COLOR)
AGE_EDGES_YEARS = (*range(0, 91, 10), 120)  # the last bin has all patients of at least 90 years
SEX_COLORS = {"female": "#b5609b", "male": "#3f9fd8"}
N_GRAY_LEVELS = 256
MIN_LOG_TICKS_RATIO = 4  # a smaller range of speeds may have no tick at 1, 2 or 5 times a power of ten
CENTRED: dict[str, Any] = {"ha": "center", "va": "center_baseline"}


@figure_style
def plot_class_counts(counts: pd.DataFrame) -> Figure:
    """Plot the images or patients of each class as bars, divided by split.

    `counts`: a row per class, a column per split.
    """
    figure = Figure(figsize=(4.3, 0.7 + 0.4 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    class_totals = counts.sum(axis=1)
    max_total = int(max([1, *class_totals]))
    left = np.zeros(len(counts))
    for split in counts.columns:
        bar_color, text_color = SPLIT_BAR_COLORS.get(split, OTHER_BAR_COLORS)
        values = counts[split].to_numpy()
        axes.barh(np.arange(len(counts)), values, left=left, height=0.62, color=bar_color)
        for row, value in enumerate(values):
            if value / max_total > 0.028 * (len(f"{value:,}") + 1):  # the number fits into the bar
                axes.text(left[row] + value / 2, row, f"{value:,}", color=text_color, fontsize=8.5, **CENTRED)
        left = left + values
    for row, n in enumerate(class_totals):
        label = f"{n:,}  ({format_percent(n / max(class_totals.sum(), 1))})"
        text_options = _offset_text(5, 0, va="center_baseline", fontsize=9)
        axes.annotate(label, (n, row), color=TEXT_COLOR, annotation_clip=False, **text_options)
    _format_bar_axes(axes, counts, max_total)
    return figure


def _offset_text(x: float, y: float, **options: Any) -> dict[str, Any]:
    """Return options of an annotation that is shifted by x and y points."""
    return {"xytext": (x, y), "textcoords": "offset points"} | options


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
        text_options = _offset_text(7, 0, va="center_baseline", fontsize=9)
        axes.annotate(replace_unprintable(split), (x, -0.72), color=MUTED_COLOR, **text_options)
        x += (0.2 + 0.02 * len(split)) * max_total


@figure_style
def plot_ages(patients: pd.DataFrame) -> Figure:
    """Plot a histogram of age for each class (row) and split (column). `patients`: the table of make_patient_table."""
    labels, splits = sorted(patients["label"].unique()), list(patients["split"].cat.categories)
    figure = Figure(figsize=(4.3, 0.6 + 0.95 * len(labels)), layout="constrained")
    panels = figure.subplots(len(labels), len(splits), sharex=True, sharey=True, squeeze=False)
    for (row, label), (column, split) in product(enumerate(labels), enumerate(splits)):
        axes, group = panels[row, column], patients[(patients["label"] == label) & (patients["split"] == split)]
        ages = group["age"].dropna()
        shares = np.histogram(ages, AGE_EDGES_YEARS)[0] / max(len(ages), 1)
        axes.bar(AGE_EDGES_YEARS[:-1], shares, width=9, align="edge", color=ACCENT_COLOR)
        axes.text(0.98, 0.97, f"n = {len(ages):,}", transform=axes.transAxes, ha="right", va="top", fontsize=8)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xticks([0, 30, 60, 90])
        if row == 0:
            axes.set_title(replace_unprintable(split), loc="left", fontsize=9, color=MUTED_COLOR)
        if column == 0:
            axes.set_ylabel(shorten(replace_unprintable(label), 14), color=TEXT_COLOR, fontsize=8.5)
    figure.supxlabel("age (years); share of patients", fontsize=9, color=MUTED_COLOR)
    return figure


@figure_style
def plot_sexes(patients: pd.DataFrame) -> Figure:
    """Plot the share of each sex by class (panel) and split (bar). `patients`: the table of make_patient_table."""
    labels, splits = sorted(patients["label"].unique()), list(patients["split"].cat.categories)
    figure = Figure(figsize=(4.3, 0.6 + (0.35 + 0.24 * len(splits)) * len(labels)), layout="constrained")
    panels = figure.subplots(len(labels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, label in zip(panels, labels, strict=True):
        counts = pd.crosstab(patients["split"], patients["sex"].where(patients["label"] == label))
        counts = counts.reindex(index=splits, columns=list(SEX_COLORS), fill_value=0)
        shares, left = counts.div(counts.sum(axis=1).clip(lower=1), axis=0), np.zeros(len(splits))
        for sex, color in SEX_COLORS.items():
            axes.barh(np.arange(len(splits)), shares[sex], left=left, height=0.75, color=color, label=sex)
            left = left + shares[sex].to_numpy()
        names = [f"{replace_unprintable(split)} (n = {counts.loc[split].sum():,})" for split in splits]
        axes.set_yticks(np.arange(len(splits)), names)
        axes.set(xlim=(0, 1), ylim=(len(splits) - 0.5, -0.5))
        axes.grid(False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_title(shorten(replace_unprintable(label), 40), loc="left", fontsize=9, color=TEXT_COLOR)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


@figure_style
def plot_mean_histograms(histograms: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """Plot the mean histogram of every class in one panel. `histograms`: the table of histograms.csv."""
    present = [(k, label) for k, label in enumerate(labels) if (histograms["label"] == label).any()]
    figure, axes = make_axes(4.2, 2.7 + 0.2 * ((len(present) + 1) // 2), "Share of pixels")
    for position, (k, label) in enumerate(present):
        rows = histograms[histograms["label"] == label]
        axes.plot(compute_bin_centres(rows), rows["mean"], **class_line(k))
        # two names per line below the axes: no corner of a histogram is always free
        text_options = _offset_text(0, -44 - 14 * (position // 2), xycoords="axes fraction", annotation_clip=False)
        text_options |= {"color": class_color(k), "fontsize": 9.5, "fontweight": "bold"}
        axes.annotate(shorten(replace_unprintable(label), 22), (position % 2 * 0.5, 0), **text_options)
    _format_histogram_axes(axes, _compute_axis_top(histograms["mean"], histograms["bin"]))
    return figure


@figure_style
def plot_class_histogram(histograms: pd.DataFrame, label: str, class_index: int) -> Figure:
    """Plot the mean histogram of one class, a band with 80 % of its images, and the other classes in gray."""
    figure, axes = make_axes(3.7, 2.1, "Share of pixels")
    rows, other_classes = histograms[histograms["label"] == label], histograms[histograms["label"] != label]
    # the same scale for all classes, to make their figures comparable
    axis_top = _compute_axis_top(histograms["high"], histograms["bin"])
    if other_classes["label"].nunique() < MAX_COMBINED_CLASSES:
        for _, other in other_classes.groupby("label"):
            axes.plot(compute_bin_centres(other), other["mean"], color=FAINT_COLOR, linewidth=0.9)
    color = class_color(class_index)
    axes.fill_between(compute_bin_centres(rows), rows["low"], rows["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(compute_bin_centres(rows), rows["mean"], color=color)
    _format_histogram_axes(axes, axis_top)
    black_share = float(rows["mean"].iloc[0])
    if black_share > axis_top:  # black margins, cut off because their bin would flatten the rest
        text_options = _offset_text(6, -2, va="top", fontsize=8.5, color=MUTED_COLOR)
        axes.annotate(f"↑ black: {format_percent(black_share)}", (0, axis_top), **text_options)
    return figure


def compute_bin_centres(rows: pd.DataFrame) -> np.ndarray:
    """Return the centre of each histogram bin as a gray value."""
    return (rows["bin"].to_numpy() + 0.5) * N_GRAY_LEVELS / (rows["bin"].max() + 1)


def _compute_axis_top(shares: pd.Series, bins: pd.Series) -> float:
    """Return the axis limit, without the bins of black and white, which contain margins and markers."""
    inner_shares = shares[(bins > bins.min()) & (bins < bins.max())]
    return 1.12 * max(float(inner_shares.max()), 1e-3)


def _format_histogram_axes(axes: Axes, axis_top: float) -> None:
    axes.set(xlim=(0, N_GRAY_LEVELS), ylim=(0, axis_top), xlabel="gray value (black to white)")
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid(axis="x", color=GRID_COLOR, linewidth=0.6)


@figure_style
def plot_speed_and_auroc(table: pd.DataFrame) -> Figure:
    """Plot AUROC with its standard deviation over speed for each ranked backbone.

    `table`: columns backbone, auroc (NaN if not ranked), auroc_sd, images_per_second; one or more are ranked.
    """
    figure, axes = make_axes(6.4, 4.2, "AUROC of a linear probe")
    ranked = table[table["auroc"].notna()]
    speed, auroc = ranked["images_per_second"], ranked["auroc"]
    axes.errorbar(speed, auroc, yerr=ranked["auroc_sd"], fmt="o", color=ACCENT_COLOR, ecolor=FAINT_COLOR, markersize=5)
    for name, x, y in zip(ranked["backbone"], speed, auroc, strict=True):
        axes.annotate(name, (x, y), **_offset_text(6, 4, fontsize=8.5, color=TEXT_COLOR))
    if len(ranked) > 1:
        axes.set_xscale("log")
        is_wide = speed.max() > MIN_LOG_TICKS_RATIO * speed.min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if is_wide else MaxNLocator(4))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.25)
    # below the figure, not the axes, which are narrow beside a long name
    caption = "images per second on this machine\nbars: standard deviation over patient folds"
    figure.supxlabel(caption, fontsize=9.5, color=MUTED_COLOR)
    return figure
