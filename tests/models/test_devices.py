"""The fastest device is found by itself, and has completed its work when the clock is read."""

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
def slow(monkeypatch):
    """Replace the accelerator by one that needs a second for each wait, and the clock by one that only it advances."""
    slow = SimpleNamespace(now=0.0, waited=[])

    def synchronize(device):
        slow.waited.append(str(device))
        slow.now += 1.0

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=lambda: slow.now))
    return slow


@pytest.mark.parametrize("device", ["mps", "cuda", "cuda:1"])
def test_the_clock_is_read_when_the_device_is_done(slow, device):
    assert read_clock(torch.device(device)) == 1.0
    assert slow.waited == [device]


def test_on_a_cpu_nothing_is_waited_for(slow):
    assert read_clock(torch.device("cpu")) == 0.0
    assert not slow.waited


def test_a_step_is_timed_to_its_end_on_a_device(slow, monkeypatch):
    part = torch.zeros(2, 1, 4, 4)
    loaders = SimpleNamespace(
        device=torch.device("mps"), train=SimpleNamespace(one_batch=lambda: (part, part[:, 0, 0, 0]))
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 1), torch.nn.Flatten(0))
    learner = SimpleNamespace(dls=loaders, model=network, fastcxr=LearnerState(), loss_func=torch.nn.MSELoss())
    monkeypatch.setattr(time_budget, "autocast", lambda *_: torch.enable_grad())
    assert time_budget._time_step(learner) == 1.0
    assert slow.waited == ["mps", "mps"]


def test_no_other_place_reads_the_clock_for_work_on_a_device():
    files = [
        *(ROOT / "fastcxr" / "training").glob("*.py"),
        *(ROOT / "fastcxr" / "models").glob("*.py"),
        ROOT / "fastcxr" / "workflows" / "scout.py",
    ]
    reading = [file.name for file in files if "perf_counter" in file.read_text(encoding="utf-8")]
    assert sorted(reading) == ["devices.py", "time_budget.py"]  # a time limit is one of the wall clock


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, False, "cuda:1"), (False, True, "mps:0"), (False, False, "cpu")]
)
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(find_device("auto")) == device
