"""A network that only looks, not learns, can be quicker about it: see quicken.

The statistics of a batch norm are constants then, so that it can become part of the convolution before it: the same
numbers come out, within rounding, and a pass over every map is saved.
"""

import copy
import logging

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastcxr.training.pixels import Pixels

log = logging.getLogger("fastcxr")
TOLERANCE = 1e-3  # of the norm of what comes out; rounding in float32 is far below
Maps = list[torch.Tensor]


def quicken(network: nn.Module, pixels: Pixels, precision: str) -> nn.Module:
    """A copy of a network in the mode of use, quicker than the network itself, which stays as it is.

    In float32 its batch norms are folded. In bfloat16 they stay: folding them made features of real radiographs a third
    less exact. There, on a CPU, nothing is done in place, which changes no bit.
    """
    if precision == "fp32":
        return fold_batch_norm(network, pixels).to(memory_format=torch.channels_last)
    quick = copy.deepcopy(network).eval()
    if next(quick.parameters()).device.type == "cpu":
        leave_places(quick, pixels)
    return quick.to(memory_format=torch.channels_last)


def fold_batch_norm(network: nn.Module, pixels: Pixels) -> nn.Module:
    """A copy whose convolutions do what their batch norms did.

    Where the copy sees something else in a picture than the network does, because the answer of a convolution has other
    readers than its batch norm, nothing is folded.
    """
    quick = copy.deepcopy(network).eval()
    image = noise(pixels).to(next(quick.parameters()).device)
    pairs, expected = follow(quick, image)
    for convolution, norm in pairs:
        absorb(convolution, norm)
    if is_same(follow(quick, image)[1], expected):
        return quick
    log.debug("batch norm stays: this network does not come out the same without")
    return copy.deepcopy(network).eval()


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


def noise(pixels: Pixels) -> torch.Tensor:
    """One picture of noise, always the same; whoever else draws is left alone."""
    size = (1, len(pixels.mean), pixels.image_size, pixels.image_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def follow(network: nn.Module, image: torch.Tensor) -> tuple[list[tuple[nn.Conv2d, nn.BatchNorm2d]], Maps]:
    """Each convolution with the batch norm that takes up its answer, and the answers of batch norms and network."""
    made, pairs, answers, hooks = {}, [], [], []

    def after_convolution(module, inputs, output):
        made[id(output)] = (module, output)  # the output too: kept alive, so that no other takes its place

    def after_norm(module, inputs, output):
        answers.append(output.clone())  # what follows may work in place
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(after_norm))
    try:
        answers.append(network(image))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs, answers


def absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Let the convolution do what its batch norm did, which hands its input on (to its activation, if it has one)."""
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    with torch.no_grad():
        convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
    # the module stays: hooks and names go on to mean its place
    norm.forward = getattr(norm, "act", nn.Identity()).__call__


def is_same(found: Maps, expected: Maps) -> bool:
    """Whether all maps are equal within rounding."""
    return all(
        bool((one - other).norm() <= TOLERANCE * other.norm()) for one, other in zip(found, expected, strict=True)
    )
