"""Matplotlib figures of findings: forest plot and co-occurrence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fastcxr.io.formatting import format_score
from fastcxr.io.html import replace_unprintable
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

MAX_LABELLED_CELLS = 16  # findings of a matrix with the share in each cell
MAX_NAME_LENGTH = 24
MEAN_MARKER = "D"
SHARE_COLORS = LinearSegmentedColormap.from_list("share", ["#ffffff", ACCENT_COLOR])


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
    # imshow would embed a PNG in the SVG: a report without images has no image at all
    edges = np.arange(n_findings + 1) - 0.5
    axes.pcolormesh(edges, edges, shares, cmap=SHARE_COLORS, vmin=0, vmax=1, edgecolors="face", linewidth=0.2)
    axes.set(aspect="equal", xlim=edges[[0, -1]], ylim=edges[[-1, 0]])
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
