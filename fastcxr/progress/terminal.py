"""Progress and log messages in a terminal: a live bar, and a line for each epoch; plain lines in a pipe."""

import logging
import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from fastcxr.io.formatting import format_duration
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

BEST_EPOCH_MARK = "*"
RATE_UNITS = {"s": 1, "min": 60, "h": 3600}  # seconds of each
RATE_SECONDS = 300.0  # of which a bar shows the rate; a batch of a large network on a CPU takes over a minute
PIPE_SECONDS = 60.0  # between two lines of a bar in a pipe

# printed lines, for --log-file; NullHandler: without a file they are not printed a second time
LINE_LOG = logging.getLogger("fastcxr.terminal")
LINE_LOG.propagate = False
LINE_LOG.setLevel(logging.INFO)
LINE_LOG.addHandler(logging.NullHandler())


def print_plain(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without wrapping, highlighting or markup, which a file name may contain."""
    LINE_LOG.info("%s", line)
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def print_alert(console: Console, line: str, style: str | None = "bold yellow") -> None:
    """Print a warning or an error, also on a console that is quiet."""
    was_quiet, console.quiet = console.quiet, False
    try:
        print_plain(console, line, style)
    finally:
        console.quiet = was_quiet


def print_table(console: Console, table: Table) -> None:
    """Print a table."""
    console.print(table, highlight=False)
    plain = Console(file=StringIO(), width=console.width, color_system=None)
    plain.print(table)
    LINE_LOG.info("%s", plain.file.getvalue().rstrip())  # pyright: ignore[reportAttributeAccessIssue]  a StringIO


class TerminalProgress(Progress):
    """Progress on a rich console, which should write to standard error: standard output is for results."""

    def __init__(self, console: Console):
        self.console, self.header_shown, self.folder_shown = console, False, False
        self.tracker_lines: set[str] = set()

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Show a live bar, removed at the end of the block; in a pipe print a line per minute, except for epochs."""
        if not self.console.is_terminal:
            yield Bar() if text.startswith("epoch") else _PipeBar(self.console, total, text)
            return
        counts = MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn()
        columns = (TextColumn("{task.description}"), BarColumn(), *counts)
        options = {"console": self.console, "transient": True, "speed_estimate_period": RATE_SECONDS}
        with RichProgress(*columns, **options) as rich_progress:
            yield _LiveBar(rich_progress, rich_progress.add_task(text, total=total))

    def output_folder(self, line: str) -> None:
        """Print the line of the first folder: the others are inside it, such as those of the folds."""
        if not self.folder_shown:
            print_plain(self.console, line)
            self.folder_shown = True

    def tracked_run(self, line: str) -> None:
        """Print the line, once if it is the same for several folds."""
        if line not in self.tracker_lines:
            print_plain(self.console, line)
            self.tracker_lines.add(line)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print a line of the table of epochs; a star marks each new best epoch."""
        columns = {name: column for name, column in HISTORY_COLUMNS.items() if name in row}
        if not self.header_shown:
            headings = "  ".join(f"{heading:>{width}}" for heading, width in columns.values())
            print_plain(self.console, f"{BEST_EPOCH_MARK}: best epoch so far")
            print_plain(self.console, headings, "bold")
            self.header_shown = True
        cells = "  ".join(f"{format_history_cell(name, row[name]):>{width}}" for name, (_, width) in columns.items())
        print_plain(self.console, cells + (f" {BEST_EPOCH_MARK}" if row.get("best") else ""))


class _RateColumn(ProgressColumn):
    """Steps per second, minute or hour."""

    def render(self, task: Task) -> Text:
        """Return the mean rate of the last steps, nothing before the first."""
        return Text(format_rate(task.speed) if task.speed else "", style="progress.data.speed")


class _LiveBar(Bar):
    def __init__(self, rich_progress: RichProgress, task: TaskID):
        self.rich_progress, self.task = rich_progress, task

    def advance(self, steps: int = 1) -> None:
        self.rich_progress.advance(self.task, steps)


class _PipeBar(Bar):
    """Lines with the finished steps, the first one at the start."""

    def __init__(self, console: Console, total: int, text: str):
        self.console, self.total, self.text = console, total, text
        self.n_finished, self.started = 0, time.monotonic()
        self.printed_at = self.started
        print_plain(console, f"{text} ...")

    def advance(self, steps: int = 1) -> None:
        self.n_finished += steps
        if time.monotonic() - self.printed_at >= PIPE_SECONDS:
            self.printed_at = time.monotonic()
            rate = self.n_finished / max(self.printed_at - self.started, 1e-6)
            remaining = format_duration((self.total - self.n_finished) / rate)
            counts = f"{self.n_finished:,} of {self.total:,}"
            print_plain(self.console, f"{self.text}: {counts}, {format_rate(rate)}, {remaining} remaining")


class ConsoleMessages(logging.Handler):
    """Handler that prints log messages on a console, warnings in bold yellow with a prefix.

    A warning is printed once. `close` prints how often each repeated warning was logged.
    """

    def __init__(self, console: Console, convert: Callable[[str], str] = str):
        """`convert`: applied to each message."""
        super().__init__(logging.INFO)
        self.console, self.convert, self.warning_counts = console, convert, Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message as one line, a repeated warning only once."""
        line = self.convert(record.getMessage())
        if record.levelno < logging.WARNING:
            print_plain(self.console, line)
            return
        self.warning_counts[line] += 1
        if self.warning_counts[line] == 1:
            print_alert(self.console, f"warning: {line}")

    def close(self) -> None:
        """Print the number of each repeated warning."""
        for line, n in self.warning_counts.items():
            if n > 1:
                print_alert(self.console, f"warning logged {n} times: {textwrap.shorten(line, 60, placeholder=' …')}")
        self.warning_counts.clear()
        super().close()


def format_rate(per_second: float) -> str:
    """Format a number of steps per second, a low one per minute or hour."""
    unit, seconds = next((item for item in RATE_UNITS.items() if per_second * item[1] >= 1), ("h", 3600))
    return f"{per_second * seconds:,.1f}/{unit}"


def format_history_cell(name: str, value: Any) -> str:
    """Format a value of history.csv: seconds with one digit, other fractions with four, NaN as an empty text."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
