"""The device that computes, and the time of work on it."""

import time

import torch

from fastcxr.errors import RecipeError


def find_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" takes a GPU where there is one. Raises RecipeError."""
    if name == "auto":
        return _find_default_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {name!r} is not here", "Give --device auto, or cpu") from error
    return device


def _find_default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps", 0) if torch.backends.mps.is_available() else torch.device("cpu")


def read_clock(device: torch.device) -> float:
    """Return the seconds of a clock once the device has completed its work; a GPU returns before it has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
