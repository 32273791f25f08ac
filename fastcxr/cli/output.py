"""Output of all commands: options, one result on standard output, all other lines on standard error and in a log file.

Standard output has the result only: a path, a table, or with --json one JSON document, also after an error.
"""

import json
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cyclopts import CycloptsError, Group, Parameter
from rich.console import Console

from fastcxr.cli.option_names import name_options
from fastcxr.cli.suggestions import describe_usage_error
from fastcxr.errors import BadImagesError, FastcxrError, OutputError, RecipeError
from fastcxr.io.packages import make_command_package_error
from fastcxr.progress.base import log_to
from fastcxr.progress.terminal import LINE_LOG, ConsoleMessages, print_alert, print_plain

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT
PARTIAL_EXIT_CODE, DATA_ERROR_EXIT_CODE = 2, 65  # sysexits
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")  # of a line with its own time
console = Console(stderr=True)  # with --quiet it shows only warnings and errors


@Parameter(name="*", group=Group("Output", sort_key=90), negative=(), show_default=False)
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options that all commands have."""

    quiet: bool = False
    "warnings, errors and the result only"
    verbose: bool = False
    "also warnings of libraries, and the traceback of an error"
    json: bool = False
    "result or error as one JSON document on standard output"
    log_file: Path | None = None
    "file to which all messages are appended, each with its time"


@dataclass
class _State:
    """The options in use, and the result of the command that is running."""

    as_json: bool = False
    verbose: bool = False
    result: Any = None
    cleanup: ExitStack = field(default_factory=ExitStack)


_state = _State()


def use_output_options(options: OutputOptions) -> None:
    """Turn on these options until the command ends. Raises OutputError for a log file that cannot be written."""
    if options.json and not _state.as_json:
        _state.as_json = True
        _state.cleanup.enter_context(redirect_stdout(sys.stderr))  # what a library prints is not part of the document
    if options.quiet and options.verbose:
        raise RecipeError("--quiet and --verbose cannot be combined", "Leave one of them out")
    if options.quiet:
        console.quiet = True
    if options.verbose:
        _state.verbose = True
        warnings.filterwarnings("default")
    if options.log_file:
        _open_log_file(options.log_file)


class _TimedLines(logging.Formatter):
    """Lines that start with their time; those of the requests of a server have it already."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return record.getMessage() if TIME.match(record.getMessage()) else super().format(record)


def _open_log_file(path: Path) -> None:
    try:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        problem = f"the log file cannot be written ({error.strerror})"
        raise OutputError(problem, "Choose another --log-file", path=path) from error
    handler.setFormatter(_TimedLines("%(asctime)s %(message)s"))
    LINE_LOG.addHandler(handler)
    _state.cleanup.callback(handler.close)
    _state.cleanup.callback(LINE_LOG.removeHandler, handler)


@contextmanager
def _new_state() -> Iterator[None]:
    """Reset the options after the block: a process can run several commands."""
    global _state  # noqa: PLW0603  the options of the process, like its standard output
    _state = _State()
    try:
        with _state.cleanup:
            yield
    finally:
        console.quiet = False


def run_to_exit_code(command: Callable[[], int | None]) -> int:
    """Run a command with log messages on the console, print its result or its error, and return the exit code."""
    with warnings.catch_warnings(), _new_state():
        warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # users cannot act on warnings of the libraries
        try:
            exit_code = _run_and_print_error(command)
            write_json()
            return exit_code
        except BrokenPipeError:  # the program that reads the output, such as head, has ended
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _run_and_print_error(command: Callable[[], int | None]) -> int:
    try:
        with closing(ConsoleMessages(console, name_options)) as messages, log_to(messages):
            return command() or 0
    except CycloptsError as error:
        return print_error(describe_usage_error(error))
    except FastcxrError as error:
        return print_error(error)
    except ModuleNotFoundError as error:
        if (error.name or "fastcxr").partition(".")[0] == "fastcxr":
            raise
        return print_error(make_command_package_error(error.name or ""))
    except (MemoryError, RuntimeError) as error:
        if sys.modules.get("torch") is None:  # an exported model runs without it
            raise
        from fastcxr.models.device_errors import find_device_error

        if device_error := find_device_error(error):
            return print_error(device_error)
        raise
    except KeyboardInterrupt as interrupt:
        return print_error(make_interrupt_error(interrupt))


def write_json() -> None:
    """Close the log file, and write the JSON document of the command, if there is one."""
    _state.cleanup.close()
    if _state.result is not None:
        print(json.dumps(_state.result, indent=2, ensure_ascii=False, default=str, allow_nan=False))


def print_result(line: str | Path | None, document: Any) -> None:
    """Print the line on standard output, or with --json the last document when the command ends."""
    if _state.as_json:
        _state.result = document
    elif line is not None:
        print(line)


def is_json() -> bool:
    """Return whether the result is a JSON document."""
    return _state.as_json


def print_line(line: str) -> None:
    """Print a message."""
    print_plain(console, line)


def print_warning(line: str) -> None:
    """Print a warning, also with --quiet."""
    print_alert(console, line)


def print_critical_notices(notices: Iterable[Mapping[str, str]]) -> None:
    """Print the critical notices on a model as warnings."""
    for notice in notices:
        print_warning(f"CRITICAL: {notice['title'].rstrip('.')}. {notice['text']}".rstrip())


def print_error(error: FastcxrError, prefix: str = "") -> int:
    """Print an error as a line, with --json also as the document of the command, and return the exit code."""
    if _state.verbose and sys.exc_info()[0]:
        print_alert(console, traceback.format_exc().rstrip(), None)
    print_alert(console, f"fastcxr: {prefix}{name_options(str(error))}", "bold red")
    if _state.as_json:
        _state.result = {"error": _describe_error(error)}
    return error.exit_code


def _describe_error(error: FastcxrError) -> dict[str, Any]:
    """Return the fields of an error; of unreadable images also those of each image."""
    fields = {
        "code": error.code,
        "exit_code": error.exit_code,
        "problem": name_options(error.problem),
        "fix": name_options(error.fix),
        "path": error.path,
    }
    return fields | ({"images": list(map(_describe_error, error.errors))} if isinstance(error, BadImagesError) else {})


def make_interrupt_error(interrupt: KeyboardInterrupt) -> FastcxrError:
    """Return the error for Ctrl-C; the notes of the exception state what is done and kept."""
    if done := getattr(interrupt, "__notes__", []):
        return make_error(f"interrupted: {', '.join(done)}", "Repeat the command to continue", INTERRUPTED_EXIT_CODE)
    return make_error("interrupted", "Repeat the command", INTERRUPTED_EXIT_CODE)


def end_process(exit_code: int) -> NoReturn:
    """End the process at once, without what Python does at exit, which aborts while a thread runs code in C++."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def make_error(problem: str, fix: str, exit_code: int) -> FastcxrError:
    """Return an error with this exit code."""
    error = FastcxrError(problem, fix)
    error.exit_code = exit_code
    return error


def print_next_steps(*steps: str) -> None:
    """Print what to do next, one line per step."""
    for number, step in enumerate(steps):
        print_line(f"{'next:' if number == 0 else '     '} {step}")


def make_open_step(page: Path) -> str:
    """Return the next step that opens a page."""
    return f"open {shlex.quote(str(page))}"
