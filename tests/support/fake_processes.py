"""Several processes of one training, simulated one after the other in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastcxr.training import processes
from fastcxr.training.processes import Processes


def make_processes(rank: int, size: int, store: Any = None) -> Processes:
    return Processes(rank=rank, size=size, local_rank=rank, local_size=size, store=store)


@contextmanager
def act_as(rank: int, size: int, store: Any = None) -> Iterator[Processes]:
    """Make this process one of several for the functions that exchange nothing, or whose exchange is replaced."""
    found = make_processes(rank, size, store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes._state, "processes", found)
        yield found


@contextmanager
def one_connected_process() -> Iterator[Processes]:
    """Connect this process as the only one of its group: everything is exchanged, with itself."""
    store = dist.HashStore()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        with act_as(0, 1, store) as found:
            yield found
    finally:
        dist.destroy_process_group()


def gather_from(monkeypatch: pytest.MonkeyPatch, parts: list[torch.Tensor]) -> None:
    """Let the next exchanges of all_gather return these parts, each filled up with NaN or -1."""

    def gather(received: list[torch.Tensor], own: torch.Tensor) -> None:
        for tensor, part in zip(received, parts, strict=True):
            tensor.fill_(torch.nan if own.is_floating_point() else -1)
            tensor[: len(part)] = part.detach()

    monkeypatch.setattr(dist, "all_gather", gather)


def run_together(function: Callable[[int], Any], size: int) -> list[Any]:
    """Call a function once as each process, in order, and return the results."""
    results = []
    for rank in range(size):
        with act_as(rank, size):
            results.append(function(rank))
    return results
