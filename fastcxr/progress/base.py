"""Progress interface, silent by default, and context managers that redirect the log of the package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """Progress bar of one task with a known number of steps."""

    def advance(self, steps: int = 1) -> None:
        """Add `steps` completed steps."""


class Progress:
    """Silent progress display. Subclasses override the methods whose events they show."""

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Show a bar of `total` steps, labelled `text`, for the length of the block."""
        yield Bar()

    def output_folder(self, line: str) -> None:
        """Show the line with the output folder, once data and options are valid."""

    def tracked_run(self, line: str) -> None:
        """Show the line that names a tracker of the run and where it keeps the run."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Show a finished epoch; `row` is its row of history.csv."""


@contextmanager
def log_to(handler: logging.Handler) -> Iterator[None]:
    """Add a handler for the messages of the package, from level INFO, for the length of the block."""
    log = logging.getLogger("fastcxr")
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def log_once(*prefixes: str) -> Iterator[None]:
    """Deduplicate messages with these prefixes for handlers already attached; handlers added in the block get all.

    The terminal shows such a message once for all folds, and run.json of each fold holds it.
    """
    handler_filters = [(handler, _OncePerPrefixFilter(prefixes)) for handler in logging.getLogger("fastcxr").handlers]
    for handler, prefix_filter in handler_filters:
        handler.addFilter(prefix_filter)
    try:
        yield
    finally:
        for handler, prefix_filter in handler_filters:
            handler.removeFilter(prefix_filter)


class _OncePerPrefixFilter:
    def __init__(self, prefixes: tuple[str, ...]):
        self.prefixes, self.seen = prefixes, set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if not line.startswith(self.prefixes):
            return True
        is_new = line not in self.seen
        self.seen.add(line)
        return is_new


@contextmanager
def record_logging(records: list[logging.LogRecord]) -> Iterator[None]:
    """Append the log records of the block to `records` instead of handling them; replay_logging handles them later."""
    log, recorder = logging.getLogger("fastcxr"), logging.Handler(logging.INFO)
    recorder.emit = lambda record: records.append(record)
    saved = log.handlers, log.level, log.propagate, log.disabled
    log.handlers, log.propagate, log.disabled = [recorder], False, False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers, level, log.propagate, log.disabled = saved
        log.setLevel(level)


def replay_logging(records: list[logging.LogRecord]) -> None:
    """Pass these records to the handlers attached now."""
    log = logging.getLogger("fastcxr")
    for record in records:
        if log.isEnabledFor(record.levelno):
            log.handle(record)


@contextmanager
def silence_logging() -> Iterator[None]:
    """Discard the log messages of the block, which a later call logs again."""
    log = logging.getLogger("fastcxr")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled
