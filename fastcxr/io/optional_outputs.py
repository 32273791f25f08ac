"""Figures are optional: one that cannot be made is left out with its reason, and the rest of the report is written."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastcxr.errors import FastcxrError
from fastcxr.io.redact import hide_folders

log = logging.getLogger("fastcxr")
MAX_REASON_CHARS = 200  # characters of a reason


@dataclass
class Attempt:
    """What became of a figure. reason: why it is left out; empty where it is there."""

    reason: str = ""


@contextmanager
def skip_on_error(output: str) -> Iterator[Attempt]:
    """Leave a figure out if the block raises an Exception: log a warning with its name and the reason, and continue.

    Every Exception counts, errors of our own code among them: torch raises RuntimeError, NotImplementedError or
    OutOfMemoryError for what a device cannot do, matplotlib, Pillow and captum raise kinds of their own, and a finished
    training is worth more than a figure. The warning names the kind, and the traceback is logged at level DEBUG.
    KeyboardInterrupt, SystemExit and the wish to stop are no Exception and pass.
    """
    attempt = Attempt()
    try:
        yield attempt
    except Exception as error:
        attempt.reason = describe_error(error)
        log.warning("%s left out: %s", output, attempt.reason)
        log.debug("traceback of %s", output, exc_info=True)


def describe_error(error: Exception) -> str:
    """The kind of an error and the first line of its message, without folders of this machine."""
    if isinstance(error, FastcxrError):
        return hide_folders(error.problem)[:MAX_REASON_CHARS]
    message = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {hide_folders(message.partition(chr(10))[0])[:MAX_REASON_CHARS]}".removesuffix(
        ": "
    )
