"""Input size and normalization of a network, and the conversion of gray images to its input."""

from dataclasses import dataclass

import torch

from fastcxr.models.devices import move_async


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Image size (pixels) of a network's input, and mean and std of each channel for gray values from 0 to 1."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def make_blank_image(input_spec: InputSpec, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return an input of zeros for a trial forward pass, shape (1, channels, size, size)."""
    return torch.zeros(1, len(input_spec.mean), input_spec.image_size, input_spec.image_size, device=device)


def normalize(images: torch.Tensor, input_spec: InputSpec) -> torch.Tensor:
    """Return gray images, uint8, shape (n, 1, size, size), as network input in channels-last memory format.

    The result is float32 with shape (n, channels, size, size).
    """
    values = torch.tensor([input_spec.mean, input_spec.std])
    mean, std = move_async(values, images.device)[:, None, :, None, None]
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
