"""Plain values become small HTML tables for a notebook; whatever a file name or a label holds stays text."""

import html
from collections.abc import Iterable, Sequence
from typing import Any


def replace_unprintable(text: Any) -> str:
    """Text without what disorders a page: control characters, lone surrogates, bidi overrides."""
    # zero-width joiners shape Persian and Indic words, tabs and line ends shape a message
    return "".join(c if c.isprintable() or c in "\u200c\u200d\t\n" else "\ufffd" for c in str(text))


def escape_html(text: Any) -> str:
    """Text that a browser shows as it is."""
    return html.escape(replace_unprintable(text))


def make_html_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], n_text_columns: int = 1) -> str:
    """A table without colours, for light pages and dark ones. `n_text_columns`: columns of text; numbers follow."""
    head = "".join(
        f"<th {_make_alignment_style(k, n_text_columns)}>{escape_html(heading)}</th>"
        for k, heading in enumerate(headings)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td {_make_alignment_style(k, n_text_columns)}>{_format_cell(value)}</td>" for k, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _make_alignment_style(column: int, n_text_columns: int) -> str:
    return f'style="text-align:{"left" if column < n_text_columns else "right"}"'


def _format_cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else escape_html(value)
