"""Which convolution, batch norm and activation of a network follow each other, found by one pass of a picture."""

import weakref
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from fastcxr.training.arithmetic import ExactConvolution
from fastcxr.training.heads import head_of
from fastcxr.training.pixels import Pixels

Ends = dict[nn.Module | None, torch.Tensor]
EACH = 13  # of the values of a map; a divisor of no usual width
ACTIVATIONS = {  # as oneDNN calls them, with their numbers
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


@dataclass(eq=False)
class Chain:
    """A convolution, the batch norm that takes up its answer, and the activation that takes up that one's, if any.

    The activation is part of the batch norm in some networks (timm's BatchNormAct2d), a module of its own in others.
    """

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d
    places: int  # of the map that the convolution makes
    activation: nn.Module | None

    @property
    def cost(self) -> int:
        """Multiplications of the convolution."""
        return self.convolution.weight.numel() * self.places


def noise(pixels: Pixels) -> torch.Tensor:
    """One picture of noise, always the same; whoever else draws is left alone."""
    size = (1, len(pixels.mean), pixels.image_size, pixels.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


class Follower:
    """Hooks of one pass through a network: which chains there are, and what comes out at their ends."""

    def __init__(self):
        self.made: dict[int, tuple[weakref.ref[torch.Tensor], int, nn.Conv2d | Chain]] = {}
        self.chains: list[Chain] = []
        self.ends: Ends = {}
        self.calls: Counter[nn.Module] = Counter()
        self.taken: dict[nn.Module, nn.Conv2d | Chain | None] = {}

    def before(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep whose answer this module takes up, before it writes into it."""
        self.calls[module] += 1
        self.taken[module] = self.maker_of(inputs[0])

    def before_head(self, layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        """Keep what the head sees: as long as its weights are zero, its answers say nothing."""
        self.ends[layer] = inputs[0].clone()

    def after(self, module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Keep what this module made, and with what it goes together."""
        before = self.taken[module]
        if isinstance(module, nn.Conv2d):
            self.keep(output, module)
        elif isinstance(module, nn.BatchNorm2d):
            self.ends[module] = sample(output)
            if is_plain(before, module):
                self.chains.append(Chain(before, module, output[0, 0].numel(), getattr(module, "act", None)))
                self.keep(output, self.chains[-1])
        elif isinstance(before, Chain) and before.activation is None:
            before.activation = module
            self.ends[before.norm] = sample(output)

    def keep(self, output: torch.Tensor, maker: nn.Conv2d | Chain) -> None:
        """Keep who made this, for as long as it is there and nothing is written into it (`x += y`)."""
        self.made[id(output)] = (weakref.ref(output), output._version, maker)

    def maker_of(self, maps: torch.Tensor) -> nn.Conv2d | Chain | None:
        """Who made this, as it is now."""
        kept, version, maker = self.made.get(id(maps), (lambda: None, 0, None))
        return maker if kept() is maps and version == maps._version else None

    def found(self) -> list[Chain]:
        """The chains whose modules have one place in the network; an activation with several is left out of them."""
        for chain in self.chains:
            if chain.activation and self.calls[chain.activation] > 1:
                chain.activation = None
        return [chain for chain in self.chains if self.calls[chain.convolution] == self.calls[chain.norm] == 1]


def sample(answer: torch.Tensor) -> torch.Tensor:
    """A copy, for what follows may work in place, of so few values that those of a large network fit into memory."""
    return answer.flatten()[::EACH].clone()


def is_plain(convolution: nn.Module | Chain | None, norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm of constant statistics takes up the answer of a convolution without a way of its own."""
    return (
        type(convolution) in (nn.Conv2d, ExactConvolution)
        and convolution.padding_mode == "zeros"
        and isinstance(convolution.padding, tuple)
        and norm.running_mean is not None
    )


@torch.no_grad()
def follow(network: nn.Module, image: torch.Tensor) -> tuple[list[Chain], Ends]:
    """The chains of a network, and samples of what comes out at their ends.

    Beside them of other batch norms, and all that the layers of its head see and (None) the network answers.
    """
    follower, watched = Follower(), (nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS)
    modules = [module for module in network.modules() if isinstance(module, watched)]
    hooks = [module.register_forward_pre_hook(follower.before) for module in modules]
    hooks += [module.register_forward_hook(follower.after) for module in modules]
    layers = [module for module in head_of(network).modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks += [layer.register_forward_pre_hook(follower.before_head) for layer in layers]
    try:
        follower.ends[None] = network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return follower.found(), follower.ends
