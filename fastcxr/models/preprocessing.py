"""What a network wants to see, and gray bytes made into just that."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a network wants to see: a square of `image_size` pixels, each channel less `mean`, over `std`."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def blank(pixels: Pixels, device: torch.device | str = "cpu") -> torch.Tensor:
    """One image of nothing as a network would see it, to find out what comes out; shape (1, channels, size, size)."""
    return torch.zeros(1, len(pixels.mean), pixels.image_size, pixels.image_size, device=device)


def normalize(squares: torch.Tensor, pixels: Pixels) -> torch.Tensor:
    """Gray bytes, shape (n, 1, size, size), as the network's floats, shape (n, channels, size, size), channels last."""
    mean, std = (torch.tensor(v, device=squares.device).view(1, -1, 1, 1) for v in (pixels.mean, pixels.std))
    return ((squares.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
