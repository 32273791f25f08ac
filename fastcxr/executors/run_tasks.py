"""Run independent tasks on any executor of concurrent.futures; without one, in this process, one after the other.

Tasks are module-level functions with arguments that can be pickled. Their results are small: files are in the run
folder.
"""

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed, wait
from typing import Any, NoReturn

from fastcxr.errors import DeviceError, FastcxrError
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Outcome, Task, call_task, time_task
from fastcxr.io.formatting import format_duration
from fastcxr.progress.base import Bar, Progress

log = logging.getLogger("fastcxr")
STOP_SECONDS = 8.0  # for the checkpoints of running tasks after an interrupt; the command line ends after 9


OnFinished = Callable[[str, Outcome], str | None]


def run_tasks(
    tasks: Mapping[str, Task],
    executor: Executor | None = None,
    progress: Progress | None = None,
    *,
    shared: SharedFolder | None = None,
    on_finished: OnFinished | None = None,
) -> dict[str, Any]:
    """Return the result of each task, in the order of `tasks`.

    After the first error no further task starts, running ones finish, and the error is raised. After KeyboardInterrupt
    running tasks are interrupted.

    Args:
        tasks: tasks by their names, such as "fold 3".
        executor: any Executor, or an object whose `submit` returns a job with `result`, as that of submitit; by
            default the tasks run in this process, which shows their own progress.
        progress: shows a bar of finished tasks of an executor.
        shared: the folder that the tasks write into, for an executor.
        on_finished: called in this process for each finished task; with an executor, a text that it returns is shown.

    Raises:
        FastcxrError: of a task, which the message names; DeviceError if its worker ended several times.
    """
    run = _Run(executor or InThisProcess(), executor is not None, shared, on_finished)
    shown = progress if progress and executor is not None else Progress()  # in this process a task has its own bars
    with shown.bar(len(tasks), "finished pieces") as run.bar:
        try:
            for name, task in tasks.items():
                run.submit(name, task)
            for future in as_completed(run.names):
                run.finish(future)
        except KeyboardInterrupt:
            run.stop()
            raise
        except BaseException:
            run.close()
            raise
    return {name: run.results[name] for name in tasks}


class InThisProcess(Executor):
    """Executor that runs each task in `submit`, so that the next one starts after it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Return the future of the finished call. KeyboardInterrupt passes."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Run:
    """The futures and results of one call of run_tasks."""

    def __init__(
        self, executor: Executor, is_remote: bool, shared: SharedFolder | None, on_finished: OnFinished | None
    ):
        self.executor, self.is_remote, self.shared, self.on_finished = executor, is_remote, shared, on_finished
        self.names: dict[Future, str] = {}
        self.results: dict[str, Any] = {}
        self.shown_warnings: set[str] = set()
        self.bar = Bar()

    def submit(self, name: str, task: Task) -> None:
        if self.is_remote:
            job = self.executor.submit(call_task, task, self.shared.token if self.shared else None)
        else:
            job = self.executor.submit(time_task, task)
        future = _to_future(job)
        self.names[future] = name
        if future.done():
            self.finish(future)

    def finish(self, future: Future) -> None:
        """Store the result and show it, once; raise the error of the task, which then has its name."""
        name = self.names[future]
        if name in self.results:
            return
        try:
            outcome: Outcome = future.result()
        except Exception as error:
            _raise_named(error, name)
        self.results[name] = outcome.result
        for line in outcome.warnings:
            if line not in self.shown_warnings:
                self.shown_warnings.add(line)
                log.warning("%s", line)
        if outcome.n_restarts:
            log.warning("%s: its process was killed %s, and a new one continued it", name, _count(outcome.n_restarts))
        text = self.on_finished(name, outcome) if self.on_finished else None
        if self.is_remote:
            log.info("%s finished in %s", name, format_duration(outcome.seconds) + (f": {text}" if text else ""))
        self.bar.advance()

    def close(self) -> None:
        """Let running tasks finish, and no further one start."""
        if self.shared:  # an executor of a cluster would also cancel the tasks that run
            self.shared.close()
        else:
            self._cancel()
        wait(self.names)

    def stop(self) -> None:
        """Interrupt running tasks and wait for their checkpoints."""
        if self.shared:
            self.shared.stop()
        else:
            self._cancel()
        wait(self.names, STOP_SECONDS)
        self._cancel()  # tasks that wait for a worker

    def _cancel(self) -> None:
        for future in self.names:
            future.cancel()


def _raise_named(error: Exception, name: str) -> NoReturn:
    """Raise the error of a task again, with the name of the task."""
    if isinstance(error, FastcxrError):
        named = copy.copy(error)
        named.problem = f"{name}: {error.problem}"
        raise named from error
    if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":  # of Dask
        problem = f"{name}: each of its worker processes was killed, or ran out of memory"
        fix = "Give the workers more memory, or start fewer of them, and repeat the command: it continues"
        raise DeviceError(problem, fix, code="E611") from error
    if isinstance(error, CancelledError):
        problem = f"{name}: the connection to the cluster is lost"
        raise DeviceError(problem, "Repeat the command: it continues after the finished pieces", code="E614") from error
    error.add_note(f"in {name}")
    raise error


def _count(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _to_future(job: Any) -> Future:
    """Return the job, or the future of a job that only has `result`: a thread waits for it."""
    if isinstance(job, Future):
        return job
    future: Future = Future()
    future.set_running_or_notify_cancel()

    def copy_result() -> None:
        try:
            future.set_result(job.result())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=copy_result, daemon=True).start()
    return future


def count_workers(executor: Executor | None) -> int:
    """Return how many tasks the executor runs at once, 1 if that is unknown."""
    return max(1, getattr(executor, "_max_workers", 1)) if executor is not None else 1
