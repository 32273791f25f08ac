"""Tests of the figures of a tuning: points and lines of the trials, and the axes of the options."""

import numpy as np
import pandas as pd
import pytest

from fastcxr.report.style import to_svg
from fastcxr.report.tuning_figures import plot_options, plot_trials

TABLE = pd.DataFrame({
    "trial": [1, 2, 3, 4, 5],
    "state": ["complete", "failed", "pruned", "complete", "complete"],
    "objective": [0.7, np.nan, 0.5, 0.9, 0.8],
    "learning_rate": [1e-3, 1e-4, 1e-2, 3e-3, 2e-3],
    "loss": ["focal", "focal", "cross_entropy", "cross_entropy", "focal"],
    "focal_gamma": [2.0, 1.0, None, None, 3.0],
})  # fmt: skip


@pytest.mark.parametrize(("is_maximized", "best"), [(True, [0.7, 0.9, 0.9]), (False, [0.7, 0.7, 0.7])])
def test_the_line_shows_the_best_complete_trial_so_far(is_maximized, best):
    axes = plot_trials(TABLE, "macro AUROC", is_maximized=is_maximized).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 4, 5] and axes.lines[0].get_ydata().tolist() == best
    assert set(axes.get_xticks()) <= set(TABLE["trial"]), "no tick for a trial that does not exist"
    assert [len(points.get_offsets()) for points in axes.collections] == [3, 1]  # complete and pruned


def test_an_option_has_a_panel_with_the_trials_that_use_it():
    options = {"learning_rate": "log", "loss": ("cross_entropy", "focal", "mse"), "focal_gamma": "linear"}
    figure = plot_options(TABLE, options, "macro AUROC")
    rate, loss, gamma = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(options)
    assert rate.get_xscale() == "log" and gamma.get_xscale() == "linear"
    assert loss.collections[0].get_offsets()[:, 0].tolist() == [1, 0, 1]
    assert gamma.collections[0].get_offsets()[:, 0].tolist() == [2, 3]
    svg = to_svg(figure, "options", "description")
    assert "0.001" in svg and "mathdefault" not in svg


def test_panels_without_an_option_are_hidden():
    names = {f"option {k}": "linear" for k in range(4)}
    table = TABLE.assign(**dict.fromkeys(names, 1.0))
    assert [axes.get_visible() for axes in plot_options(table, names, "loss").axes] == [True] * 4 + [False] * 2
