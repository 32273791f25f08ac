"""Trainings in several processes on the CPU, started as torchrun and `fastcxr train --gpus` start them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

SUPPORT = Path(__file__).parent
COMMAND = "import tiny_network; from fastcxr.cli.main import main; main()"
LAUNCHER = "import sys; from fastcxr.cli.processes import start_processes; sys.exit(start_processes({}, sys.argv[1:]))"
MAX_SECONDS = 240  # of a training that hangs


def make_environment() -> dict[str, str]:
    path = os.pathsep.join(
        [str(SUPPORT), str(SUPPORT.parent / "workflows"), str(SUPPORT.parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def start_second_rank(script: str, argument: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a script as the second of two processes, and make this process the first one, for the block."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    environment = make_environment() | shared | {"RANK": "1", "LOCAL_RANK": "1"}
    other = subprocess.Popen([sys.executable, "-c", script, argument], env=environment)
    with patch.context() as own:
        for name, value in (shared | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            own.setenv(name, value)
        try:
            yield
            assert other.wait(MAX_SECONDS) == 0
        finally:
            other.kill()


def start_command(*arguments: str, size: int, where: Path) -> subprocess.Popen:
    """Start a command of fastcxr in several processes, or with size 1 in a plain process."""
    parts = ["-c", COMMAND, *arguments] if size == 1 else ["-c", LAUNCHER.format(size), "-c", COMMAND, *arguments]
    return subprocess.Popen(
        [sys.executable, *parts], cwd=where, env=make_environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Return the exit code and standard error of a started command."""
    try:
        _, shown = process.communicate(timeout=MAX_SECONDS)
    finally:
        process.send_signal(signal.SIGTERM)  # without effect if it has ended
    return process.returncode, shown


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until a file exists."""
    end = time.monotonic() + MAX_SECONDS
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, f"no {path}: {process.communicate(timeout=60)}"
        time.sleep(0.02)


def find_rank(launcher: subprocess.Popen, rank: int) -> int:
    """Return the process id of one of the processes that a launcher started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return next(int(child) for child in children if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text())
