"""Options for the workers of a command with independent pieces: --jobs and --cluster."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass

from cyclopts import Parameter

from fastcxr.cli.app import PANELS
from fastcxr.cli.output import print_line
from fastcxr.errors import RecipeError


@Parameter(name="*", group=PANELS["Compute"])
@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Where the pieces of a command run."""

    jobs: int | None = None
    "worker processes for folds, sources, variants, candidates or shards, each with one GPU where there are several"
    cluster: str | None = None
    "address of a Dask scheduler whose workers run the pieces, as tcp://10.0.0.1:8786; its workers share the disk"

    def format(self) -> list[str]:
        """Return the options as arguments of a command line."""
        jobs = [] if self.jobs is None else ["--jobs", str(self.jobs)]
        return jobs if self.cluster is None else [*jobs, "--cluster", self.cluster]

    def reject(self, problem: str, fix: str) -> None:
        """Raise RecipeError if one of the options is given."""
        if self.jobs is not None or self.cluster is not None:
            raise RecipeError(f"{self.format()[0]} is for the pieces of a run, and {problem}", fix)


IN_THIS_PROCESS = WorkerOptions()


@contextmanager
def open_executor(options: WorkerOptions, device: str = "auto") -> Iterator[Executor | None]:
    """Yield the executor of these options, and end its workers after the block; None without options.

    `device`: of the recipe. Raises RecipeError for invalid options, and the errors of connect_dask.
    """
    if options.jobs is not None and options.cluster is not None:
        raise RecipeError("--jobs and --cluster cannot be combined", "Leave one of them out")
    if options.jobs is not None and options.jobs < 1:
        raise RecipeError(f"--jobs is {options.jobs}, it must be at least 1", "Pass the number of worker processes")
    if options.cluster is not None:
        from fastcxr.executors.dask_cluster import connect_dask

        with connect_dask(options.cluster) as executor:
            yield executor
    elif options.jobs is not None:
        from fastcxr.executors.local_pool import LocalPool
        from fastcxr.models.devices import list_visible_gpus

        gpus = list_visible_gpus() if device in ("auto", "cuda") else []
        with LocalPool(options.jobs, gpus if len(gpus) > 1 else ()) as pool:
            print_line(pool.describe())
            yield pool
    else:
        yield None
