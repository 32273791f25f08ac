"""What a network wants to see, and gray bytes made into just that."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a network wants to see: a square of `image_size` pixels, each channel less `mean`, over `std`."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def make_blank_image(input_spec: InputSpec, device: torch.device | str = "cpu") -> torch.Tensor:
    """One image of nothing as a network would see it, to find out what comes out; shape (1, channels, size, size)."""
    return torch.zeros(1, len(input_spec.mean), input_spec.image_size, input_spec.image_size, device=device)


def normalize(images: torch.Tensor, input_spec: InputSpec) -> torch.Tensor:
    """Gray bytes, shape (n, 1, size, size), as the network's floats, shape (n, channels, size, size), channels last."""
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (input_spec.mean, input_spec.std))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
