"""Common style of all figures, and their conversion to SVG elements for one HTML page.

Text remains text (searchable, in the reader's sans-serif font). Identifiers are prefixed with the name of the figure.
The output depends on the numbers alone, not on time or machine.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcxr.io.html import replace_unprintable
from fastcxr.io.optional_outputs import skip_on_error

TEXT_COLOR, MUTED_COLOR, FAINT_COLOR, GRID_COLOR = "#1c2733", "#5b6876", "#9aa7b4", "#e3e8ed"
ACCENT_COLOR = "#0b5c78"
# colour-blind safe palette of Okabe and Ito, without yellow, which is hardly visible on white
CLASS_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5609b", "#c98a00", "#3f9fd8", "#6b6b6b")
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
FONT_FAMILIES = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

RC_PARAMS: dict[Any, Any] = {
    "font.size": 9.5,
    "text.parse_math": False,  # a class may be named a$b$
    "text.color": TEXT_COLOR,
    "axes.edgecolor": FAINT_COLOR,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED_COLOR,
    "axes.labelsize": 9.5,
    "xtick.color": FAINT_COLOR,
    "ytick.color": FAINT_COLOR,
    "xtick.labelcolor": MUTED_COLOR,
    "ytick.labelcolor": MUTED_COLOR,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "savefig.transparent": True,
    "svg.fonttype": "none",
}
figure_style = matplotlib.rc_context(RC_PARAMS)  # decorator of functions that return a Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_ROOT_STYLE = "stroke-linejoin: round; stroke-linecap: butt"


def class_color(k: int) -> str:
    """Return the colour of class number k, the same in every figure and table."""
    return CLASS_COLORS[k % len(CLASS_COLORS)]


def class_line(k: int) -> dict[str, Any]:
    """Return the colour and line style of class number k; after seven classes colours repeat with other dashes."""
    return {"color": class_color(k), "linestyle": LINE_STYLES[k // len(CLASS_COLORS) % len(LINE_STYLES)]}


def shorten(text: str, length: int) -> str:
    """Return at most `length` characters; the middle is replaced by an ellipsis, start and end are kept."""
    head = (length - 1) * 2 // 3
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def set_title(axes: Axes, title: str, pad: float = 8) -> None:
    """Set the title, which also names the vertical axis, at the top left."""
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=TEXT_COLOR, pad=pad)


def make_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure (size in inches) with one pair of axes and its title."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    set_title(axes, title)
    return figure, axes


@dataclass(frozen=True)
class SvgFigure:
    """One SVG figure of a page; `name` is also its file name.

    is_left_out: drawing failed, and `svg` is a sentence with the reason.
    """

    name: str
    svg: Markup
    caption: str = ""
    is_left_out: bool = False


def to_svg_figure(make_figure: Callable[[], Figure], name: str, description: str, caption: str = "") -> SvgFigure:
    """Draw a figure; `description` is its text for screen readers. A figure that cannot be drawn is left out."""
    with skip_on_error(f"figure {name}") as attempt:
        return SvgFigure(name, Markup(to_svg(make_figure(), name, replace_unprintable(description))), caption)
    return _make_left_out_figure(name, f"Figure {name} left out: {attempt.reason}.")


def omit_reason(figure: SvgFigure) -> SvgFigure:
    """Return the figure; one that is left out has no reason any more, which is the text of an exception."""
    return _make_left_out_figure(figure.name, f"Figure {figure.name} left out.") if figure.is_left_out else figure


def _make_left_out_figure(name: str, message: str) -> SvgFigure:
    return SvgFigure(name, Markup('<p class="intro">{}</p>').format(replace_unprintable(message)), is_left_out=True)


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as one <svg> element; `name` must be unique in the page."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context(RC_PARAMS), warnings.catch_warnings():
        matplotlib.rcParams["svg.hashsalt"] = name
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyphs, matplotlib needs none
        figure.savefig(buffer, format="svg", metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _prefix_ids(element, name)
        _remove_font_families(element)
    for child in [child for child in root if child.tag != f"{{{_SVG}}}g"]:
        # the style rule of matplotlib would apply to the whole page
        if child.find(f"{{{_SVG}}}style") is not None or child.tag == f"{{{_SVG}}}metadata":
            root.remove(child)
    # an attribute instead of <title>, which browsers show as a tooltip over the whole figure
    root.attrib |= {"role": "img", "aria-label": description, "font-family": FONT_FAMILIES, "style": _ROOT_STYLE}
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _prefix_ids(element: ElementTree.Element, name: str) -> None:
    for key, value in element.attrib.items():
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _remove_font_families(element: ElementTree.Element) -> None:
    style = element.get("style", "")
    if "font" in style:
        # older matplotlib writes `font: bold 10px 'A', 'B'`, newer ones `font-size: 10px; font-family: 'A', 'B'`
        style = re.sub(r"font-family: [^;]*;? ?", "", style)
        style = re.sub(r"font: ((?:bold|[1-9]00) )?([\d.]+px)[^;]*", r"font-size: \2; font-weight: \1", style)
        element.set("style", style.replace("; font-weight: ;", ";").strip("; "))
