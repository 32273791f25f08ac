"""From a template, its values and its plates to a page: one HTML file without network or script, figures beside it."""

import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fastcxr.io.files import write_whole
from fastcxr.io.formatting import NOTHING, count, duration, listed, rate, score, share
from fastcxr.io.html import plain
from fastcxr.metrics.predictions import INTERNAL, OUT_OF_FOLD
from fastcxr.report.headline import spread
from fastcxr.report.style import Plate, class_color

OF_SPLIT = {OUT_OF_FOLD: "images out of fold", INTERNAL: "internal test images"}
TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any], plates: dict[str, Plate]) -> str:
    """The page as HTML text; every value is escaped on its way in."""
    return make_environment().get_template(template).render(**context, plate=plates.get)


@cache
def make_environment() -> Environment:
    """Where templates are found and how they show values; kept, for folds draw the same page again and again."""
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"share": share, "score": score, "rate": rate, "duration": duration, "number": "{:,}".format}
    page.filters |= {
        "kind": _kind,
        "words": lambda name: str(name).replace("_", " "),
        "listed": listed,
        "monitor": _monitor,
        "of_split": lambda split: OF_SPLIT.get(split, f"{split} split"),
        "spread": spread,
        "breakable": _breakable,
    }
    page.globals |= {"count": count, "class_color": class_color}
    return page


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


def write_page(path: Path, page: str, plates: dict[str, Plate]) -> Page:
    """The page, and each figure as a file of its own in figures/ beside it; the page's path comes back."""
    (path.parent / "figures").mkdir(exist_ok=True)
    for plate in (plate for plate in plates.values() if not plate.is_left_out):
        drawing = f'<?xml version="1.0" encoding="utf-8"?>\n{plate.svg}\n'
        write_whole(path.parent / "figures" / f"{plate.name}.svg", drawing.encode())
    write_whole(path, page.encode())
    return Page(path)


def _shown(value: Any) -> Any:
    """Every value on its way into the page: nothing that cannot be shown, a dash for nothing."""
    if isinstance(value, Markup):
        return value
    return NOTHING if value is None else plain(value)


def _monitor(name: str) -> str:
    return {"auroc": "macro AUROC", "valid_loss": "loss on valid", "accuracy": "accuracy"}.get(
        name, str(name).replace("_", " ")
    )


def _breakable(text: Any) -> Markup:
    """A long name may be broken after a mark inside it rather than anywhere."""
    if len(str(text)) <= 20:
        return escape(plain(text))
    return Markup(re.sub(r"([_./-]+)", r"\1<wbr>", str(escape(plain(text)))))


def _kind(value: Any) -> str:
    """How the template lays a value out: mapping, table (a list of mappings), list or plain."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "table" if value and all(isinstance(item, dict) for item in value) else "list"
    return "plain"
