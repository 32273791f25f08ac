"""The word for a precision becomes the arithmetic of this machine: bfloat16 where it is native, else float32."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import nn

from fastcxr.models.grouped_conv import GroupedConvBackward

BF16_CPU_CHECKS = (
    "_is_avx512_bf16_supported",
    "_is_amx_tile_supported",
)  # the CPU's own instructions, not an emulation

DTYPE_NAMES = {"bf16": "bfloat16", "fp32": "float32"}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of settings, from glibc's malloc.h


def resolve_precision(name: str, device: torch.device) -> str:
    """fp32 or bf16: what `name` says, or for "auto" bf16 where the device computes in it by itself."""
    if name != "auto":
        return name
    return "bf16" if is_bf16_native(device) else "fp32"


def describe_precision(name: str, device: torch.device) -> str:
    """What resolve_precision takes for this name, and why, in a line."""
    resolved = resolve_precision(name, device)
    hardware_support = "this device computes in it" if resolved == "bf16" else "this device has no bfloat16 of its own"
    return f"arithmetic: {DTYPE_NAMES[resolved]}, channels last ({hardware_support if name == 'auto' else 'asked for'})"


def is_bf16_native(device: torch.device) -> bool:
    """Whether the device has instructions of its own for bfloat16; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(getattr(torch.cpu, flag, bool)() for flag in BF16_CPU_CHECKS)


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Inside, a network computes in this precision; weights and losses stay in float32."""
    uses_grouped_backward = precision == "bf16" and device.type == "cpu"
    with (
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"),
        GroupedConvBackward() if uses_grouped_backward else nullcontext(),
    ):
        yield


class Fp32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 whatever is asked for around it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def keep_malloc_arenas() -> None:
    """Let the C library keep freed memory for the next batch, where it is glibc.

    By its own rules it gives every large piece back to the system at once, and a CPU then spends up to half of its time
    on getting the same pages again, emptied.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library, which has rules of its own
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
