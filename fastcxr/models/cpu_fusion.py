"""A network that only looks, not learns, can be quicker about it: see quicken.

The statistics of a batch norm are constants then, so that it can become part of the convolution before it, and with
oneDNN the activation after it too: what comes out is the same within rounding, and two passes over every map are saved.
"""

import copy
import logging
import weakref
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastcxr.models.heads import head_of
from fastcxr.models.precision import ExactConvolution, computing
from fastcxr.models.preprocessing import Pixels

log = logging.getLogger("fastcxr")
TOLERANCE = 1e-3  # of the norm of what comes out; rounding in float32 is far below
Ends = dict[nn.Module | None, torch.Tensor]
EACH = 13  # of the values of a map; a divisor of no usual width
ACTIVATIONS = {  # as oneDNN calls them, with their numbers
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
SHARE = 0.1  # of all multiplications: three convolutions of MobileNetV2 and EfficientNet
SMALL = 32  # multiplications for one value; larger ones, as a ResNet begins with, gain much from bfloat16


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


class Joint:
    """What stands in place of a convolution's own forward: its chain in one pass, without the activation if `bare`.

    The bias stays in float32. Rounded to bfloat16 it is wrong alike in every place of a map, which no pooling evens
    out: pooled maps of five single convolutions came out 9 to 41 times less exact.
    """

    def __init__(self, chain: Chain, bare: bool):
        one, norm = chain.convolution, chain.norm
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = fuse_conv_bn_weights(one.weight, one.bias, *statistics)
        self.weight, self.bias = weight.detach(), bias.detach()
        self.place = (one.padding, one.stride, one.dilation, one.groups)
        self.activation = ("none", []) if bare else ACTIVATIONS[type(chain.activation)]

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        maps, (padding, stride, dilation, groups) = maps.to(self.weight.dtype), self.place
        if not has_onednn(maps.device):
            return conv2d(maps, self.weight, self.bias, stride, padding, dilation, groups)
        choices = (padding, stride, dilation, groups, *self.activation, "")
        return torch.ops.mkldnn._convolution_pointwise(maps, self.weight, self.bias, *choices)


def has_onednn(device: torch.device) -> bool:
    """Whether there are convolutions here that take an activation along, and a float32 bias beside bfloat16."""
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    return device.type == "cpu" and is_there


@torch.inference_mode(False)  # whoever is in it: its tensors do not tell what was written into them
@torch.no_grad()
def quicken(network: nn.Module, pixels: Pixels, precision: str) -> nn.Module:
    """A copy of a network in the mode of use, quicker than the network itself, which stays as it is."""
    quick = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)
    device = next(quick.parameters()).device
    if device.type == "cpu" and precision == "bf16":
        leave_places(quick, pixels)
    return join_chains(quick, pixels, precision) if has_onednn(device) or precision == "fp32" else quick


def join_chains(network: nn.Module, pixels: Pixels, precision: str) -> nn.Module:
    """The network with every chain in one pass; as it is where that cannot be, or is not the same in float32."""
    joined = copy.deepcopy(network)
    device = next(joined.parameters()).device
    image = noise(pixels).to(device)
    chains, expected = follow(joined, image)
    exact = find_beginning(chains)
    joints = {chain: join(chain, device) for chain in chains}
    try:
        is_good = is_same(follow(joined, image)[1], expected)
        for chain, joint in joints.items():
            if precision == "bf16" and chain not in exact:
                joint.weight = joint.weight.bfloat16()
        with torch.no_grad(), computing(precision, device):
            joined(image)
    except RuntimeError as error:  # a processor, or a torch, that lacks such a convolution
        log.debug("batch norm stays: %s", error)
        is_good = False
    return joined if is_good else network


def join(chain: Chain, device: torch.device) -> Joint:
    """Let the convolution do what its chain did; the other modules stay, for hooks and names that mean their place."""
    inner, is_joined = getattr(chain.norm, "act", None), has_onednn(device) and type(chain.activation) in ACTIVATIONS
    joint = Joint(chain, bare=not is_joined)
    chain.convolution.forward = joint
    chain.norm.forward = inner.__call__ if inner and not is_joined else hand_on
    if is_joined and not inner:
        chain.activation.forward = hand_on
    return joint


def hand_on(maps: torch.Tensor) -> torch.Tensor:
    """What came in."""
    return maps


def leave_places(network: nn.Module, pixels: Pixels) -> None:
    """Let activations write into new memory: torch 2.15 takes a CPU twice as long for bfloat16 in place."""
    changed = [module for module in network.modules() if getattr(module, "inplace", False)]
    expected = follow(network, noise(pixels))[1]
    for module in changed:
        module.inplace = False
    if not is_same(follow(network, noise(pixels))[1], expected):
        log.debug("activations stay in place: this network counts on it")
        for module in changed:
            module.inplace = True


def is_same(found: Ends, expected: Ends) -> bool:
    """Whether all answers are equal within rounding."""
    return all(bool((found[one] - other).norm() <= TOLERANCE * other.norm()) for one, other in expected.items())


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


def begin_exactly(network: nn.Module, pixels: Pixels) -> None:
    """Let the beginning of a network compute in float32, in place."""
    was_training = network.training
    chains, _ = follow(network.eval(), noise(pixels).to(next(network.parameters()).device))
    network.train(was_training)
    for chain in find_beginning(chains):
        chain.convolution.__class__ = ExactConvolution


def find_beginning(chains: list[Chain]) -> list[Chain]:
    """The first chains, as long as they are small and take no more than a tenth of all multiplications."""
    left, beginning = SHARE * sum(chain.cost for chain in chains), []
    for chain in chains:
        left -= chain.cost
        if left < 0 or chain.convolution.weight[0].numel() > SMALL:
            break
        beginning.append(chain)
    return beginning
