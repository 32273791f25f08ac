"""Progress: a live bar in a terminal, plain lines in a pipe, a table in a notebook, nothing in a script."""

import io
import logging
import math
from types import SimpleNamespace

import pytest
from rich.console import Console

from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, log_once, log_to
from fastcxr.progress.terminal import ConsoleMessages, TerminalProgress, _RateColumn

ROW = {
    "epoch": 1, "stage": "head", "train_loss": 0.98765, "valid_loss": math.nan, "accuracy": 0.5, "auroc": 0.75,
    "top2_accuracy": 0.9, "seconds": 12.34, "best": True,
}  # fmt: skip


def shown(terminal: bool) -> tuple[Console, io.StringIO]:
    page = io.StringIO()
    return Console(file=page, force_terminal=terminal, width=80), page


def test_a_pipe_receives_plain_lines_of_at_most_80_characters():
    console, page = shown(terminal=False)
    progress = TerminalProgress(console)
    with progress.bar(3, "checking images") as bar:
        bar.advance()
    with progress.bar(3, "epoch 1/5 (head)"):
        progress.epoch(ROW)
        progress.epoch(ROW | {"train_loss": 12.3456, "seconds": 2.8})
    lines = page.getvalue().splitlines()
    assert lines[:2] == ["checking images ...", "*: best epoch so far"]
    assert " ".join(lines[2].split()) == "epoch stage train loss valid loss accuracy AUROC top-2 seconds"
    assert lines[3].split() == ["1", "head", "0.9877", "0.5000", "0.7500", "0.9000", "12.3", "*"]
    assert lines[4].split() == ["1", "head", "12.3456", "0.5000", "0.7500", "0.9000", "2.8", "*"]
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80
    assert "\r" not in page.getvalue()


def test_a_long_bar_in_a_pipe_prints_a_line_per_minute(monkeypatch):
    console, page = shown(terminal=False)
    times = iter([0.0, 30.0, 61.0, 61.0, 119.0])
    monkeypatch.setattr("fastcxr.progress.terminal.time.monotonic", lambda: next(times))
    with TerminalProgress(console).bar(3000, "computing features") as bar:
        for _ in range(3):
            bar.advance(600)
    expected = "computing features: 1,200 of 3,000, 19.7/s, 1 min 32 s remaining"
    assert page.getvalue().splitlines() == ["computing features ...", expected]


def test_a_slow_bar_in_a_pipe_shows_the_steps_per_minute(monkeypatch):
    console, page = shown(terminal=False)
    times = iter([0.0, 80.0, 80.0])
    monkeypatch.setattr("fastcxr.progress.terminal.time.monotonic", lambda: next(times))
    with TerminalProgress(console).bar(3, "finished pieces") as bar:
        bar.advance(2)
    assert page.getvalue().splitlines()[-1] == "finished pieces: 2 of 3, 1.5/min, 40 s remaining"


def test_a_terminal_shows_a_live_bar():
    console, page = shown(terminal=True)
    with TerminalProgress(console).bar(2, "checking images") as bar:
        bar.advance(2)
    assert "checking images" in page.getvalue()
    assert "2/2" in page.getvalue()


@pytest.mark.parametrize(
    ("speed", "text"), [(1234.56, "1,234.6/s"), (1 / 30, "2.0/min"), (1 / 600, "6.0/h"), (None, "")]
)
def test_a_live_bar_shows_the_rate(speed, text):
    assert _RateColumn().render(SimpleNamespace(speed=speed)).plain == text


def test_warnings_have_a_prefix_and_file_names_are_not_parsed_as_markup():
    console, page = shown(terminal=False)
    log = logging.getLogger("fastcxr.test_progress")
    log.addHandler(ConsoleMessages(console))
    log.warning("bad file [bold]a[/bold].png")
    assert page.getvalue() == "warning: bad file [bold]a[/bold].png\n"


def test_a_repeated_warning_is_printed_once_and_counted_at_the_end():
    console, page = shown(terminal=False)
    log = logging.getLogger("fastcxr.test_repeated")
    log.addHandler(handler := ConsoleMessages(console))
    for text in ("no spacing", "other", "no spacing", "no spacing"):
        log.warning(text)
    assert page.getvalue().splitlines() == ["warning: no spacing", "warning: other"]
    handler.close()
    assert page.getvalue().splitlines()[2:] == ["warning logged 3 times: no spacing"]


def test_progress_in_a_script_is_silent():
    assert type(make_default_progress()) is Progress


@pytest.mark.needs("IPython")
def test_a_notebook_shows_a_bar_and_a_table(monkeypatch):
    from fastcxr.progress import notebook

    displays = []

    class Display:
        def display(self, page):
            displays.append([])
            self.shown = displays[-1]

        def update(self, page):
            self.shown.append(page.data)

    monkeypatch.setattr(notebook, "DisplayHandle", Display)
    progress = notebook.NotebookProgress()
    with progress.bar(1000, "epoch <1>") as bar:
        for _ in range(1000):
            bar.advance()
    progress.epoch(ROW)
    bar_states, table_states = displays
    assert "epoch &lt;1&gt;" in bar_states[0]
    assert bar_states[-1] == ""
    assert len(bar_states) < 110, "about one update per percent"
    assert "0.9877" in table_states[0]
    assert "★" in table_states[0]


class RecordingHandler(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_log_once_deduplicates_for_attached_handlers_and_not_for_later_ones():
    early, late = RecordingHandler(), RecordingHandler()
    lines = ["FCX-W202 3 images", "FCX-W207 1 image", "unused", "other"]
    with log_to(early), log_once("FCX-W", "unused"):
        for _ in range(2):
            with log_to(late):
                for line in lines:
                    logging.getLogger("fastcxr").warning(line)
    assert early.lines == [*lines, "other"]
    assert late.lines == lines * 2
