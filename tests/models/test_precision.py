"""bfloat16 where the machine has it and the recipe lets it choose; weights stay in single precision."""

import subprocess
import sys

import pytest
import torch

from fastcxr.models import precision
from fastcxr.models.precision import BF16_CPU_CHECKS, autocast, describe_precision, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_is_named_is_taken(name, monkeypatch):
    for device in (CPU, CUDA, torch.device("mps")):
        assert resolve_precision(name, device) == name


@pytest.mark.parametrize(("flag", "expected"), [*[(name, "bf16") for name in BF16_CPU_CHECKS], ("none", "fp32")])
def test_a_processor_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, flag, expected):
    for name in BF16_CPU_CHECKS:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == flag)
    assert resolve_precision("auto", CPU) == expected


def test_a_torch_that_does_not_tell_means_single_precision(monkeypatch):
    for name in BF16_CPU_CHECKS:
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_a_gpu_computes_in_bfloat16_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


def test_other_devices_compute_in_single_precision():
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("name", "native", "line"),
    [
        ("auto", True, "arithmetic: bfloat16, channels last (this device computes in it)"),
        ("auto", False, "arithmetic: float32, channels last (this device has no bfloat16 of its own)"),
        ("fp32", True, "arithmetic: float32, channels last (asked for)"),
        ("bf16", False, "arithmetic: bfloat16, channels last (asked for)"),
    ],
)
def test_what_was_chosen_is_told_with_its_reason(monkeypatch, name, native, line):
    monkeypatch.setattr(precision, "is_bf16_native", lambda device: native)
    assert describe_precision(name, CPU) == line


def test_the_arithmetic_holds_inside_and_ends_with_the_block():
    layer, numbers = torch.nn.Linear(4, 4), torch.rand(2, 4)
    with autocast("bf16", CPU):
        assert layer(numbers).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(numbers).dtype == torch.float32
    assert layer(numbers).dtype == layer.weight.dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_a_large_piece_of_memory_that_is_freed_is_there_for_the_next_batch():
    code = (
        "import resource, torch\n"
        "from fastcxr.models.precision import keep_malloc_arenas\n"
        "keep_malloc_arenas()\n"
        "for _ in range(12):\n"  # 256 MB each; a small piece may stand in the way of a next one, but not of all
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(64, 1024, 1024)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    words = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    faults = [int(word) for word in words.stdout.split()]
    assert min(faults[1:]) < 1000, "without it the same memory is fetched page by page each time: some 65,000 faults"
