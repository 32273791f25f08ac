"""The first convolutions of a network stay in float32 where the rest computes in bfloat16.

A radiograph is gray and even, and what bfloat16 rounds off it there is wrong alike in all that follows: with float32 in
the first three convolutions of MobileNetV2, features of real radiographs come out four times more exact.
"""

from torch import nn

from fastcxr.training.arithmetic import ExactConvolution
from fastcxr.training.chains import Chain, follow, noise
from fastcxr.training.pixels import Pixels

SHARE = 0.1  # of all multiplications: three convolutions of MobileNetV2 and EfficientNet
SMALL = 32  # multiplications for one value; larger ones, as a ResNet begins with, gain much from bfloat16


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
