"""Progress in a notebook: one live line, and a table with a row for each epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.display import HTML, DisplayHandle

from fastcxr.io.html import escape_html, make_html_table
from fastcxr.progress.base import Bar, Progress
from fastcxr.progress.terminal import HISTORY_COLUMNS, format_history_cell


class NotebookProgress(Progress):
    """Progress in the output of one cell."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.status_line: DisplayHandle | None = None
        self.epoch_table: DisplayHandle | None = None

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Show a live bar, which is cleared at the end of the block."""
        self.status_line = self.status_line or _open_display()
        yield _NotebookBar(self.status_line, total, text)
        self.status_line.update(HTML(""))

    def epoch(self, row: dict[str, Any]) -> None:
        """Add a row to the table of epochs; a star marks each new best epoch."""
        self.epoch_table = self.epoch_table or _open_display()
        self.rows.append(row)
        names = [name for name in row if name != "best"]
        headings = [HISTORY_COLUMNS[name][0] if name in HISTORY_COLUMNS else name for name in names]
        rows = [[*(format_history_cell(name, r[name]) for name in names), "★" if r["best"] else ""] for r in self.rows]
        self.epoch_table.update(HTML(make_html_table([*headings, ""], rows, n_text_columns=2)))


def _open_display() -> DisplayHandle:
    handle = DisplayHandle()
    handle.display(HTML(""))
    return handle


class _NotebookBar(Bar):
    """Bar that is redrawn once per percent: updates of every step would overload the page."""

    def __init__(self, status_line: DisplayHandle, total: int, text: str):
        self.status_line, self.total, self.text, self.done, self.shown_percent = status_line, max(total, 1), text, 0, -1
        self.advance(0)

    def advance(self, steps: int = 1) -> None:
        self.done = min(self.done + steps, self.total)
        percent = self.done * 100 // self.total
        if percent != self.shown_percent:
            self.shown_percent = percent
            bar = f'<progress value="{self.done}" max="{self.total}" style="width:20em"></progress>'
            self.status_line.update(HTML(f"{escape_html(self.text)} {bar} {self.done:,}/{self.total:,}"))
