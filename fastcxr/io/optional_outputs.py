"""Optional outputs of a run: a figure that cannot be drawn is skipped with a warning."""

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
    """Result of an optional output. `reason`: why it is skipped; empty if it was written."""

    reason: str = ""


@contextmanager
def skip_on_error(output: str) -> Iterator[Attempt]:
    """Skip an output if the block raises an Exception: log a warning with the output and the reason.

    Every Exception is caught: torch, matplotlib, Pillow and captum raise many types, and a finished training must not
    be lost for a figure. The traceback is logged at level DEBUG. KeyboardInterrupt, SystemExit and Interrupted pass.
    """
    attempt = Attempt()
    try:
        yield attempt
    except Exception as error:
        attempt.reason = describe_error(error)
        log.warning("%s left out: %s", output, attempt.reason)
        log.debug("traceback of %s", output, exc_info=True)


def describe_error(error: Exception) -> str:
    """Return the type of an error and the first line of its message, without folders of this machine."""
    if isinstance(error, FastcxrError):
        return hide_folders(error.problem)[:MAX_REASON_CHARS]
    message = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {hide_folders(message.partition(chr(10))[0])[:MAX_REASON_CHARS]}".removesuffix(
        ": "
    )
