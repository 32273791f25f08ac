"""HTML tables for a notebook, and escaping of text that comes from file names and labels."""

import html
from collections.abc import Iterable, Sequence
from typing import Any


def replace_unprintable(text: Any) -> str:
    """Replace characters that can disorder a page: control characters, lone surrogates, bidi overrides."""
    text = str(text)
    if text.isprintable():  # nearly every text, and faster than by character
        return text
    # Persian and Indic words need zero-width joiners, and messages need tabs and line ends
    return "".join(c if c.isprintable() or c in "\u200c\u200d\t\n" else "\ufffd" for c in text)


def escape_html(text: Any) -> str:
    """Escape text for HTML."""
    return html.escape(replace_unprintable(text))


def make_html_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], n_text_columns: int = 1) -> str:
    """Return a table without colours, for light and dark pages. `n_text_columns`: left-aligned columns of text."""
    head = "".join(_make_cell("th", k, heading, n_text_columns) for k, heading in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(_make_cell("td", k, value, n_text_columns) for k, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _make_cell(tag: str, column: int, value: Any, n_text_columns: int) -> str:
    text = f"{value:,}" if isinstance(value, int) else escape_html(value)
    alignment = "left" if column < n_text_columns else "right"
    return f'<{tag} style="text-align:{alignment}">{text}</{tag}>'
