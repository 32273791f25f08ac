"""How a run looks in a notebook: one live line, and a table of epochs that grows below it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.display import HTML, display

from fastcxr.io.html import escape_html, make_html_table
from fastcxr.progress.base import Bar, Progress
from fastcxr.progress.terminal import HISTORY_COLUMNS


class NotebookProgress(Progress):
    """Progress in the output of one cell."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.status_line = self.epoch_table = None  # each takes its place when there is something to show

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """A live line that empties itself when the task is done."""
        self.status_line = self.status_line or display(HTML(""), display_id=True)
        yield _NotebookBar(self.status_line, total, text)
        self.status_line.update(HTML(""))

    def epoch(self, row: dict[str, Any]) -> None:
        """One row more in the table; the best so far carries a star."""
        self.epoch_table = self.epoch_table or display(HTML(""), display_id=True)
        self.rows.append(row)
        names = [name for name in row if name != "best"]
        headings = [HISTORY_COLUMNS[name][0] if name in HISTORY_COLUMNS else name for name in names]
        rows = [[*(_format_cell(name, r[name]) for name in names), "★" if r["best"] else ""] for r in self.rows]
        self.epoch_table.update(HTML(make_html_table([*headings, ""], rows, n_text_columns=2)))


class _NotebookBar(Bar):
    """Redrawn in steps of a hundredth, so that a fast loop does not flood the page."""

    def __init__(self, status_line, total: int, text: str):
        self.status_line, self.total, self.text, self.done, self.shown_percent = status_line, max(total, 1), text, 0, -1
        self.advance(0)

    def advance(self, steps: int = 1) -> None:
        self.done = min(self.done + steps, self.total)
        percent = self.done * 100 // self.total
        if percent != self.shown_percent:
            self.shown_percent = percent
            bar = f'<progress value="{self.done}" max="{self.total}" style="width:20em"></progress>'
            self.status_line.update(HTML(f"{escape_html(self.text)} {bar} {self.done:,}/{self.total:,}"))


def _format_cell(name: str, value: Any) -> str:
    """Four digits of a loss or a share, one of seconds, nothing for nan."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
