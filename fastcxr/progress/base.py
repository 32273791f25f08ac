"""How the library tells how far it is: one object, silent by itself, that a terminal or a notebook makes visible."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """One task with a known number of steps."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more are done."""


class Progress:
    """Says nothing. A subclass overrides what it wants to show."""

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """A task of `total` steps, described by `text`, for as long as the block lasts."""
        yield Bar()

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is over; `row` is its line of history.csv."""


@contextmanager
def log_to(handler: logging.Handler) -> Iterator[None]:
    """In this block the listener hears all that the library says, whatever the caller's logging shows."""
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
def log_once(*beginnings: str) -> Iterator[None]:
    """In this block handlers that are there already get each line that begins so once; later ones get their own.

    So each fold's folder notes what a terminal is told once of all folds.
    """
    handler_filters = [
        (listener, _OncePerPrefixFilter(beginnings)) for listener in logging.getLogger("fastcxr").handlers
    ]
    for handler, prefix_filter in handler_filters:
        handler.addFilter(prefix_filter)
    try:
        yield
    finally:
        for handler, prefix_filter in handler_filters:
            handler.removeFilter(prefix_filter)


class _OncePerPrefixFilter:
    """Lets each line that begins so through a single time."""

    def __init__(self, beginnings: tuple[str, ...]):
        self.beginnings, self.said = beginnings, set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if not line.startswith(self.beginnings):
            return True
        is_new = line not in self.said
        self.said.add(line)
        return is_new


@contextmanager
def record_logging(records: list[logging.LogRecord]) -> Iterator[None]:
    """In this block what the library logs goes into `records` and nowhere else: see replay_logging."""
    log, recorder = logging.getLogger("fastcxr"), logging.Handler(logging.INFO)
    recorder.emit = records.append
    saved = log.handlers, log.level, log.propagate, log.disabled
    log.handlers, log.propagate, log.disabled = [recorder], False, False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers, level, log.propagate, log.disabled = saved
        log.setLevel(level)


def replay_logging(records: list[logging.LogRecord]) -> None:
    """Log these records to whoever listens now."""
    log = logging.getLogger("fastcxr")
    for record in records:
        if log.isEnabledFor(record.levelno):
            log.handle(record)


@contextmanager
def silence_logging() -> Iterator[None]:
    """In this block the library says nothing: for a look that somebody else will repeat aloud."""
    log = logging.getLogger("fastcxr")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled
