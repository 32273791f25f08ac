"""Progress and log messages in a terminal: a live bar, and a line for each epoch; plain lines in a pipe."""

import logging
import math
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from fastcxr.progress.base import Bar, Progress

HISTORY_COLUMNS = {  # of history.csv: heading and width [characters]; a line has at most 80 characters
    "epoch": ("epoch", 5),
    "stage": ("stage", 8),
    "train_loss": ("train loss", 10),
    "valid_loss": ("valid loss", 10),
    "accuracy": ("accuracy", 8),
    "auroc": ("AUROC", 6),
    "top2_accuracy": ("top-2", 6),
    "seconds": ("seconds", 7),
}


def print_plain(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without wrapping, highlighting or markup, which a file name may contain."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class TerminalProgress(Progress):
    """Progress on a rich console, which should write to standard error: standard output is for results."""

    def __init__(self, console: Console):
        self.console, self.header_shown = console, False

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Show a live bar, removed at the end of the block; in a pipe print one line, except for epochs."""
        if not self.console.is_terminal:
            if not text.startswith("epoch"):
                print_plain(self.console, f"{text} ...")
            yield Bar()
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self.console, transient=True) as rich_progress:
            yield _LiveBar(rich_progress, rich_progress.add_task(text, total=total))

    def epoch(self, row: dict[str, Any]) -> None:
        """Print a line of the table of epochs; a star marks each new best epoch."""
        columns = {name: column for name, column in HISTORY_COLUMNS.items() if name in row}
        if not self.header_shown:
            headings = "  ".join(f"{heading:>{width}}" for heading, width in columns.values())
            print_plain(self.console, headings, "bold")
            self.header_shown = True
        cells = "  ".join(f"{format_history_cell(name, row[name]):>{width}}" for name, (_, width) in columns.items())
        print_plain(self.console, cells + (" *" if row.get("best") else ""))


class _LiveBar(Bar):
    def __init__(self, rich_progress: RichProgress, task: TaskID):
        self.rich_progress, self.task = rich_progress, task

    def advance(self, steps: int = 1) -> None:
        self.rich_progress.advance(self.task, steps)


class ConsoleMessages(logging.Handler):
    """Handler that prints log messages on a console, warnings in bold yellow with a prefix.

    A warning is printed once. `close` prints how often each repeated warning was logged.
    """

    def __init__(self, console: Console):
        super().__init__(logging.INFO)
        self.console, self.warning_counts = console, Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as one line."""
        line = record.getMessage()
        if record.levelno < logging.WARNING:
            print_plain(self.console, line)
            return
        self.warning_counts[line] += 1
        if self.warning_counts[line] == 1:
            print_plain(self.console, f"warning: {line}", "bold yellow")

    def close(self) -> None:
        """Print the number of each repeated warning."""
        for line, n in self.warning_counts.items():
            if n > 1:
                print_plain(
                    self.console,
                    f"warning logged {n} times: {textwrap.shorten(line, 60, placeholder=' …')}",
                    "bold yellow",
                )
        self.warning_counts.clear()
        super().close()


def format_history_cell(name: str, value: Any) -> str:
    """Format a value of history.csv: seconds with one digit, other fractions with four, NaN as an empty text."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
