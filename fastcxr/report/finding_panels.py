"""Small panels of the curves of findings, one finding in each.

A panel is narrow, so that a page places two panels side by side on a phone, and six on a screen. It is written without
matplotlib, which takes 0.1 s for each of the 120 panels of 40 findings. Curves have at most MAX_CURVE_POINTS points:
the page of 100,000 images stays small.
"""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

from fastcxr.io.html import replace_unprintable
from fastcxr.report.html import make_environment
from fastcxr.report.style import (
    ACCENT_COLOR,
    FAINT_COLOR,
    FONT_FAMILIES,
    GRID_COLOR,
    MUTED_COLOR,
    TEXT_COLOR,
    shorten,
)

MAX_CURVE_POINTS = 160  # of axes 106 points wide: more points are closer than a pixel
MAX_NAME_LENGTH = 22
AXES_LEFT, AXES_TOP, AXES_SIZE = 19, 18, 106  # points; see panel.svg.jinja
COLORS = {
    "ACCENT_COLOR": ACCENT_COLOR,
    "FAINT_COLOR": FAINT_COLOR,
    "GRID_COLOR": GRID_COLOR,
    "MUTED_COLOR": MUTED_COLOR,
    "TEXT_COLOR": TEXT_COLOR,
}

Curve = tuple[np.ndarray, np.ndarray]  # x and y


@dataclass(frozen=True)
class Panel:
    """A curve of one finding between 0 and 1. `baseline`: height of a dotted line; None: the diagonal is dashed."""

    name: str
    curve: Curve
    text: str
    x_label: str
    baseline: float | None = None
    has_points: bool = False
    is_text_low: bool = True
    is_text_left: bool = False


def draw_panel(panel: Panel, description: str) -> Markup:
    """Return the panel as SVG: name of the finding, axes from 0 to 1, curve, and a number inside the axes.

    `description`: text for screen readers.
    """
    left, right, top, bottom = AXES_LEFT, AXES_LEFT + AXES_SIZE, AXES_TOP, AXES_TOP + AXES_SIZE
    half = AXES_SIZE // 2
    ticks = [(left - 3, bottom - half * k + 3, "end", f"{k / 2:g}") for k in range(3)]
    ticks += [(left + half * k, bottom + 10, "middle", f"{k / 2:g}") for k in range(3)]
    x, y = left + AXES_SIZE * panel.curve[0], bottom - AXES_SIZE * panel.curve[1]
    context = {
        "panel": panel,
        "name": shorten(replace_unprintable(panel.name), MAX_NAME_LENGTH),
        "description": description,
        "left": left,
        "right": right,
        "top": top,
        "bottom": bottom,
        "middle": bottom - half,
        "labels": [*ticks, (left + half, bottom + 18, "middle", panel.x_label)],
        "points": [(f"{across:.1f}", f"{down:.1f}") for across, down in zip(x, y, strict=True)],
        "baseline": None if panel.baseline is None else f"{bottom - AXES_SIZE * panel.baseline:.1f}",
        "FONT_FAMILIES": FONT_FAMILIES,
    }
    return Markup(make_environment().get_template("panel.svg.jinja").render(**context, **COLORS))


def compute_roc_points(is_present: np.ndarray, scores: np.ndarray) -> Curve:
    """Return 1 − specificity and sensitivity at each threshold, at most MAX_CURVE_POINTS of them."""
    false_rate, true_rate, _ = roc_curve(is_present, scores)
    return _thin_curve(false_rate, true_rate, false_rate + true_rate)


def compute_precision_recall_points(is_present: np.ndarray, scores: np.ndarray) -> Curve:
    """Return recall and precision at each threshold, at most MAX_CURVE_POINTS of them."""
    precision, recall, _ = precision_recall_curve(is_present, scores)
    return _thin_curve(recall[::-1], precision[::-1], recall[::-1])


def _thin_curve(x: np.ndarray, y: np.ndarray, position: np.ndarray) -> Curve:
    """Return points of a curve at equal steps of `position`, which increases from the first to the last point."""
    if len(x) <= MAX_CURVE_POINTS:
        return x, y
    steps = np.linspace(position[0], position[-1], MAX_CURVE_POINTS - 2)
    chosen = np.unique(np.r_[0, np.searchsorted(position, steps).clip(0, len(x) - 1), len(x) - 1])
    return x[chosen], y[chosen]
