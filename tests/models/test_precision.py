"""Precision auto selects bfloat16 if the hardware supports it natively, else float16 on CUDA, else float32."""

import subprocess
import sys

import pytest
import torch

from fastcxr.models.precision import (
    BF16_CPU_CHECKS,
    autocast,
    describe_precision,
    forbid_tf32,
    is_native,
    resolve_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
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


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_on_gpus_from_ampere_on_and_fp16_on_earlier_ones(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", CUDA) == expected


def test_auto_is_fp32_on_other_devices():
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize(
    ("name", "device", "is_auto", "line"),
    [
        ("bf16", CPU, True, "precision: bfloat16, channels last (native on this device)"),
        ("fp32", CPU, True, "precision: float32, channels last (bfloat16 is not native on this device)"),
        (
            "fp16",
            CUDA,
            True,
            "precision: float16 with loss scaling, channels last (bfloat16 is not native on this device)",
        ),
        ("fp32", CPU, False, "precision: float32, channels last (requested)"),
        ("fp32", CUDA, False, "precision: float32 without TF32, channels last (requested)"),
        ("bf16", CPU, False, "precision: bfloat16, channels last (requested)"),
    ],
)
def test_the_precision_is_described_with_its_reason(name, device, is_auto, line):
    assert describe_precision(name, device, is_auto=is_auto) == line


def test_float16_is_native_on_cuda_only():
    assert is_native("fp16", CUDA)
    assert not is_native("fp16", CPU) and not is_native("fp16", torch.device("mps"))


def read_tf32_settings() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_fp32_on_cuda_means_no_tf32_inside_the_block_only():
    before = read_tf32_settings()
    assert before[1] == "tf32", "torch's default for convolutions"
    with forbid_tf32("fp32", CUDA):
        assert read_tf32_settings() == ("ieee", "ieee")
    assert read_tf32_settings() == before
    with pytest.raises(ZeroDivisionError), forbid_tf32("fp32", CUDA):
        raise ZeroDivisionError
    assert read_tf32_settings() == before


@pytest.mark.parametrize(("name", "device"), [("bf16", CUDA), ("fp16", CUDA), ("fp32", CPU)])
def test_other_precisions_and_devices_keep_the_settings_of_tf32(name, device):
    before = read_tf32_settings()
    with forbid_tf32(name, device):
        assert read_tf32_settings() == before


def test_autocast_applies_only_inside_its_block():
    layer, inputs = torch.nn.Linear(4, 4), torch.rand(2, 4)
    for precision, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.items():
        with autocast(precision, CPU):
            assert layer(inputs).dtype == dtype
    assert layer(inputs).dtype == layer.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_reused_without_page_faults():
    code = (
        "import resource, torch\n"
        "from fastcxr.models.precision import keep_malloc_arenas\n"
        "keep_malloc_arenas()\n"
        "for _ in range(6):\n"  # 256 MB each; fragmentation can prevent the reuse of some blocks, but not of all
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(64, 1024, 1024)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    faults = [int(count) for count in done.stdout.split()]
    assert min(faults[1:]) < 1000, "without it every allocation causes about 65,000 page faults"
