"""From a matplotlib Figure to SVG text that can stand beside others in one page, and the look that all figures share.

Text stays text (searchable, small, in the reader's own sans-serif), ids are prefixed by the figure's name, and nothing
in the file depends on when or where it was drawn: the same numbers give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastcxr.io.html import replace_unprintable
from fastcxr.io.optional_outputs import skip_on_error

TEXT_COLOR, MUTED_COLOR, FAINT_COLOR, GRID_COLOR = "#1c2733", "#5b6876", "#9aa7b4", "#e3e8ed"
ACCENT_COLOR = "#0b5c78"
# Okabe and Ito's colours, safe for colour-blind readers; yellow left out, it vanishes on white
CLASS_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5609b", "#c98a00", "#3f9fd8", "#6b6b6b")
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))
FONT_FAMILIES = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

RC_PARAMS = {
    "font.size": 9.5,
    "text.parse_math": False,  # a class may be called a$b$
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
figure_style = matplotlib.rc_context(RC_PARAMS)  # a decorator for functions that return a Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_ROOT_STYLE = "stroke-linejoin: round; stroke-linecap: butt"


def class_color(k: int) -> str:
    """The colour of class number k, the same in every figure and table."""
    return CLASS_COLORS[k % len(CLASS_COLORS)]


def class_line_style(k: int) -> str | tuple:
    """The line style of class number k: colours come round again after seven classes, with other dashes."""
    return LINE_STYLES[k // len(CLASS_COLORS) % len(LINE_STYLES)]


def shorten(text: str, length: int) -> str:
    """At most `length` characters, the middle left out: both ends of a name tell."""
    head = (length - 1) * 2 // 3
    return text if len(text) <= length else f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def make_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """One pair of axes with its title, which is also the name of the vertical axis, at the top left."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=TEXT_COLOR, pad=8)
    return figure, axes


@dataclass(frozen=True)
class SvgFigure:
    """One figure, ready for the page. `name` is also its file's; `caption` stands below it.

    is_left_out: the figure could not be drawn, and `svg` is a sentence that says why.
    """

    name: str
    svg: Markup
    caption: str = ""
    is_left_out: bool = False


def to_svg_figure(make_figure: Callable[[], Figure], name: str, description: str, caption: str = "") -> SvgFigure:
    """The figure as a plate; `description` is read aloud in its place. One that cannot be drawn is left out."""
    with skip_on_error(f"figure {name}") as attempt:
        return SvgFigure(name, Markup(to_svg(make_figure(), name, replace_unprintable(description))), caption)
    message = f"Figure {name} left out: {attempt.reason}."
    return SvgFigure(name, Markup('<p class="intro">{}</p>').format(replace_unprintable(message)), is_left_out=True)


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as one <svg> element; `name` is unique in the page, `description` is read aloud in its place."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context(RC_PARAMS | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the glyphs, matplotlib needs none
        figure.savefig(buffer, format="svg", metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _prefix_ids(element, name)
        _remove_font_families(element)
    for child in [child for child in root if child.tag != f"{{{_SVG}}}g"]:
        # its one style rule would apply to the whole page
        if child.find(f"{{{_SVG}}}style") is not None or child.tag == f"{{{_SVG}}}metadata":
            root.remove(child)
    # an attribute and no <title>: that would hang over the figure as a tooltip wherever the mouse goes
    root.attrib |= {"role": "img", "aria-label": description, "font-family": FONT_FAMILIES, "style": _ROOT_STYLE}
    return _serialize_svg(root)


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


def _serialize_svg(root: ElementTree.Element) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")
