"""Executor of a running Dask cluster.

Dask gives the task of a lost worker to another one, up to distributed.scheduler.allowed-failures times.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from fastcxr.errors import DeviceError, PackageError, RecipeError
from fastcxr.executors.new_process import call_in_new_process
from fastcxr.io.formatting import join_names, pluralize
from fastcxr.io.packages import require_packages
from fastcxr.version import VERSION

log = logging.getLogger("fastcxr")
CONNECT_SECONDS = 20


@contextmanager
def connect_dask(address: str) -> Iterator[Executor]:
    """Yield an executor of the Dask scheduler at `address`, such as tcp://10.0.0.1:8786, for the length of the block.

    Raises:
        DeviceError: no scheduler answers.
        PackageError: the extra `cluster` is not installed, or a worker has another version of fastcxr.
        RecipeError: a worker has several threads, and would run several pieces at once.
    """
    require_packages(("distributed",), "`cluster`")
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # OSError: also a timeout
        problem = f"no Dask scheduler answers at {address}"
        raise DeviceError(problem, "Pass the address that `dask scheduler` shows", code="E614") from error
    with client:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        _validate_workers(client, workers)
        client.subscribe_topic("all", partial(_warn_of_lost_worker, client))
        log.info("Dask cluster %s: %s", address, pluralize(len(workers), "worker"))
        with _NewProcesses(client.get_executor(pure=False), len(workers)) as executor:  # pure: equal calls are one task
            yield executor


class _NewProcesses(Executor):
    """Executor that runs each call in a new process of a worker of another executor."""

    def __init__(self, executor: Executor, n_workers: int):
        self.executor, self._max_workers = executor, n_workers

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future:
        """Return the future of a call."""
        return self.executor.submit(call_in_new_process, fn, args)


def _warn_of_lost_worker(client: Any, event: tuple[float, Any]) -> None:
    """Log a warning if an event of the scheduler is the loss of a worker that ran pieces of this client."""
    message = event[1]
    if isinstance(message, dict) and message.get("action") == "remove-worker":
        n_lost = len(set(message.get("processing-tasks", ())) & set(client.futures))
        if n_lost:
            worker = message.get("worker")
            log.warning("worker %s was lost: other workers continue %s", worker, pluralize(n_lost, "piece"))


def _validate_workers(client: Any, workers: dict[str, dict[str, Any]]) -> None:
    """Check the workers that run now; each piece checks the others."""
    with_threads = [name for name, worker in workers.items() if worker["nthreads"] > 1]
    if with_threads:
        problem = f"{with_threads[0]} runs {workers[with_threads[0]]['nthreads']} pieces at once"
        fix = "Start workers with one thread: `dask worker --nthreads 1`, or SLURMCluster(cores=1, job_cpu=8)"
        raise RecipeError(problem, fix, code="E615")
    found = client.get_versions(packages=["fastcxr"])["workers"] if workers else {}
    versions = {str((one or {}).get("packages", {}).get("fastcxr")) for one in found.values()} - {VERSION}
    if versions:
        problem = f"workers of the cluster have fastcxr {join_names(sorted(versions))}, this process has {VERSION}"
        raise PackageError(problem, "Install the same version on all computers", code="E613")
