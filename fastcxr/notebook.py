"""How a run looks in a notebook: one live line, and a table of epochs that grows below it."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.display import HTML, display

from fastcxr.progress import Bar, Progress


class NotebookProgress(Progress):
    """Progress in the output of one cell."""

    def __init__(self):
        self.rows: list[dict[str, Any]] = []
        self.line = display(HTML(""), display_id=True)
        self.table = display(HTML(""), display_id=True)

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """A live line that empties itself when the task is done."""
        yield _NotebookBar(self.line, total, text)
        self.line.update(HTML(""))

    def epoch(self, row: dict[str, Any]) -> None:
        """One row more in the table; the best so far carries a star."""
        self.rows.append(row)
        names = [name for name in row if name != "best"]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{_cell(r[name])}</td>" for name in names)
            + f"<td>{'★' if r['best'] else ''}</td></tr>"
            for r in self.rows
        )
        self.table.update(HTML(f"<table><tr>{head}<th></th></tr>{body}</table>"))


class _NotebookBar(Bar):
    """Redrawn in steps of a hundredth, so that a fast loop does not flood the page."""

    def __init__(self, line, total: int, text: str):
        self.line, self.total, self.text, self.done, self.shown = line, max(total, 1), text, 0, -1
        self.advance(0)

    def advance(self, steps: int = 1) -> None:
        self.done = min(self.done + steps, self.total)
        share = self.done * 100 // self.total
        if share != self.shown:
            self.shown = share
            bar = f'<progress value="{self.done}" max="{self.total}" style="width:20em"></progress>'
            self.line.update(HTML(f"{html.escape(self.text)} {bar} {self.done:,}/{self.total:,}"))


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else html.escape(str(value))
