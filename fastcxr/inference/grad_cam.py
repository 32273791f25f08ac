"""Where in a picture a network's evidence for a class lies: Grad-CAM, for convolutional networks and transformers.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization": every channel
of the last map of places counts by what it adds to the class's logit, and only what speaks for the class is kept. A
head that listens to several depths is explained at each of them, and the shares of the logit are added.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import interpolate

from fastcxr.errors import ModelError
from fastcxr.models.heads import DepthHead, head_of, is_channels_last


def find_layers(network: nn.Module, image: torch.Tensor) -> tuple[str, ...]:
    """Names of the modules whose maps are explained, from stem to head; `image`: one to try them on, with its batch.

    The last is the last map before pooling that the head hears at more than one place: of a transformer that reads
    its class token alone, what enters the last attention. Before it stand the depths that a DepthHead listens to.
    Raises ModelError for a network without any such map.
    """
    found, features = _trace(network, image)
    heard_at = _count_heard(found, features, network) if found else {}
    last = next((name for name in reversed(heard_at) if heard_at[name] > 1), None)
    if last is None:
        raise ModelError(
            "this network has no map of places that Grad-CAM could show", "Give --method occlusion", code="E302"
        )
    head, before = head_of(network), list(found)[: list(found).index(last)]
    return (*(name for name in getattr(head, "stages", ()) if name in before), last)


def _count_heard(found: dict[str, torch.Tensor], features: list[torch.Tensor], network: nn.Module) -> dict[str, int]:
    """At how many places of each map the features depend on it; maps that they do not depend on are left out."""
    generator = torch.Generator().manual_seed(0)
    # not the logits: the weights of a head may be zero, as those of an untrained one are
    heard = sum((part * torch.randn(part.shape, generator=generator).to(part)).sum() for part in features)
    gradients = torch.autograd.grad(heard, list(found.values()), allow_unused=True)
    return {
        name: int(to_grid(gradient, network).abs().sum(dim=(0, 1)).count_nonzero())
        for name, gradient in zip(found, gradients, strict=True)
        if gradient is not None
    }


def grad_cam(network: nn.Module, layers: tuple[str, ...], images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How much each place adds to the logit of a class, nowhere less than zero; shape (n, size, size).

    `images`: as the network sees them, shape (n, channels, size, size); `classes`: a number each, shape (n,).
    """
    with torch.enable_grad(), cut_at(network, layers) as leaves:
        logits = network(images).float().gather(1, classes[:, None])[:, 0]
    found = [leaves[name] for name in layers]
    gradients = torch.autograd.grad(logits.sum(), found, materialize_grads=True)
    shares = sum(_share(*pair, network, images.shape[-1]) for pair in zip(found, gradients, strict=True))
    head = head_of(network)
    if isinstance(head, DepthHead):
        # it takes every feature less its mean: the average image is no evidence
        above = (logits - head.linear.bias[classes]).detach() - shares.mean(dim=(1, 2))
        shares = shares + above[:, None, None]
    return shares.relu()


def _share(leaf: torch.Tensor, gradient: torch.Tensor, network: nn.Module, size: int) -> torch.Tensor:
    """What each place of a map adds; the mean over places is its share of the logit, whatever the grid."""
    weight = to_grid(gradient, network).sum(dim=(2, 3), keepdim=True)
    places = (weight * to_grid(leaf.detach(), network)).sum(dim=1, keepdim=True)
    return interpolate(places, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def cut_at(network: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, gradients end at these modules' outputs, so that none is counted twice; the outputs are collected."""
    leaves: dict[str, torch.Tensor] = {}

    def cut(name: str, output: torch.Tensor) -> torch.Tensor:
        leaves[name] = output.detach().float().requires_grad_()
        return leaves[name].to(output.dtype, copy=True)  # a copy: some networks write into it

    # before the hooks of a DepthHead, which is to hear the cut output
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: cut(name, output), prepend=True
        )
        for name in layers
    ]
    try:
        yield leaves
    finally:
        for hook in hooks:
            hook.remove()


def to_grid(output: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Maps or tokens as maps with the channels second, shape (n, channels, side, side); tokens of no place left out."""
    if output.ndim == 4:
        return output.movedim(3, 1) if _has_channels_last(output, network) else output
    side, before = _find_grid(output.shape[1], network)
    return output[:, before:].unflatten(1, (side, side)).movedim(3, 1)


def _trace(network: nn.Module, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """All maps before the head in the order in which they come, and what the head sees."""
    found: dict[str, torch.Tensor] = {}
    features: list[torch.Tensor] = []

    def keep(name: str, output: object) -> None:
        found.pop(name, None)  # a module may be used twice: its last place counts
        if not features and isinstance(output, torch.Tensor) and _is_map(output, network):
            found[name] = output

    head = head_of(network)
    heads = list(head) if isinstance(head, nn.ModuleList) else [head]
    hooks = [part.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0])) for part in heads]
    hooks += [
        module.register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
        for name, module in _candidates(network)
    ]
    try:
        with torch.enable_grad():
            network(image.requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return found, features


def _candidates(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that may give out a map; not what is inside an attention, whose squares are pairs of tokens."""
    inside: tuple[str, ...] = ()
    for name, module in network.named_modules():
        kind = type(module).__name__.lower()
        if not name or name.startswith(inside) and inside or "adaptive" in kind:
            continue
        if "attention" in kind or "attn" in kind:
            inside = (*inside, f"{name}.")
        yield name, module


def _is_map(output: torch.Tensor, network: nn.Module) -> bool:
    if not output.requires_grad or not output.is_floating_point():
        return False
    if output.ndim == 4:
        high, wide = output.shape[1:3] if _has_channels_last(output, network) else output.shape[2:]
        return high == wide > 1
    return output.ndim == 3 and _find_grid(output.shape[1], network) is not None


def _has_channels_last(output: torch.Tensor, network: nn.Module) -> bool:
    return is_channels_last(network) and output.shape[1] == output.shape[2]


def _find_grid(tokens: int, network: nn.Module) -> tuple[int, int] | None:
    """Side of the square that the tokens fill, and how many stand before it: a class token, registers."""
    for before in (getattr(network, "num_prefix_tokens", 0), 0, 1):
        side = math.isqrt(max(0, tokens - before))
        if side > 1 and side * side == tokens - before:
            return side, before
    return None
