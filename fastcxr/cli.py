"""The command line: words in, a run folder, a table or one line of error out."""

import os
import sys
import warnings
from collections.abc import Callable

from cyclopts import CycloptsError, UnusedCliTokensError

from fastcxr.commands import cohorts, experiments, models, results  # noqa: F401  each adds its commands to the app
from fastcxr.commands.shared import app, console
from fastcxr.errors import FastcxrError
from fastcxr.progress import heard_by
from fastcxr.terminal import ConsoleMessages

USAGE, INTERRUPTED = 64, 130  # sysexits, and 128 + SIGINT


def main() -> None:
    """Entry point of the command `fastcxr`."""
    sys.exit(
        answer_with(lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value"))
    )


def answer_with(work: Callable[[], int | None]) -> int:
    """Do the work with what the library says aloud; every mistake becomes one line. Returns the exit code."""
    warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # those of the libraries are not for our users
    try:
        with heard_by(ConsoleMessages(console)):
            return work() or 0
    except UnusedCliTokensError as error:
        return fail(name_unused(error.unused_tokens or []), USAGE)
    except CycloptsError as error:
        return fail(str(error), USAGE)
    except FastcxrError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def name_unused(words: list[str]) -> str:
    """What is said of words that belong to no flag, most often the second value of one."""
    named = ", ".join(map(repr, words))
    return f"no flag takes {named}. Write the flag before each value, as --classes Normal --classes Virus"


def fail(message: str, code: int) -> int:
    """One line of error; returns the exit code that goes with it."""
    console.print(f"fastcxr: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code
