"""The word for a precision becomes the arithmetic of this machine: bfloat16 where it is native, else float32."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise

import torch
from torch import nn

from fastcxr.models.grouped_conv import GroupedConvBackward
from fastcxr.models.preprocessing import InputSpec

BF16_CPU_CHECKS = (
    "_is_avx512_bf16_supported",
    "_is_amx_tile_supported",
)  # the CPU's own instructions, not an emulation

DTYPE_NAMES = {"bf16": "bfloat16", "fp32": "float32"}

MAX_STEM_COST_SHARE = 0.1  # of all multiplications: three convolutions of MobileNetV2 and EfficientNet
MAX_STEM_MULTIPLICATIONS = 32  # for one output value; a ResNet's 147 are much faster in bfloat16

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
    """A convolution that computes in float32, also inside an autocast to bfloat16."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


@torch.no_grad()
def keep_stem_fp32(network: nn.Module, input_spec: InputSpec) -> None:
    """Replace the class of the first convolutions of a network, so that they compute in float32.

    The stem consists of the first convolutions that a batch norm follows, while they have at most
    MAX_STEM_MULTIPLICATIONS and all together take at most MAX_STEM_COST_SHARE of all multiplications.
    """
    calls: list[tuple[nn.Module, int]] = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        calls.append((module, output[0, 0].numel()))

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    was_training, shape = network.training, (1, len(input_spec.mean), *[input_spec.image_size] * 2)
    try:
        network.eval()(torch.zeros(shape, device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    convs = [
        (layer, layer.weight.numel() * n_positions)
        for (layer, n_positions), (next_layer, _) in pairwise(calls)
        if type(layer) in (nn.Conv2d, Fp32Conv2d) and isinstance(next_layer, nn.BatchNorm2d)
    ]
    remaining = MAX_STEM_COST_SHARE * sum(n_multiplications for _, n_multiplications in convs)
    for conv, n_multiplications in convs:
        remaining -= n_multiplications
        if remaining < 0 or conv.weight[0].numel() > MAX_STEM_MULTIPLICATIONS:
            break
        conv.__class__ = Fp32Conv2d


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
