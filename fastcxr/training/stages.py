"""A network is asked what its stages see of a picture, beside what its head answers."""

from collections.abc import Mapping

import torch
from torch import nn

from fastcxr.training.heads import is_channels_last, pool


def look(network: nn.Module, images: torch.Tensor, depths: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, shape (n, k), and the maps of the stages pooled over places, shape (n, all channels), single precision.

    `depths`: stages by the name of the module, in the order of the pass, with their channels; see heads.find_depths.
    """
    if isinstance(network, Watched):
        return network(images)
    seen, channels_last = [], is_channels_last(network)
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda stage, inputs, output, channels=channels: seen.append(pool(output, channels, channels_last).float())
        )
        for name, channels in depths.items()
    ]
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.cat(seen, dim=1)


class Watched(nn.Module):
    """A network that answers with what its stages see too, so that it can be converted as a whole."""

    def __init__(self, network: nn.Module, depths: Mapping[str, int]):
        super().__init__()
        self.network, self.depths = network, depths

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, size, size) -> (n, k) and (n, all channels of the stages)."""
        return look(self.network, images, self.depths)
