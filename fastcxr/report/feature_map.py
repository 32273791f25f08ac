"""Map of the features of images as SVG: a panel by class or finding, and one by source or view.

A group has a colour and a shape. A panel is written without matplotlib, whose SVG has 100 bytes or more for each point.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup
from rich.cells import cell_len

from fastcxr.io.formatting import format_percent, join_names, pluralize
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.feature_map import COORDINATES, NONE_PRESENT, compute_nearest_share, name_main_findings
from fastcxr.report.html import SPLIT_NAMES, make_environment
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.style import (
    FAINT_COLOR,
    FONT_FAMILIES,
    MUTED_COLOR,
    TEXT_COLOR,
    SvgFigure,
    class_color,
    shorten,
)

FIGURE_PREFIX = "feature_map_"
MIN_SHARE_IMAGES = 30  # with fewer, the share of images like their nearest image has a wide confidence interval
MAX_GROUPS = 10  # more groups in one panel are unreadable: the most frequent ones are shown, the others in gray
UNSTATED, OTHERS = "not stated", "others"
WIDTH, AXES_TOP, AXES_HEIGHT, MARGIN = 302, 20, 250, 7  # points; see scatter.svg.jinja
LEGEND_TOP, LEGEND_LINE = AXES_TOP + AXES_HEIGHT + 33, 15
MAX_NARROW_NAME_CELLS = 19  # longer names need a legend of one column
MAX_NAME_LENGTH, MAX_WIDE_NAME_LENGTH = 44, 24  # characters of a name in one column; wide: as Chinese ones
RADII = ((300, 3.2), (1000, 2.5))  # maximum number of images, radius in points
MIN_RADIUS = 2.0
# paths of the shapes around the point 0, 0 for radius 1: the first move and the rest, which is relative
SHAPES = (
    ((0, -1), "a{0} {0} 0 1 1-.01 0z", (1,)),
    ((0, -1.25), "l{0} {1}h-{2}z", (1.15, 2.0, 2.3)),
    ((-0.9, -0.9), "h{0}v{0}h-{0}z", (1.8,)),
    ((0, -1.35), "l{0} {0}-{0} {0}-{0}-{0}z", (1.35,)),
    ((0, 1.25), "l{0}-{1}h-{2}z", (1.15, 2.0, 2.3)),
)


@dataclass(frozen=True)
class MapGroup:
    """Images of one group: their name in the legend, colour, number of the shape and positions, shape (n, 2)."""

    name: str
    color: str
    shape: int
    points: np.ndarray

    def draw(self, radius: float, points: np.ndarray | None = None) -> str:
        """Return the SVG path of all images, or of the given points."""
        (x, y), text, sizes = SHAPES[self.shape]
        rest = text.format(*(f"{radius * size:.3g}" for size in sizes))
        moved = (self.points if points is None else points) + radius * np.array([x, y])
        return "".join(f"M{across:.1f} {down:.1f}{rest}" for across, down in moved.tolist())


def describe_feature_map(record: RunRecord) -> str:
    """Return which images the map shows, its method, and what to look for; empty without a map."""
    table = record.feature_map
    if table.empty:
        return ""
    splits = [split for split in ("train", "valid") if (table["split"] == split).any()]
    names = {"train": "training"} | SPLIT_NAMES
    images = f"{join_names([names[split] for split in splits])} images"
    n_all = int(record.table["split"].isin(splits).sum())
    n_shown = f"{len(table):,} {images}"
    if n_all > len(table):
        n_shown = f"{len(table):,} of {n_all:,} {images} (sampled evenly)"
    text = f"Features of {n_shown} in two dimensions ({table['method'].iloc[0]}): close points have similar features."
    group = find_group_column(table)
    if group:
        unit = "finding" if record.predictions.is_multi_label else "class"
        text += f" If points group by {group} and not by {unit}, the model can identify the {group} (a confounder)."
    nearest = compute_nearest_share(table, table["label"])
    if not nearest or nearest.n_images < MIN_SHARE_IMAGES:
        return text
    return f"{text} Nearest image: the image of another patient with the most similar features."


def find_group_column(table: pd.DataFrame) -> str | None:
    """Return the column of the second panel: source, or view in data of one source; None if all images are alike."""
    return next((name for name in ("source", "view") if table.loc[table[name] != "", name].nunique() > 1), None)


def make_feature_map_figures(record: RunRecord) -> list[SvgFigure]:
    """Return a panel by class or finding, and one by source or view if images differ in it; none without a map."""
    table, is_multi_label = record.feature_map, record.predictions.is_multi_label
    if table.empty:
        return []
    labels = record.labels
    names = name_main_findings(table["label"]) if is_multi_label else table["label"]
    note = "An image with several findings counts for the most frequent one." if is_multi_label else ""
    panels = [_make_panel(table, names, labels, "finding" if is_multi_label else "class", note=note)]
    if column := find_group_column(table):
        names = table[column].replace("", UNSTATED)
        order = sorted(set(names) - {UNSTATED}, key=lambda name: (-(names == name).sum(), name))
        # other colours than those of the classes, as far as there are more
        panels.append(_make_panel(table, names, order, column, first_number=len(labels)))
    return panels


def _make_panel(
    table: pd.DataFrame, names: pd.Series, order: Sequence[str], unit: str, *, first_number: int = 0, note: str = ""
) -> SvgFigure:
    groups = group_points(_scale(table[list(COORDINATES)].to_numpy(float)), names, order, first_number)
    counts = join_names([f"{group.name} {pluralize(len(group.points), 'image')}" for group in groups])
    nearest, caption = compute_nearest_share(table, names), note
    if nearest and nearest.n_images >= MIN_SHARE_IMAGES:
        images = pluralize(nearest.n_images, "validation image")
        by_chance = f"{format_percent(nearest.chance)} expected by chance"
        caption = f"Same {unit} as the nearest image: {format_percent(nearest.share)} of {images} ({by_chance}). {note}"
    caption = caption.strip()
    description = f"Map of the features by {unit}: {counts}. {caption}".strip()
    return SvgFigure(
        FIGURE_PREFIX + unit, draw_map(groups, f"By {unit}", table["method"].iloc[0], description), caption
    )


def _scale(coordinates: np.ndarray) -> np.ndarray:
    """Return positions in the axes of the panel, in points from its left upper corner."""
    low, size = coordinates.min(axis=0), np.ptp(coordinates, axis=0)
    shares = (coordinates - low) / np.where(size > 0, size, 1)
    inner = np.array([WIDTH - 2 * MARGIN, AXES_HEIGHT - 2 * MARGIN])
    return np.array([MARGIN, AXES_TOP + MARGIN]) + inner * (shares * [1, -1] + [0, 1])


def group_points(points: np.ndarray, names: pd.Series, order: Sequence[str], first_number: int) -> list[MapGroup]:
    """Return the groups in `order`, of more than MAX_GROUPS the most frequent ones, and the others in gray.

    Args:
        points: position of each image, shape (n, 2).
        names: name of the group of each image.
        order: names that get a colour.
        first_number: number of the colour and shape of the first name (see class_color).
    """
    counts = names.value_counts()
    present = [name for name in order if name in counts]
    kept = set(sorted(present, key=lambda name: -counts[name])[:MAX_GROUPS])
    masks = {
        name: (class_color(first_number + k), (first_number + k) % len(SHAPES), (names == name).to_numpy())
        for k, name in enumerate(order)
        if name in kept
    }
    is_gray = ~names.isin(kept).to_numpy()
    is_unstated = names.isin([NONE_PRESENT, UNSTATED]).to_numpy() & is_gray
    gray = [(str(names[is_unstated].iloc[0]), MUTED_COLOR, 2, is_unstated)] if is_unstated.any() else []
    gray += [(OTHERS, FAINT_COLOR, 0, is_gray & ~is_unstated)] if (is_gray & ~is_unstated).any() else []
    shown = [*((name, *mask) for name, mask in masks.items()), *gray]
    return [MapGroup(name, color, shape, points[is_member]) for name, color, shape, is_member in shown]


def draw_map(groups: Sequence[MapGroup], title: str, method: str, description: str) -> Markup:
    """Return a panel as SVG: title, points, method, and a legend below. `description`: text for screen readers."""
    n_points = sum(len(group.points) for group in groups)
    radius = next((radius for max_points, radius in RADII if n_points <= max_points), MIN_RADIUS)
    names = [_shorten(replace_unprintable(group.name)) for group in groups]
    n_columns = 2 if max(map(cell_len, names)) <= MAX_NARROW_NAME_CELLS else 1
    entries = []
    for position, (group, name) in enumerate(zip(groups, names, strict=True)):
        x, y = position % n_columns * WIDTH / 2, LEGEND_TOP + position // n_columns * LEGEND_LINE
        marker = group.draw(3.4, np.array([[x + 6, y - 3.3]]))
        entries.append(
            {"x": x + 14, "y": y, "name": name, "n": f"{len(group.points):,}", "marker": marker, "group": group}
        )
    context = {
        "title": title,
        "method": replace_unprintable(method),
        "description": replace_unprintable(description),
        "width": WIDTH,
        "height": LEGEND_TOP + LEGEND_LINE * ((len(groups) - 1) // n_columns) + 6,
        "top": AXES_TOP,
        "bottom": AXES_TOP + AXES_HEIGHT,
        # small groups are drawn last, above the others
        "paths": [(group.color, group.draw(radius)) for group in sorted(groups, key=lambda group: -len(group.points))],
        "entries": entries,
        "FONT_FAMILIES": FONT_FAMILIES,
        "FAINT_COLOR": FAINT_COLOR,
        "MUTED_COLOR": MUTED_COLOR,
        "TEXT_COLOR": TEXT_COLOR,
    }
    return Markup(make_environment().get_template("scatter.svg.jinja").render(**context))


def _shorten(name: str) -> str:
    is_wide = cell_len(name) > len(name)
    return shorten(name, MAX_WIDE_NAME_LENGTH if is_wide else MAX_NAME_LENGTH)
