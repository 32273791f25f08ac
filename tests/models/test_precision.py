"""Precision auto selects bfloat16 if the hardware supports it natively; weights stay in float32."""

import subprocess
import sys

import pytest
import torch

from fastcxr.models import precision
from fastcxr.models.precision import BF16_CPU_CHECKS, autocast, describe_precision, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_an_explicit_precision_is_used(name, monkeypatch):
    for device in (CPU, CUDA, torch.device("mps")):
        assert resolve_precision(name, device) == name


@pytest.mark.parametrize(("flag", "expected"), [*[(name, "bf16") for name in BF16_CPU_CHECKS], ("none", "fp32")])
def test_auto_is_bf16_on_a_cpu_with_bfloat16_instructions(monkeypatch, flag, expected):
    for name in BF16_CPU_CHECKS:
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == flag)
    assert resolve_precision("auto", CPU) == expected


def test_auto_is_fp32_if_torch_has_no_check_for_bfloat16_instructions(monkeypatch):
    for name in BF16_CPU_CHECKS:
        monkeypatch.delattr(torch.cpu, name)
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_gpus_from_ampere_on(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


def test_auto_is_fp32_on_other_devices():
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("name", "native", "line"),
    [
        ("auto", True, "precision: bfloat16, channels last (native on this device)"),
        ("auto", False, "precision: float32, channels last (bfloat16 is not native on this device)"),
        ("fp32", True, "precision: float32, channels last (requested)"),
        ("bf16", False, "precision: bfloat16, channels last (requested)"),
    ],
)
def test_the_precision_is_described_with_its_reason(monkeypatch, name, native, line):
    monkeypatch.setattr(precision, "is_bf16_native", lambda device: native)
    assert describe_precision(name, CPU) == line


def test_autocast_applies_only_inside_its_block():
    layer, inputs = torch.nn.Linear(4, 4), torch.rand(2, 4)
    with autocast("bf16", CPU):
        assert layer(inputs).dtype == torch.bfloat16
    with autocast("fp32", CPU):
        assert layer(inputs).dtype == torch.float32
    assert layer(inputs).dtype == layer.weight.dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_reused_without_page_faults():
    code = (
        "import resource, torch\n"
        "from fastcxr.models.precision import keep_malloc_arenas\n"
        "keep_malloc_arenas()\n"
        "for _ in range(12):\n"  # 256 MB each; fragmentation can prevent the reuse of some blocks, but not of all
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(64, 1024, 1024)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    faults = [int(count) for count in done.stdout.split()]
    assert min(faults[1:]) < 1000, "without it every allocation causes about 65,000 page faults"
