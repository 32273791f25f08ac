"""Tests for figures.py and style.py: what a figure says, and that its SVG can stand beside others in one page."""

from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic_run import LABELS, make_history, make_rates

from fastcxr.report.figures import (
    plot_confusion_matrix,
    plot_learning_curve,
    plot_lr_find_curve,
    plot_precision_recall_curves,
    plot_roc_curves,
)
from fastcxr.report.style import CLASS_COLORS, class_color, class_line_style, shorten, to_svg


def drawn(n=60, k=3, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, k, n), random.dirichlet(np.ones(k), size=n)


def words(figure, name="f"):
    root = ElementTree.fromstring(to_svg(figure, name, "described"))
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_lines_carry_their_names_and_stages_theirs():
    columns = {"train": "train_loss", "valid": "valid_loss"}
    assert {"Loss", "train", "valid", "head", "upper", "all", "epoch"} <= set(
        words(plot_learning_curve(make_history(), columns, "Loss"))
    )


def test_one_epoch_and_missing_values_are_drawn():
    history = make_history((("all", 1),)).assign(valid_loss=np.nan)
    assert "train" in words(plot_learning_curve(history, {"train": "train_loss", "valid": "valid_loss"}, "Loss"))


def test_the_rate_that_was_taken_stands_at_its_line():
    curve = make_rates().query("stage == 'head'")
    assert "0.0024" in words(plot_lr_find_curve(curve["rate"], curve["loss"], 2.4e-3, "Loss"))
    assert "0.0024" not in words(plot_lr_find_curve(curve["rate"], curve["loss"], None, "Loss"))


@pytest.mark.parametrize("k", [2, 3, 7, 12])
def test_curves_name_every_class_with_its_area(k):
    labels = [f"class {i}" for i in range(k)]
    for draw in (plot_roc_curves, plot_precision_recall_curves):
        assert set(labels) <= set(words(draw(*drawn(200, k), labels)))


def test_a_class_without_images_has_no_curve():
    truth, probability = drawn()
    assert "Pneumonia" not in words(plot_roc_curves(np.minimum(truth, 1), probability, LABELS))


def test_cells_hold_share_and_count_and_never_round_to_certainty():
    found = words(plot_confusion_matrix([[999, 1], [0, 0]], ["a", "b"]))
    assert {"> 99 %", "< 1 %", "999", "–", "predicted", "truth"} <= set(found)


def test_a_label_is_never_mathematics_and_never_hidden():
    labels = ["a$b$", "_hidden", "$\\bad{"]
    for draw in (plot_roc_curves, plot_precision_recall_curves):
        assert set(labels) <= set(words(draw(*drawn(), labels)))
    assert set(labels) <= set(words(plot_confusion_matrix(np.eye(3, dtype=int), labels)))


def test_ids_are_the_figures_own_and_the_bytes_do_not_waver():
    first, again, other = (to_svg(plot_roc_curves(*drawn(), LABELS), name, "a < b") for name in ("x", "x", "y"))
    assert first == again and 'role="img" aria-label="a &lt; b"' in first
    ids = [{e.get("id") for e in ElementTree.fromstring(text).iter() if e.get("id")} for text in (first, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert "DejaVu" not in first and "<style" not in first and "<metadata" not in first


def test_colours_come_round_with_another_dash_and_long_names_keep_both_ends():
    assert class_color(0) == class_color(len(CLASS_COLORS)) and class_line_style(0) != class_line_style(
        len(CLASS_COLORS)
    )
    assert shorten("abcdefghij", 6) == "abc…ij" and shorten("abc", 6) == "abc"
