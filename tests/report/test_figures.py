"""Tests for figures.py and style.py: texts of the figures, and SVG elements with unique identifiers."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from synthetic_run import LABELS, make_history, make_rates

from fastcxr.report.figures import (
    plot_confusion_matrix,
    plot_learning_curve,
    plot_lr_find_curve,
    plot_precision_recall_curves,
    plot_roc_by_model,
    plot_roc_curves,
)
from fastcxr.report.style import CLASS_COLORS, class_line, shorten, to_svg


def make_predictions(n=60, k=3, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, k, n), random.dirichlet(np.ones(k), size=n)


def read_texts(figure, name="f"):
    root = ElementTree.fromstring(to_svg(figure, name, "described"))
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_learning_curve_names_its_lines_and_stages():
    columns = {"train": "train_loss", "validation": "valid_loss"}
    assert {"Loss", "train", "validation", "head", "upper", "all", "epoch"} <= set(
        read_texts(plot_learning_curve(make_history(), columns, "Loss"))
    )


def test_a_learning_curve_accepts_one_epoch_and_missing_values():
    history = make_history((("all", 1),)).assign(valid_loss=np.nan)
    assert "train" in read_texts(
        plot_learning_curve(history, {"train": "train_loss", "validation": "valid_loss"}, "Loss")
    )


def test_the_chosen_learning_rate_is_labelled():
    curve = make_rates().query("stage == 'head'")
    assert "0.0024" in read_texts(plot_lr_find_curve(curve["rate"], curve["loss"], 2.4e-3, "Loss"))
    assert "0.0024" not in read_texts(plot_lr_find_curve(curve["rate"], curve["loss"], None, "Loss"))


@pytest.mark.parametrize("k", [2, 3, 7, 12])
def test_curves_name_every_class(k):
    labels = [f"class {i}" for i in range(k)]
    for plot in (plot_roc_curves, plot_precision_recall_curves):
        assert set(labels) <= set(read_texts(plot(*make_predictions(200, k), labels)))


@pytest.mark.parametrize("n_models", [2, 9])
def test_long_model_names_overlap_no_text_of_the_legend_and_are_shown_in_full(n_models):
    names = [f"{letter}_convnext_base.fb_in22k_ft_in1k_384/a_fine_tuned_run" for letter in "abcdefghi"[:n_models]]
    random = np.random.default_rng(0)
    figure = plot_roc_by_model({name: (np.arange(40) % 2 == 0, random.random(40)) for name in names}, "a")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    assert not [(i, k) for i, box in enumerate(boxes) for k in range(i) if box.overlaps(boxes[k])]
    parts = [text.get_text() for text in figure.axes[0].texts]
    assert set(names) <= {"".join(parts[i : i + 3 : 2]) for i in range(len(parts))}


def test_a_class_without_images_has_no_curve():
    truth, probability = make_predictions()
    assert "Pneumonia" not in read_texts(plot_roc_curves(np.minimum(truth, 1), probability, LABELS))


def test_confusion_cells_show_share_and_count_and_never_round_to_100_percent():
    found = read_texts(plot_confusion_matrix([[999, 1], [0, 0]], ["a", "b"]))
    assert {"> 99 %", "< 1 %", "999", "–", "predicted class", "true class"} <= set(found)


def test_labels_with_dollar_signs_or_a_leading_underscore_are_shown():
    labels = ["a$b$", "_hidden", "$\\bad{"]
    for plot in (plot_roc_curves, plot_precision_recall_curves):
        assert set(labels) <= set(read_texts(plot(*make_predictions(), labels)))
    assert set(labels) <= set(read_texts(plot_confusion_matrix(np.eye(3, dtype=int), labels)))


def test_svg_ids_are_unique_per_figure_and_the_output_is_reproducible():
    first, again, other = (
        to_svg(plot_roc_curves(*make_predictions(), LABELS), name, "a < b") for name in ("x", "x", "y")
    )
    assert first == again and 'role="img" aria-label="a &lt; b"' in first
    ids = [{e.get("id") for e in ElementTree.fromstring(text).iter() if e.get("id")} for text in (first, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert "DejaVu" not in first and "<style" not in first and "<metadata" not in first


def test_colours_repeat_with_another_dash_and_long_names_keep_both_ends():
    first, repeated = class_line(0), class_line(len(CLASS_COLORS))
    assert first["color"] == repeated["color"] and first["linestyle"] != repeated["linestyle"]
    assert shorten("abcdefghij", 6) == "abc…ij" and shorten("abc", 6) == "abc"
