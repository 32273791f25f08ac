"""Executor of worker processes on this computer, each with its own GPU where there are several.

Each worker is a ProcessPoolExecutor of one process: a worker that is killed breaks the pool of its task only.
"""

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from fastcxr.executors.worker import end_after
from fastcxr.io.cpus import count_cpus
from fastcxr.io.formatting import pluralize

log = logging.getLogger("fastcxr")
MAX_RESTARTS = 2  # of a task whose worker was killed
THREADS_VARIABLE, GPU_VARIABLE = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
_environment_lock = threading.Lock()


class LocalPool(Executor):
    """Executor with `n_workers` processes, started when they are needed.

    A task whose process is killed is submitted again, at most MAX_RESTARTS times; then its future has BrokenExecutor.
    The processes end with this one, even if it is killed.
    """

    def __init__(self, n_workers: int, gpus: Sequence[str] = ()):
        """`gpus`: values of CUDA_VISIBLE_DEVICES, one for each worker in turn; none: all workers see all GPUs."""
        self.n_workers, self.gpus = n_workers, tuple(gpus)
        self._max_workers = n_workers  # as in the executors of Python
        self._threads = ThreadPoolExecutor(n_workers)  # one waits for each worker
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._free_workers: SimpleQueue[int] = SimpleQueue()
        for number in range(n_workers):
            self._free_workers.put(number)

    @property
    def n_threads(self) -> int:
        """Threads of each worker: OMP_NUM_THREADS, else its share of the CPUs."""
        given = os.environ.get(THREADS_VARIABLE, "")
        return int(given) if given.isdecimal() and int(given) else max(1, count_cpus() // self.n_workers)

    def describe(self) -> str:
        """Return the number of workers, threads and GPUs as text."""
        source = THREADS_VARIABLE if os.environ.get(THREADS_VARIABLE) else f"{pluralize(count_cpus(), 'CPU')}"
        gpus = f", one GPU each of {', '.join(self.gpus)}" if self.gpus else ""
        workers = pluralize(self.n_workers, "worker process", "worker processes")
        return f"{workers}, {pluralize(self.n_threads, 'thread')} each ({source}){gpus}"

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Return the future of a call in a worker."""
        return self._threads.submit(self._run, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002  as in Python
        """End the workers after their tasks."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        for pool in list(self._pools.values()):
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def _run(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        number, n_restarts = self._free_workers.get(), 0
        try:
            while True:
                try:
                    return self._start_call(number, function, args, kwargs).result()
                except BrokenExecutor:
                    self._pools.pop(number).shutdown()
                    if n_restarts == MAX_RESTARTS:
                        raise
                    n_restarts += 1
                    log.warning("worker %d was killed: a new one continues its piece", number + 1)
        finally:
            self._free_workers.put(number)

    def _start_call(self, number: int, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Future:
        # the command line hides warnings of libraries, too; and after a hard stop that of the resource tracker of
        # Python, a process that starts with the first pool and removes the semaphores
        variables = {THREADS_VARIABLE: str(self.n_threads), "PYTHONWARNINGS": "ignore"}
        if self.gpus:
            variables[GPU_VARIABLE] = self.gpus[number % len(self.gpus)]
        # torch reads the variables when it is imported, and the main script may import it before the initializer runs
        with _environment(variables):
            if number not in self._pools:
                context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU of its parent
                self._pools[number] = ProcessPoolExecutor(1, context, initializer=_prepare_worker)
            return self._pools[number].submit(function, *args, **kwargs)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables while a process starts."""
    with _environment_lock:
        previous = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in previous.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _prepare_worker() -> None:
    """Leave signals to the submitting process, and end with it.

    Ctrl-C in a terminal and the end of a batch job signal all processes at once. The submitting process then removes
    the token file, and its tasks write their checkpoints.
    """
    atexit.register(gc.freeze)  # without it the last collection of torch's objects takes seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if submitter := multiprocessing.parent_process():
        end_after(submitter.join)
