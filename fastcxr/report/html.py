"""From a template, its values and its plates to a page: one HTML file without network or script, figures beside it."""

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

SPLIT_PHRASES = {OUT_OF_FOLD: "images out of fold", INTERNAL_TEST: "internal test images"}
TEMPLATES_DIR = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any], svg_figures: dict[str, SvgFigure]) -> str:
    """The page as HTML text; every value is escaped on its way in."""
    return make_environment().get_template(template).render(**context, svg_figure=svg_figures.get)


@cache
def make_environment() -> Environment:
    """Where templates are found and how they show values; kept, for folds draw the same page again and again."""
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
    }
    environment.filters |= {
        "value_kind": _classify_value,
        "humanize": lambda name: str(name).replace("_", " "),
        "join_names": join_names,
        "monitor": _format_monitor,
        "split_phrase": lambda split: SPLIT_PHRASES.get(split, f"{split} split"),
        "mean_sd": format_mean_sd,
        "breakable": _insert_word_breaks,
    }
    environment.globals |= {"pluralize": pluralize, "class_color": class_color}
    return environment


class Page(type(Path())):
    """The path of a page, like any other path; a notebook shows the page itself."""

    def _repr_html_(self) -> str | None:
        if self.suffix != ".html" or not self.is_file():  # its folder is of this class too
            return None
        # inside srcdoc a bare #section would load the notebook itself into the frame
        page = self.read_text(encoding="utf-8").replace('<a href="#', '<a href="about:srcdoc#')
        # the sandbox keeps the styles of the page to itself, and scripts out of it
        style = "width:100%;height:720px;border:1px solid #8888"
        return f'<iframe srcdoc="{html.escape(page)}" sandbox style="{style}"></iframe>'


def write_page(path: Path, page: str, svg_figures: dict[str, SvgFigure]) -> Page:
    """The page, and each figure as a file of its own in figures/ beside it; the page's path comes back."""
    (path.parent / "figures").mkdir(exist_ok=True)
    for figure in (figure for figure in svg_figures.values() if not figure.is_left_out):
        svg_document = f'<?xml version="1.0" encoding="utf-8"?>\n{figure.svg}\n'
        atomic_write(path.parent / "figures" / f"{figure.name}.svg", svg_document.encode())
    atomic_write(path, page.encode())
    return Page(path)


def _finalize_value(value: Any) -> Any:
    """Every value on its way into the page: nothing that cannot be shown, a dash for nothing."""
    if isinstance(value, Markup):
        return value
    return MISSING if value is None else replace_unprintable(value)


def _format_monitor(name: str) -> str:
    return {"auroc": "macro AUROC", "valid_loss": "loss on valid", "accuracy": "accuracy"}.get(
        name, str(name).replace("_", " ")
    )


def _insert_word_breaks(text: Any) -> Markup:
    """A long name may be broken after a mark inside it rather than anywhere."""
    if len(str(text)) <= 20:
        return escape(replace_unprintable(text))
    return Markup(re.sub(r"([_./-]+)", r"\1<wbr>", str(escape(replace_unprintable(text)))))


def _classify_value(value: Any) -> str:
    """How the template lays a value out: mapping, table (a list of mappings), list or plain."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "table" if value and all(isinstance(item, dict) for item in value) else "list"
    return "plain"
