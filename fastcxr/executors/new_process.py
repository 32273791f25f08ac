"""Run a call in a new process, for a worker whose own process cannot run it.

Workers of Dask draw from the global random number generator, and may not start processes by multiprocessing. The new
process ends with the one that started it: its standard input is closed then.
"""

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from typing import Any

from fastcxr.executors.worker import Outcome, end_after, end_worker

MAX_RESTARTS = 2  # of a call whose process was killed


def call_in_new_process(function: Callable[..., Any], args: tuple) -> Any:
    """Return the result of a call, or raise its error. A call whose process is killed is repeated.

    An Outcome has the number of repetitions.

    Raises BrokenExecutor if it is killed more than MAX_RESTARTS times.
    """
    call = pickle.dumps((function, args))
    for n_restarts in range(1 + MAX_RESTARTS):
        output = _run_process(call)
        if output:
            is_error, result = pickle.loads(output)  # noqa: S301  of the process that was started here
            if is_error:
                raise result
            return replace(result, n_restarts=n_restarts) if isinstance(result, Outcome) else result
    raise BrokenExecutor("the process of a piece was killed")


def _run_process(call: bytes) -> bytes:
    """Return what the new process writes, empty if it is killed."""
    command = [sys.executable, "-m", "fastcxr.executors.new_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(len(call).to_bytes(8) + call)
            process.stdin.flush()
        except BrokenPipeError:
            return b""
        output = process.stdout.read()  # until the process ends; its standard input stays open
        process.stdin.close()
    return output if process.returncode == 0 else b""


def _dump(outcome: tuple[bool, Any]) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception as error:  # a result or an error of a library that cannot be pickled
        return pickle.dumps((True, RuntimeError(f"{outcome[1]!r} cannot be pickled ({error})")))


def _main() -> None:
    """Run the call on standard input and write its result to standard output."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is not part of the result
    source = sys.stdin.buffer
    call = source.read(int.from_bytes(source.read(8)))
    end_after(source.read)
    warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # as the command line does
    try:
        function, args = pickle.loads(call)  # noqa: S301  of the process that started this one
        outcome = (False, function(*args))
    except Exception as error:
        outcome = (True, error)
    results.write(_dump(outcome))
    results.flush()
    end_worker(0)  # a thread still reads standard input


if __name__ == "__main__":
    _main()
