"""Device auto selects a GPU, and the clock is read after the device has finished its work."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastcxr.models import devices
from fastcxr.models.devices import find_device, read_clock
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
