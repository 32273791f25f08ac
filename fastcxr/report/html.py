"""Render a template to one self-contained HTML page without scripts, and write its figures as SVG files."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.io.files import atomic_write
from fastcxr.io.formatting import (
    MISSING,
    format_duration,
    format_learning_rate,
    format_percent,
    format_score,
    join_names,
    pluralize,
)
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.headline import format_mean_sd
from fastcxr.report.style import SvgFigure, class_color

SPLIT_NAMES = {"valid": "validation", OUT_OF_FOLD: "out of fold", INTERNAL_TEST: "internal test"}
SPLIT_PHRASES = {OUT_OF_FOLD: "out-of-fold images", INTERNAL_TEST: "internal test set"}
MONITOR_NAMES = {"auroc": "macro AUROC", "valid_loss": "validation loss"}
TEMPLATES_DIR = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any], svg_figures: dict[str, SvgFigure] | None) -> str:
    """Return the page as HTML text; all values are escaped. `svg_figures`: None if none was drawn."""
    figures = {"svg_figure": (svg_figures or {}).get, "has_figures": svg_figures is not None}
    return make_environment().get_template(template).render(**context, **figures)


@cache
def make_environment() -> Environment:
    """Return the template environment; cached, because cross-validation renders the same template for every fold."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format_percent,
        "score": format_score,
        "learning_rate": format_learning_rate,
        "duration": format_duration,
        "number": "{:,}".format,
        "value_kind": _classify_value,
        "humanize": _humanize,
        "join_names": join_names,
        "monitor": lambda name: MONITOR_NAMES.get(name, _humanize(name)),
        "split_name": lambda split: SPLIT_NAMES.get(split, split),
        "split_phrase": format_split,
        "mean_sd": format_mean_sd,
        "breakable": _insert_word_breaks,
    }
    environment.globals |= {"pluralize": pluralize, "class_color": class_color}
    return environment


def format_split(split: str) -> str:
    """Return the name of a split for a sentence, such as "validation split"."""
    return SPLIT_PHRASES.get(split, f"{SPLIT_NAMES.get(split, split)} split")


class Page(type(Path())):
    """Path of a page; a notebook displays the page itself."""

    def _repr_html_(self) -> str | None:
        if self.suffix != ".html" or not self.is_file():  # .parent has the same class
            return None
        # inside srcdoc, a plain #section link would load the notebook into the frame
        page = self.read_text(encoding="utf-8").replace('<a href="#', '<a href="about:srcdoc#')
        # the sandbox isolates the styles of the page and blocks scripts
        style = "width:100%;height:720px;border:1px solid #8888"
        return f'<iframe srcdoc="{html.escape(page)}" sandbox style="{style}"></iframe>'


def write_page(path: Path, page: str, svg_figures: dict[str, SvgFigure]) -> Page:
    """Write the page, and each figure as an SVG file in the subfolder figures/; return the path of the page."""
    (path.parent / "figures").mkdir(exist_ok=True)
    for figure in (figure for figure in svg_figures.values() if not figure.is_left_out):
        svg_document = f'<?xml version="1.0" encoding="utf-8"?>\n{figure.svg}\n'
        atomic_write(path.parent / "figures" / f"{figure.name}.svg", svg_document.encode())
    atomic_write(path, page.encode())
    return Page(path)


def _finalize_value(value: Any) -> Any:
    """Replace unprintable characters, and None by a dash, in every value of a template."""
    if isinstance(value, Markup):
        return value
    return MISSING if value is None else replace_unprintable(value)


def _humanize(name: Any) -> str:
    return str(name).replace("_", " ")


def _insert_word_breaks(text: Any) -> Markup:
    """Allow line breaks in a long name after separators only."""
    escaped = escape(replace_unprintable(text))
    return Markup(re.sub(r"([_./-]+)", r"\1<wbr>", str(escaped))) if len(str(text)) > 20 else escaped


def _classify_value(value: Any) -> str:
    """Return the layout of a value in a template: mapping, table (a list of mappings), list or plain."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "table" if value and all(isinstance(item, dict) for item in value) else "list"
    return "plain"
