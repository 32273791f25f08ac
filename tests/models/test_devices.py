"""Device auto selects a GPU, and the clock is read after the device has finished its work."""

import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastcxr.errors import TrainingError
from fastcxr.models import devices
from fastcxr.models.devices import configure_device, find_device, read_clock
from fastcxr.models.state import LearnerState
from fastcxr.training import time_budget

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def accelerator(monkeypatch):
    """Replace the accelerator by one whose synchronization takes one second of a simulated clock."""
    accelerator = SimpleNamespace(now=0.0, waited=[])

    def synchronize(device):
        accelerator.waited.append(str(device))
        accelerator.now += 1.0

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=lambda: accelerator.now))
    return accelerator


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:1"])
def test_the_clock_is_read_after_the_device_has_finished(accelerator, device):
    assert read_clock(torch.device(device)) == 1.0
    assert accelerator.waited == [device]


def test_the_clock_of_a_cpu_is_read_without_synchronization(accelerator):
    assert read_clock(torch.device("cpu")) == 0.0
    assert not accelerator.waited


def test_the_time_of_a_training_step_includes_the_work_of_the_device(accelerator, monkeypatch):
    images = torch.zeros(2, 1, 4, 4)
    loaders = SimpleNamespace(
        device=torch.device("mps"), train=SimpleNamespace(one_batch=lambda: (images, images[:, 0, 0, 0]))
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1), torch.nn.Flatten(0))
    learner = SimpleNamespace(dls=loaders, model=network, fastcxr=LearnerState(), loss_func=torch.nn.MSELoss())
    monkeypatch.setattr(time_budget, "autocast", lambda *_: torch.enable_grad())
    assert time_budget.measure_step_seconds(learner) == 1.0
    assert accelerator.waited == ["mps"] * 2 * time_budget.N_TIMED_STEPS


def test_no_other_module_reads_the_clock_for_work_on_a_device():
    files = [
        *(ROOT / "fastcxr" / "training").glob("*.py"),
        *(ROOT / "fastcxr" / "models").glob("*.py"),
        ROOT / "fastcxr" / "workflows" / "scout.py",
    ]
    modules = [file.name for file in files if "perf_counter" in file.read_text(encoding="utf-8")]
    assert sorted(modules) == ["devices.py", "time_budget.py"]  # time_budget: wall-clock limit


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, False, "cuda:1"), (False, True, "mps:0"), (False, False, "cpu")]
)
def test_auto_selects_a_gpu_if_there_is_one(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(find_device("auto")) == device


def read_settings() -> tuple:
    cudnn = torch.backends.cudnn
    mode = torch.get_deterministic_debug_mode()
    return cudnn.benchmark, cudnn.deterministic, mode, os.environ.get(devices.CUBLAS_VARIABLE)


@pytest.mark.parametrize(
    ("device", "deterministic", "expected"),
    [
        ("cuda", False, (False, False, 0, None)),
        ("cuda", True, (False, True, 2, ":4096:8")),
        ("cpu", False, (False, False, 0, None)),
        ("cpu", True, (False, False, 0, None)),
    ],
)
def test_algorithms_are_selected_for_a_gpu_and_restored(monkeypatch, device, deterministic, expected):
    monkeypatch.delenv(devices.CUBLAS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", device == "cuda")  # fastai enables it on a GPU
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # an earlier test may have called set_seed
    before = read_settings()
    with suppress(KeyError), configure_device(torch.device(device), deterministic=deterministic):
        assert read_settings() == expected
        raise KeyError
    assert read_settings() == before == (device == "cuda", False, 0, None)


def test_a_workspace_of_cublas_that_the_user_set_is_kept(monkeypatch):
    monkeypatch.setenv(devices.CUBLAS_VARIABLE, ":16:8")
    with configure_device(torch.device("cuda"), deterministic=True):
        assert read_settings()[-1] == ":16:8"
    assert read_settings()[-1] == ":16:8"


def test_an_operation_that_is_not_deterministic_is_named_with_a_fix():
    error = RuntimeError("adaptive_pool_backward_cuda does not have a deterministic implementation, but you set ...")
    with (
        pytest.raises(TrainingError, match=r"adaptive_pool_backward_cuda.*deterministic=False"),
        configure_device(torch.device("cuda"), deterministic=True),
    ):
        raise error
    with pytest.raises(RuntimeError, match="other"), configure_device(torch.device("cuda"), deterministic=True):
        raise RuntimeError("other")


@pytest.mark.parametrize(("available", "expected"), [(1, 1), (64, 3)])
def test_torch_uses_no_more_threads_than_cpus_are_available(monkeypatch, available, expected):
    threads = [3]
    monkeypatch.setattr(devices, "count_cpus", lambda: available)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with configure_device(torch.device("cpu"), deterministic=False):
        assert threads[-1] == expected
    assert threads == ([3, 1, 3] if expected == 1 else [3])  # setting the same number would change rounding


@pytest.mark.gpu
def test_a_gpu_without_a_number_has_the_number_of_the_current_one():
    assert find_device("cuda") == torch.device("cuda", torch.cuda.current_device())
