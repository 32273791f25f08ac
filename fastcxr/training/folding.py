"""A network that only looks, not learns, can be quicker about it: see quicken.

The statistics of a batch norm are constants then, so that it can become part of the convolution before it, and with
oneDNN the activation after it too: what comes out is the same within rounding, and two passes over every map are saved.
"""

import copy
import logging

import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastcxr.training.arithmetic import computing
from fastcxr.training.beginning import find_beginning
from fastcxr.training.chains import ACTIVATIONS, Chain, Ends, follow, noise
from fastcxr.training.pixels import Pixels

log = logging.getLogger("fastcxr")
TOLERANCE = 1e-3  # of the norm of what comes out; rounding in float32 is far below


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
