"""What a worker process does: run one task at a time, return its warnings, and end with the submitting process."""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastcxr.errors import RecipeError, TrainingError
from fastcxr.executors.shared_folder import Token, submitter_is_gone
from fastcxr.progress.base import record_logging

CLEANUP_SECONDS = 5.0  # for the functions of atexit
LAST_SECONDS = 30.0  # for the checkpoint of a task whose submitting process is gone
_is_busy = threading.Lock()  # random numbers and threads belong to the process: it runs one task at a time


@dataclass(frozen=True)
class Task:
    """A call of a module-level function; for an executor its arguments can be pickled."""

    function: Callable[..., Any]
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """Result of a task, its duration, the warnings that it logged, and how often its process was killed before."""

    result: Any
    seconds: float
    warnings: tuple[str, ...] = ()
    n_restarts: int = 0


def time_task(task: Task) -> Outcome:
    """Run a task and return its result and duration."""
    started = time.perf_counter()
    result = task.function(*task.args, **task.kwargs)
    return Outcome(result, time.perf_counter() - started)


def call_task(task: Task, token: Token | None = None) -> Outcome:
    """Run a task in a worker, and return its warnings instead of showing them.

    Raises TrainingError after an interrupt, RecipeError if the process runs another task, and the errors of Token.
    """
    if not _is_busy.acquire(blocking=False):
        problem = "another piece runs in the same process, which has one random number generator"
        raise RecipeError(problem, "Pass an executor with one task per process, such as LocalPool", code="E615")
    records: list[logging.LogRecord] = []
    try:
        with record_logging(records), token.enter() if token else nullcontext():
            outcome = time_task(task)
    except KeyboardInterrupt as error:  # it would end the worker
        problem = str(error) or "interrupted"
        raise TrainingError(problem, "Repeat the command: it continues after the last checkpoint") from error
    finally:
        _is_busy.release()
    lines = (record.getMessage() for record in records if record.levelno >= logging.WARNING)
    return Outcome(outcome.result, outcome.seconds, tuple(dict.fromkeys(lines)))


def end_after(wait_for_submitter: Callable[[], Any]) -> None:
    """End this process once the function returns, after the checkpoint of its task; a thread waits for that."""

    def end() -> None:
        wait_for_submitter()
        submitter_is_gone.set()
        _is_busy.acquire(timeout=LAST_SECONDS)
        end_worker(1)

    threading.Thread(target=end, daemon=True).start()


def end_worker(exit_code: int) -> NoReturn:
    """Run the functions of atexit, which remove temporary folders, and end this process, although threads still run.

    An ordinary end would wait for these threads. A thread runs the functions, so that none of them delays the end.
    """
    thread = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    thread.start()
    thread.join(CLEANUP_SECONDS)
    os._exit(exit_code)
