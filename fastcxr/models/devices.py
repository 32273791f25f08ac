"""Selection of the compute device, and a clock that waits until the device has finished its work."""

import time

import torch

from fastcxr.errors import RecipeError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" selects a GPU if there is one.

    Raise RecipeError if the device is not available.
    """
    if name == "auto":
        return _find_default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {name!r} is not available", "Pass `device='auto'` or `device='cpu'`") from error
    return device


def _find_default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")


def find_float64_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU for an Apple GPU, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def read_clock(device: torch.device) -> float:
    """Return a time in seconds, read after the device has finished all work given to it; GPUs work asynchronously."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
