"""Tests for data_figures.py: texts of the bars and histograms."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fastcxr.report.data_figures import (
    plot_ages,
    plot_class_counts,
    plot_class_histogram,
    plot_mean_histograms,
    plot_sexes,
    plot_speed_and_auroc,
)
from fastcxr.report.style import to_svg


def read_texts(figure):
    root = ElementTree.fromstring(to_svg(figure, "f", "described"))
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def make_histograms(labels, black=0.0):
    mean = np.full(64, (1 - black) / 63)
    mean[0] = black or mean[1]
    rows = {"bin": np.arange(64), "mean": mean, "low": 0.5 * mean, "high": 1.5 * mean, "images": 3}
    return pd.concat([pd.DataFrame({"label": label} | rows) for label in labels])


def test_bars_show_counts_and_shares():
    counts = pd.DataFrame({"train": [70, 20], "test": [10, 0]}, index=["a$b$", "_hidden"])
    assert {"a$b$", "_hidden", "train", "test", "70", "80  (80.0 %)", "20  (20.0 %)"} <= set(
        read_texts(plot_class_counts(counts))
    )


def test_a_class_without_images_has_an_empty_bar():
    assert "0  (0.0 %)" in read_texts(plot_class_counts(pd.DataFrame({"train": [5, 0]}, index=["a", "b"])))


def test_the_combined_histogram_names_every_class():
    assert {"a$b$", "_hidden"} <= set(
        read_texts(plot_mean_histograms(make_histograms(["a$b$", "_hidden"]), ["_hidden", "a$b$"]))
    )


def test_the_caption_of_speed_and_auroc_is_inside_the_frame_beside_a_long_name():
    columns = {"backbone": ["a", "b" * 60], "auroc": 0.9, "auroc_sd": 0.1, "images_per_second": [9.0, 120.0]}
    figure = plot_speed_and_auroc(pd.DataFrame(columns))
    FigureCanvasAgg(figure).draw()
    texts = [*figure.texts, figure.axes[0].xaxis.label]
    (box,) = (text.get_window_extent() for text in texts if "images per second" in text.get_text())
    assert box.x0 > 0 and box.x1 < figure.bbox.width and box.y0 > 0


@pytest.mark.parametrize("speeds", [(9.0, 120.0), (31.0, 38.0), (0.4, 900.0)])
def test_the_ticks_of_speed_do_not_overlap(speeds):
    columns = {"backbone": ["a", "b"], "auroc": 0.9, "auroc_sd": 0.1, "images_per_second": speeds}
    figure = plot_speed_and_auroc(pd.DataFrame(columns))
    FigureCanvasAgg(figure).draw()
    low, high = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert len(boxes) > 1
    assert not [box for i, box in enumerate(boxes) if any(box.overlaps(other) for other in boxes[:i])]


def test_the_share_of_black_margins_is_a_text_and_does_not_set_the_axis_limit():
    figure = plot_class_histogram(make_histograms(["a", "b"], black=0.4), "a", 0)
    assert figure.axes[0].get_ylim()[1] < 0.05
    assert "↑ black: 40.0 %" in read_texts(figure)
    assert not [
        word for word in read_texts(plot_class_histogram(make_histograms(["a", "b"]), "a", 0)) if "black:" in word
    ]


def make_patients():
    split = pd.Categorical(["train", "train", "test", "test"], ["train", "test"])
    return pd.DataFrame(
        {
            "label": ["a", "a", "b", "b"],
            "split": split,
            "age": [5, 95, np.nan, 40],
            "sex": ["female", "male", None, "male"],
        }
    )


def test_ages_have_a_panel_for_each_class_and_split_and_the_last_bin_has_the_oldest():
    figure = plot_ages(make_patients())
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]
    assert [sum(panel) for panel in heights] == [1, 0, 0, 1]
    assert (heights[0][0], heights[0][-1], heights[3][4]) == (0.5, 0.5, 1)
    assert {"a", "b", "train", "test", "n = 2", "n = 1", "n = 0", "age (years); share of patients"} <= set(
        read_texts(figure)
    )


def test_bars_of_sex_are_shares_of_the_patients_whose_sex_is_known():
    figure = plot_sexes(make_patients())
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes]
    assert widths == [[0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    assert {"a", "b", "female", "male", "train (n = 2)", "test (n = 1)", "test (n = 0)"} <= set(read_texts(figure))
