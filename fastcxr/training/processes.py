"""The processes of one training: who they are, and what they exchange on the CPU.

torchrun starts them and sets their environment variables. Without join_processes, and so in an ordinary training, every
function here returns at once. Decisions that depend on time or on a file are those of the main process, rank 0.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from fastcxr.errors import DataError, DeviceError, RecipeError

T = TypeVar("T")
MAIN_RANK = 0
MAX_BLOCK_ROWS = 512  # computed by a process before it sends them
CPU = torch.device("cpu")
# the main process of a machine may decode images for hours while the others wait; torchrun ends them if one dies
TIMEOUT = timedelta(hours=24)
# fastai reads these: it then waits in Learner.load for processes that do not call it, and Learner.save does nothing
# outside rank 0, so that its learning rate finder would leave other weights in each process
FASTAI_VARIABLES = ("RANK", "WORLD_SIZE")
FAILURE_KEY, FAILURE_POLL_SECONDS = "fastcxr/failed", 0.05


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of this training, seen from one of them.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes on all machines.
        local_rank: number of this process on its machine, which is also that of its GPU.
        local_size: number of processes on this machine.
        store: key-value store of torchrun, which outlives the processes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    store: Any

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and decides."""
        return self.rank == MAIN_RANK


@dataclass
class _State:
    processes: Processes | None = None


_state = _State()


def find_processes() -> Processes | None:
    """Return the processes of this training, or None if it has one process."""
    return _state.processes


def is_main_process() -> bool:
    """Return whether this process writes the files and decides, as the only process of a training does."""
    return _state.processes is None or _state.processes.is_main


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun started, each with its GPU if there are GPUs, for the length of the block.

    Raises DeviceError if the machine has fewer GPUs than processes.
    """
    values = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    rank, size, local_rank, local_size = values
    n_gpus = torch.cuda.device_count()
    if n_gpus and local_size <= n_gpus:
        torch.cuda.set_device(local_rank)
    store, _, _ = next(iter(rendezvous("env://")))
    # exchanges of tensors on the CPU do not wait for a GPU
    backend = "cpu:gloo,cuda:nccl" if n_gpus else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, world_size=size, rank=rank, store=store)
    hidden = {name: os.environ.pop(name) for name in FASTAI_VARIABLES}
    _state.processes = Processes(rank=rank, size=size, local_rank=local_rank, local_size=local_size, store=store)
    try:
        yield _state.processes
        leave_processes()  # not after an error: it could wait for a process that has ended
    finally:
        _state.processes = None
        os.environ.update(hidden)


def leave_processes() -> bool:
    """Disconnect the processes after their training, and return whether this is the main one, which goes on alone."""
    is_main = is_main_process()
    if _state.processes is not None:
        wait_for_all()
        dist.destroy_process_group()
        _state.processes = None
    return is_main


def validate_recipe_for_processes(recipe: Any) -> None:
    """Raise RecipeError for options that several processes cannot use, DeviceError for too few GPUs."""
    processes = _state.processes
    if processes is None:
        return
    n_gpus = 0 if recipe.device == "cpu" else torch.cuda.device_count()
    if recipe.is_multi_run:
        fix = "Run one fold per command with `fold=1`, or all folds without torchrun with `jobs=2`"
        raise RecipeError("several folds cannot be run by one group of processes", fix, code="E602")
    if recipe.batch_size == "auto":
        problem = "`batch_size='auto'` measures the memory of one process"
        raise RecipeError(problem, "Pass `batch_size=64` or another number for all processes together", code="E602")
    if recipe.batch_size < processes.size:
        problem = f"a batch of {recipe.batch_size} images cannot be divided among {processes.size} processes"
        raise RecipeError(problem, f"Pass `batch_size={processes.size}` or more, or start fewer processes", code="E602")
    if recipe.device not in ("auto", "cpu", "cuda"):
        problem = f"device {recipe.device!r} cannot be used by {processes.size} processes"
        raise RecipeError(problem, "Pass `device='auto'`, which gives each process its own GPU", code="E602")
    if n_gpus and n_gpus < processes.local_size:
        problem = f"{processes.local_size} processes were started on a machine with {n_gpus} GPUs"
        raise DeviceError(problem, "Start one process per GPU, or pass `device='cpu'`", code="E601")
    if recipe.sync_batch_norm and not n_gpus:
        problem = "`sync_batch_norm=True` needs one GPU per process, and this training uses CPUs"
        raise RecipeError(problem, "Leave `sync_batch_norm` out", code="E602")


def decide(value: T) -> T:
    """Return the value that the main process passes; in other processes the argument is ignored."""
    if _state.processes is None:
        return value
    box = [value if _state.processes.is_main else None]
    dist.broadcast_object_list(box, MAIN_RANK, device=CPU)
    return box[0]  # pyright: ignore[reportReturnType]


def call_on_main(function: Callable[[], T]) -> T:
    """Call the function in the main process only, and return its result in all processes."""
    return decide(function() if is_main_process() else None)  # pyright: ignore[reportReturnType]


def find_maximum(numbers: Sequence[int]) -> list[int]:
    """Return the largest of each number over all processes."""
    if _state.processes is None:
        return list(numbers)
    values = torch.tensor(numbers)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values.tolist()


def average_statistics(network: nn.Module) -> None:
    """Replace the running statistics of batch norm in training mode by their mean over all processes."""
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    buffers = [one for layer in layers for one in layer.buffers(recurse=False) if one.is_floating_point()]
    if _state.processes is None or not buffers:
        return
    values = torch.cat([buffer.flatten() for buffer in buffers]) / _state.processes.size
    dist.all_reduce(values)
    for buffer, mean in zip(buffers, values.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def wait_for_all() -> None:
    """Wait until all processes are here."""
    find_maximum([0])


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Run the block in one process of each machine, then in the others: they find its results in the caches."""
    processes = _state.processes
    if processes is not None and processes.local_rank:
        wait_for_all()
    yield
    if processes is not None and not processes.local_rank:
        wait_for_all()


def require_equal_data(compute_digest: Callable[[], bytes]) -> None:
    """Raise DataError if the processes have read other data, by a checksum of images, labels and splits."""
    if _state.processes is None:
        return
    digest = compute_digest()
    is_different = find_maximum([decide(digest) != digest])[0]
    if is_different:
        fix = "Copy the same images and tables to each machine, and pass the same options"
        raise DataError("the processes have read different images, labels or splits", fix, code="E604")


def compute_row_blocks(
    compute: Callable[..., Iterator[tuple[slice, np.ndarray]]], rows: slice, n_columns: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield consecutive rows and their values, shape (n, n_columns), float32; of several processes, in the main one.

    Each process computes a block of rows in turn, and the main process receives it.

    Args:
        compute: yields the rows from `first` to before its first argument, and their values.
        rows: rows to compute, with start and stop.
        n_columns: number of values of a row.
    """
    processes = _state.processes
    if processes is None:
        yield from compute(rows.stop, first=rows.start)
        return
    n_block = min(MAX_BLOCK_ROWS, -(-(rows.stop - rows.start) // processes.size)) or 1
    for start in range(rows.start, rows.stop, n_block * processes.size):
        bounds = [min(start + rank * n_block, rows.stop) for rank in range(processes.size + 1)]
        block = torch.zeros(n_block, n_columns)
        first, stop = bounds[processes.rank : processes.rank + 2]
        for part, values in compute(stop, first=first):
            block[part.start - first : part.stop - first] = torch.from_numpy(values)
        blocks = [torch.empty_like(block) for _ in range(processes.size)] if processes.is_main else None
        dist.gather(block, blocks, MAIN_RANK)
        for (first, stop), gathered in zip(pairwise(bounds), blocks or (), strict=False):
            if first < stop:
                yield slice(first, stop), gathered[: stop - first].numpy()


def is_peer_loss(error: BaseException) -> bool:
    """Return whether the error is a consequence of the end of another process of the training."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def claim_failure(exit_code: int, max_wait_seconds: float = 0.0) -> tuple[bool, int]:
    """Return whether this process is the first that reports a failure of the training, and the first exit code.

    Args:
        exit_code: that of this process.
        max_wait_seconds: time in which another process can report first.
    """
    processes = _state.processes
    if processes is None:
        return True, exit_code
    with suppress(RuntimeError):  # the store has ended too
        end = time.monotonic() + max_wait_seconds
        while time.monotonic() < end and not processes.store.check([FAILURE_KEY]):
            time.sleep(FAILURE_POLL_SECONDS)
        first = processes.store.compare_set(FAILURE_KEY, "", f"{processes.rank} {exit_code}").split()
        return int(first[0]) == processes.rank, int(first[1])
    return True, exit_code
