"""Time of work on a device."""

import time

import torch


def read_clock(device: torch.device) -> float:
    """Return the seconds of a clock once the device has completed its work; a GPU returns before it has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
