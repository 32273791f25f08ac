"""Matplotlib figures of a tuning: the objective of each trial, and the objective by each searched option."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from fastcxr.report.style import ACCENT_COLOR, FAINT_COLOR, MUTED_COLOR, TEXT_COLOR, figure_style, make_axes

MAX_COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 3, 2.4, 2.0  # of the figure of options; inches
COMPLETE_STYLE: dict[str, Any] = {"color": ACCENT_COLOR, "marker": "o", "s": 22, "zorder": 3}
PRUNED_STYLE: dict[str, Any] = {"facecolor": "none", "edgecolor": FAINT_COLOR, "marker": "o", "s": 22, "zorder": 3}


@figure_style
def plot_trials(table: pd.DataFrame, metric: str, *, is_maximized: bool) -> Figure:
    """Plot the objective of each trial and the best one so far; trials that failed have none.

    `table`: columns trial, state, objective. `metric`: its name. One or more trials have an objective.
    """
    figure, axes = make_axes(6.4, 3.2, f"{metric} of the validation images, by trial")
    complete = table[table["state"] == "complete"]
    _scatter(axes, table, table["trial"])
    if len(complete):
        best = complete["objective"].cummax() if is_maximized else complete["objective"].cummin()
        axes.step(complete["trial"], best, where="post", color=ACCENT_COLOR, linewidth=1.2)
        axes.annotate(
            f"best {best.iloc[-1]:.3f}", (complete["trial"].iloc[-1], best.iloc[-1]), xytext=(4, 4),
            textcoords="offset points", color=TEXT_COLOR, fontsize=8.5,
        )  # fmt: skip
    axes.set_xlim(0.5, len(table) + 0.12 * len(table) + 1)
    ticks = MaxNLocator(integer=True).tick_values(1, len(table))
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= len(table)])
    figure.supxlabel("filled: complete; hollow: pruned; line: best so far", fontsize=9.5, color=MUTED_COLOR)
    return figure


@figure_style
def plot_options(table: pd.DataFrame, options: Mapping[str, Sequence[Any] | str], metric: str) -> Figure:
    """Plot the objective of the trials over each searched option, one panel per option.

    `table`: columns state and objective and a column per option, which is None in a trial that does not use it.
    `options`: choices of each option, or the scale of its axis, log or linear.
    """
    names = list(options)
    n_columns = min(MAX_COLUMNS, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = Figure(figsize=(0.6 + PANEL_WIDTH * n_columns, 0.4 + PANEL_HEIGHT * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        used = table[table[name].notna() & table["objective"].notna()]
        scale = options[name]
        if isinstance(scale, str):
            _scatter(axes, used, used[name])
            axes.set_xscale(scale)
            axes.xaxis.set_major_locator(LogLocator(numticks=4) if scale == "log" else MaxNLocator(4))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            _scatter(axes, used, used[name].map({choice: k for k, choice in enumerate(scale)}))
            axes.set_xticks(np.arange(len(scale)), [str(choice).replace("_", "\n") for choice in scale])
            axes.set_xlim(-0.5, len(scale) - 0.5)
        axes.set_title(name, loc="left", fontsize=9, color=TEXT_COLOR)
        axes.tick_params(axis="x", labelsize=8)
    for axes in list(panels):  # those without an option
        axes.set_visible(False)
    figure.supylabel(f"{metric}, validation", fontsize=9.5, color=MUTED_COLOR)
    return figure


def _scatter(axes: Axes, table: pd.DataFrame, values: pd.Series) -> None:
    for state, style in (("complete", COMPLETE_STYLE), ("pruned", PRUNED_STYLE)):
        is_shown = table["state"] == state
        axes.scatter(values[is_shown].astype(float), table.loc[is_shown, "objective"], **style)
