"""What the processes of one training exchange, decide and refuse."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fake_processes import act_as, one_connected_process, run_together
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, DeviceError, FastcxrError, RecipeError
from fastcxr.training import processes
from fastcxr.training.processes import (
    average_statistics,
    call_on_main,
    claim_failure,
    compute_row_blocks,
    decide,
    find_maximum,
    is_main_process,
    is_peer_loss,
    join_processes,
    leave_processes,
    require_equal_data,
    validate_recipe_for_processes,
)


def test_a_single_process_decides_for_itself_without_any_exchange():
    assert is_main_process() and leave_processes()
    assert (decide(3), call_on_main(lambda: 4), find_maximum([1, 0])) == (3, 4, [1, 0])
    network = nn.BatchNorm1d(2)
    average_statistics(network)
    assert torch.equal(network.running_mean, torch.zeros(2))
    require_equal_data(lambda: pytest.fail("computed without need"))
    validate_recipe_for_processes(Recipe(batch_size="auto", folds=3))


def test_one_connected_process_decides_for_itself():
    with one_connected_process():
        assert decide({"epochs": 3}) == {"epochs": 3}
        assert find_maximum([2, 0]) == [2, 0]
        require_equal_data(lambda: b"1")
        assert leave_processes()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # for the end of the block


@pytest.mark.parametrize(
    ("options", "error", "fix"),
    [
        ({"batch_size": "auto"}, RecipeError, "batch_size=64"),
        ({"batch_size": 3}, RecipeError, "batch_size=4"),
        ({"folds": 3}, RecipeError, "fold=1"),
        ({"leave_one_source_out": True}, RecipeError, "fold=1"),
        ({"device": "cuda:1"}, RecipeError, "device='auto'"),
        ({"sync_batch_norm": True}, RecipeError, "sync_batch_norm"),
    ],
)
def test_options_that_several_processes_cannot_use_are_rejected(monkeypatch, options, error, fix):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with act_as(1, 4), pytest.raises(error) as caught:
        validate_recipe_for_processes(Recipe(**options))
    assert caught.value.code == "E602" and fix in caught.value.fix


def test_more_processes_than_gpus_are_rejected_except_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with act_as(0, 4):
        validate_recipe_for_processes(Recipe(device="cpu", folds=3, fold=2))
        with pytest.raises(DeviceError, match="E601.*4 processes.*2 GPUs"):
            validate_recipe_for_processes(Recipe())


def test_the_main_process_receives_all_blocks_in_order(monkeypatch):
    monkeypatch.setattr(processes, "MAX_BLOCK_ROWS", 2)
    values, sent = np.arange(22, dtype=np.float32).reshape(11, 2), {}

    def compute(stop, *, first):  # a batch of one row at a time
        for row in range(first, stop):
            yield slice(row, row + 1), values[row : row + 1]

    def send(block, blocks, main):
        sent[processes._state.processes.rank].append(block.clone())
        for rank, received in enumerate(blocks or ()):
            received.copy_(sent[rank][len(sent[0]) - 1])

    monkeypatch.setattr(dist, "gather", send)
    for rank in (2, 1, 0):  # the main process last: the others have sent
        sent[rank] = []
        with act_as(rank, 3):
            yielded = list(compute_row_blocks(compute, slice(1, 11), 2))
        assert not yielded or rank == 0
    assert [rows.start for rows, _ in yielded] == [1, 3, 5, 7, 9]
    assert np.array_equal(np.concatenate([part for _, part in yielded]), values[1:])
    assert [rows for rows, _ in compute_row_blocks(compute, slice(9, 11), 2)] == [slice(9, 10), slice(10, 11)]


def test_statistics_in_training_mode_are_averaged_and_frozen_ones_are_not(monkeypatch):
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    network[0].running_mean[:] = 4.0
    network[1].running_mean[:] = 4.0
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.add_(torch.tensor([1.0, 1, 0, 0])))
    with act_as(0, 2):
        average_statistics(network)
    assert torch.equal(network[0].running_mean, torch.tensor([3.0, 3.0]))  # 4 / 2 + 2 / 2 of the other process
    assert torch.equal(network[0].running_var, torch.tensor([0.5, 0.5]))
    assert torch.equal(network[1].running_mean, torch.tensor([4.0, 4.0]))


def test_the_first_failure_is_reported_once_with_one_exit_code():
    store = dist.HashStore()
    results = []
    for rank, code in ((2, 66), (0, 1), (1, 143)):
        with act_as(rank, 3, store):
            results.append(claim_failure(code, max_wait_seconds=0.1 if rank == 2 else 0.0))
    assert results == [(True, 66), (False, 66), (False, 66)]
    assert claim_failure(5) == (True, 5)


def test_data_that_differ_between_processes_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, "decide", lambda digest: b"main")
    monkeypatch.setattr(processes, "find_maximum", lambda numbers: numbers)
    with act_as(1, 2), pytest.raises(DataError, match="E604"):
        require_equal_data(lambda: b"other")


def test_errors_of_a_lost_process_are_recognized():
    assert is_peer_loss(RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"))
    assert is_peer_loss(dist.DistBackendError("NCCL"))
    assert not is_peer_loss(RuntimeError("size mismatch")) and not is_peer_loss(ValueError("gloo"))


def test_fastai_does_not_see_several_processes(monkeypatch):
    from fastai.torch_core import num_distrib, rank_distrib

    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in (variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 1)]))
    assert num_distrib() == 1
    with join_processes() as found:
        assert (num_distrib(), rank_distrib()) == (0, 0) and found.is_main
    assert num_distrib() == 1 and processes.find_processes() is None


def test_only_the_main_process_is_the_main_process():
    assert run_together(lambda rank: is_main_process(), 3) == [True, False, False]
    assert issubclass(DeviceError, FastcxrError)
