"""Trainings in several processes on the CPU, started as torchrun and `fastcxr train --gpus` start them."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

SUPPORT = Path(__file__).parent
COMMAND = "import tiny_network; from fastcxr.cli.main import main; main()"
LAUNCHER = "import sys; from fastcxr.cli.processes import start_processes; sys.exit(start_processes({}, sys.argv[1:]))"
MAX_SECONDS = 240  # of a training that hangs


def make_environment() -> dict[str, str]:
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run_ranks(script: str, *arguments: str, size: int = 2) -> None:
    """Run a Python script in several processes, whose store is in this process, as it is in that of torchrun."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=make_environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(MAX_SECONDS) for process in ranks] == [0] * size
    finally:
        for process in ranks:
            process.kill()


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
