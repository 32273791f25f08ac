"""Train on several GPUs: start torchrun, and the commands that torchrun starts, of which only the first one prints."""

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from fastcxr.cli.output import console, end_process, make_error, print_error, print_warning, write_json
from fastcxr.errors import DeviceError, FastcxrError, RecipeError, TrainingError
from fastcxr.io.cpus import count_cpus
from fastcxr.training.interrupt import SIGNALS, Interrupted

TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"  # in the environment of the processes of torchrun
# a failure of the main process, or the process that failed first, is reported instead of its consequences
MAX_REPORT_SECONDS = 3.0
log = logging.getLogger("fastcxr")


def is_launched() -> bool:
    """Return whether torchrun started this process."""
    return TORCHRUN_VARIABLE in os.environ


def is_first_process() -> bool:
    """Return whether this process is the only one, or the first one of torchrun, which prints and writes."""
    if not is_launched():
        return True
    if "RANK" in os.environ:  # join_processes hides it
        return os.environ["RANK"] == "0"
    from fastcxr.training.processes import is_main_process

    return is_main_process()


def reject_torchrun(what: str) -> None:
    """Raise RecipeError in a process of torchrun, for a command that runs several trainings."""
    if is_launched():
        raise RecipeError(f"torchrun cannot run {what}", "Start one run per command", code="E602")


def launch(gpus: str) -> int:
    """Start this command in one process per GPU, with torchrun, and return its exit code. `gpus`: all, or a number.

    Raises RecipeError for another text, DeviceError for too few GPUs.
    """
    return start_processes(count_gpus(gpus), ["-m", "fastcxr", *sys.argv[1:]])


def count_gpus(gpus: str) -> int:
    """Return the number of GPUs to use. `gpus`: all, or a number."""
    import torch

    n_available = torch.cuda.device_count()
    if gpus != "all" and not (gpus.isdecimal() and int(gpus)):
        raise RecipeError(f"--gpus is {gpus!r}, it must be all or a number from 1", "Pass --gpus all", code="E601")
    if not n_available:
        raise DeviceError("--gpus needs a GPU with CUDA, and this machine has none", "Leave --gpus out", code="E601")
    n_gpus = n_available if gpus == "all" else int(gpus)
    if n_gpus > n_available:
        problem = f"--gpus is {n_gpus}, and this machine has {n_available}"
        raise DeviceError(problem, f"Pass --gpus {n_available} or less", code="E601")
    return n_gpus


def start_processes(n_processes: int, arguments: list[str]) -> int:
    """Run Python with these arguments in several processes of this machine, as torchrun does; return the exit code.

    A signal is passed on to all of them. If one fails, the others are ended, and its exit code is returned.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report their errors
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cpus() // n_processes)))  # of torch, in each process
    with tempfile.TemporaryDirectory(prefix="fastcxr-") as log_dir:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=n_processes, run_id=uuid.uuid4().hex, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", logs_specs=DefaultLogsSpecs(log_dir=log_dir),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as stop:
            return 128 + stop.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return failure.exitcode
            name = signal.Signals(-failure.exitcode).name
            print_warning(f"fastcxr: process {rank + 1} of {n_processes} was ended by {name}")
            return 128 - failure.exitcode
    return 0


def run_in_processes(
    prepare: Callable[[], tuple[Any, Path]],
    train: Callable[[Any, Path], int],
    describe_resumption: Callable[[Path], str],
) -> int:
    """Run a training in this process and the others that torchrun started, and return the exit code.

    Only the main process prints. The first failure is printed once, and ends all processes.

    Args:
        prepare: returns recipe and run folder; called in the main process only.
        train: trains, and prints the result in the main process.
        describe_resumption: returns how to resume the run of a folder.
    """
    from fastcxr.training.processes import call_on_main, join_processes

    describe: Callable[[], str] = partial(str, "Repeat the command")  # no folder is known yet
    with ExitStack() as stack:
        try:
            processes = stack.enter_context(join_processes())
            if not processes.is_main:
                stack.callback(setattr, console, "quiet", console.quiet)
                console.quiet = True
                log.addFilter(is_error)
                stack.callback(log.removeFilter, is_error)
            recipe, folder = call_on_main(prepare)
            describe = partial(describe_resumption, folder)
            return train(recipe, folder)
        except BaseException as error:  # noqa: BLE001  the process ends
            end_after_failure(error, describe)


def is_error(record: logging.LogRecord) -> bool:
    """Return whether a message is an error: only the main process logs others."""
    return record.levelno >= logging.ERROR


def make_torchrun_command(arguments: list[str]) -> str:
    """Return the command that starts fastcxr in as many processes as now; on several machines, with their options."""
    options, n_machines = ["--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]], os.environ["GROUP_WORLD_SIZE"]
    if n_machines != "1":
        options = ["--nnodes", n_machines, *options, "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST:PORT"]
    return shlex.join(["torchrun", *options, "-m", "fastcxr", *arguments])


def end_after_failure(error: BaseException, describe_resumption: Callable[[], str]) -> NoReturn:
    """Print the failure, if no other process has done so, and end this process with the exit code of the first one.

    The process ends at once: an orderly end would wait for processes that do not answer.
    """
    from fastcxr.training.processes import claim_failure, is_main_process, is_peer_loss

    for number in SIGNALS:  # torchrun ends all processes after the first one has ended
        signal.signal(number, signal.SIG_IGN)
    if is_lost := is_peer_loss(error):
        problem = "another process of this training has ended: it was killed, ran out of memory, or lost its machine"
        error = TrainingError(problem, describe_resumption(), code="E603")
    if isinstance(error, Interrupted):
        error = make_error(f"interrupted ({error})", describe_resumption(), error.exit_code)
    exit_code = error.exit_code if isinstance(error, FastcxrError) else 1
    is_first, exit_code = claim_failure(exit_code, 0.0 if is_main_process() and not is_lost else MAX_REPORT_SECONDS)
    if is_first:
        prefix = "" if is_main_process() else f"process {int(os.environ['LOCAL_RANK']) + 1}: "
        if isinstance(error, FastcxrError):
            print_error(error, prefix)
        else:
            print_warning(f"{prefix}{''.join(traceback.format_exception(error)).rstrip()}")
        write_json()
    for child in multiprocessing.active_children():
        child.kill()
    end_process(exit_code)
