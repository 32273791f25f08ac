"""Progress and log messages in a terminal: a live bar, a line for each epoch; plain lines in a pipe."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fastcxr.progress.base import Bar, Progress

if TYPE_CHECKING:
    pass

HISTORY_COLUMNS = {  # of history.csv: heading and width, so that a line fits into 80 characters
    "epoch": ("epoch", 5),
    "stage": ("stage", 8),
    "train_loss": ("train loss", 10),
    "valid_loss": ("valid loss", 10),
    "accuracy": ("accuracy", 8),
    "auroc": ("AUROC", 6),
    "top2_accuracy": ("top-2", 6),
    "seconds": ("seconds", 7),
}


class TerminalProgress(Progress):
    """Progress on a rich console, which should write to standard error: standard output is for results."""

    def __init__(self, console: Console):
        self.console, self.header_shown = console, False

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """A live bar that goes when it is done; where nobody watches, one line at its start, for all but epochs."""
        if not self.console.is_terminal:
            if not text.startswith("epoch"):
                self.write(f"{text} ...")
            yield Bar()
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self.console, transient=True) as rich_progress:
            yield _LiveBar(rich_progress, rich_progress.add_task(text, total=total))

    def epoch(self, row: dict[str, Any]) -> None:
        """One line of the table of epochs; the best so far carries a star."""
        columns = {name: column for name, column in HISTORY_COLUMNS.items() if name in row}
        if not self.header_shown:
            self.write("  ".join(f"{heading:>{width}}" for heading, width in columns.values()), "bold")
            self.header_shown = True
        cells = "  ".join(f"{_format_cell(name, row[name]):>{width}}" for name, (_, width) in columns.items())
        self.write(cells + (" *" if row.get("best") else ""))

    def write(self, line: str, style: str | None = None) -> None:
        """One line as it is."""
        self.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class _LiveBar(Bar):
    def __init__(self, rich_progress: RichProgress, task):
        self.rich_progress, self.task = rich_progress, task

    def advance(self, steps: int = 1) -> None:
        self.rich_progress.advance(self.task, steps)


class ConsoleMessages(logging.Handler):
    """What the library says, on the console: plain for news, loud for warnings."""

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """One message, one line."""
        is_warning = record.levelno >= logging.WARNING
        self.console.print(
            ("warning: " if is_warning else "") + record.getMessage(),
            style="bold yellow" if is_warning else None,
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _format_cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
