"""The table of scouted backbones becomes a figure: how good each is, against how fast."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from fastcxr.evaluation.drawing import ACCENT, FAINT, INK, house_style, panel


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
