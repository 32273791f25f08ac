"""Numeric precision of a network: bfloat16 if the hardware supports it natively, else float16 or float32."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import nn

from fastcxr.models.grouped_conv import GroupedConvBackward
from fastcxr.models.heads import run_in_eval_mode
from fastcxr.models.preprocessing import InputSpec, make_blank_image

BF16_CPU_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # functions of torch.cpu

DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

MAX_STEM_COST_SHARE = 0.1  # of all multiplications: three convolutions of MobileNetV2 and EfficientNet
MAX_STEM_MULTIPLICATIONS = 32  # for one output value; a ResNet's 147 are much faster in bfloat16

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameter numbers in glibc's malloc.h


def resolve_precision(name: str, device: torch.device) -> str:
    """Return `name`, or for "auto" the first of bf16, fp16 and fp32 that the device supports natively."""
    if name != "auto":
        return name
    return next(precision for precision in ("bf16", "fp16", "fp32") if is_native(precision, device))


def describe_precision(precision: str, device: torch.device, *, is_auto: bool) -> str:
    """Describe a resolved precision and the reason for it in one line. `is_auto`: whether it comes from "auto"."""
    hardware_support = "native" if precision == "bf16" else "bfloat16 is not native"
    reason = f"{hardware_support} on this device" if is_auto else "requested"
    addition = " with loss scaling" if precision == "fp16" else ""
    if precision == "fp32" and device.type == "cuda":
        addition = " without TF32"
    return f"precision: {DTYPE_NAMES[precision]}{addition}, channels last ({reason})"


def is_native(precision: str, device: torch.device) -> bool:
    """Return whether the device has instructions for this precision; emulated ones are slower than float32.

    float16 counts as native on CUDA only: few CPUs have it, and on Apple GPUs it was not measured.
    """
    if precision == "bf16":
        return is_bf16_native(device)
    return precision == "fp32" or (precision == "fp16" and device.type == "cuda")


def is_bf16_native(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and any(getattr(torch.cpu, flag, bool)() for flag in BF16_CPU_CHECKS)


@contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Run networks in this precision inside the block; weights and losses stay in float32."""
    uses_grouped_backward = precision == "bf16" and device.type == "cpu"
    dtype = AUTOCAST_DTYPES.get(precision)
    with (
        forbid_tf32(precision, device),
        torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        GroupedConvBackward() if uses_grouped_backward else nullcontext(),
    ):
        yield


@contextmanager
def forbid_tf32(precision: str, device: torch.device) -> Iterator[None]:
    """Compute float32 products and convolutions on CUDA without TF32 in this block if the precision is fp32.

    TF32 rounds the factors to 10 bits; torch uses it for convolutions by default. Other precisions keep the settings.
    """
    if precision != "fp32" or device.type != "cuda":
        yield
        return
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    previous = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, setting in zip(backends, previous, strict=True):
            backend.fp32_precision = setting


class Fp32Conv2d(nn.Conv2d):
    """A convolution that computes in float32, also under autocast."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the convolution of the maps in float32."""
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def is_plain_conv(module: object) -> TypeGuard[nn.Conv2d]:
    """Return whether a module is a Conv2d or Fp32Conv2d; other subclasses may compute something else."""
    return type(module) in (nn.Conv2d, Fp32Conv2d)


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has 2D batch norms, which most transformers do not have."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def keep_stem_fp32(network: nn.Module, input_spec: InputSpec) -> None:
    """Keep the stem of a network in float32 under bfloat16 autocast, by changing the class of its convolutions.

    The stem consists of the first convolutions that a batch norm follows, as long as each has at most
    MAX_STEM_MULTIPLICATIONS and all together at most MAX_STEM_COST_SHARE of all multiplications.
    """
    if not has_batch_norm(network):
        return
    calls: list[tuple[nn.Module, int]] = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        calls.append((module, output[0, 0].numel()))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                hooks.enter_context(module.register_forward_hook(record))
        run_in_eval_mode(network, make_blank_image(input_spec, next(network.parameters()).device))
    convs = [
        (layer, layer.weight.numel() * n_positions)
        for (layer, n_positions), (next_layer, _) in pairwise(calls)
        if is_plain_conv(layer) and isinstance(next_layer, nn.BatchNorm2d)
    ]
    remaining = MAX_STEM_COST_SHARE * sum(n_multiplications for _, n_multiplications in convs)
    for conv, n_multiplications in convs:
        remaining -= n_multiplications
        if remaining < 0 or conv.weight[0].numel() > MAX_STEM_MULTIPLICATIONS:
            break
        conv.__class__ = Fp32Conv2d


def keep_malloc_arenas() -> None:
    """Configure glibc's malloc to keep freed memory for the next batch; other C libraries do not change.

    By default glibc returns large blocks to the system at once, and a CPU then spends up to half of its time on page
    faults.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
