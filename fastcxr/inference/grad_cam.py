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
from fastcxr.models.heads import MultiScaleHead, find_head, is_channels_last


def find_target_layers(network: nn.Module, image: torch.Tensor) -> tuple[str, ...]:
    """Names of the modules whose maps are explained, from stem to head; `image`: one to try them on, with its batch.

    The last is the last map before pooling that the head hears at more than one place: of a transformer that reads
    its class token alone, what enters the last attention. Before it stand the depths that a MultiScaleHead listens to.
    Raises ModelError for a network without any such map.
    """
    maps, features = _record_maps(network, image)
    n_positions = _count_used_positions(maps, features, network) if maps else {}
    last_layer = next((name for name in reversed(n_positions) if n_positions[name] > 1), None)
    if last_layer is None:
        raise ModelError(
            "this network has no map of places that Grad-CAM could show", "Give --method occlusion", code="E308"
        )
    head, earlier = find_head(network), list(maps)[: list(maps).index(last_layer)]
    return (*(name for name in getattr(head, "stages", ()) if name in earlier), last_layer)


def _count_used_positions(
    maps: dict[str, torch.Tensor], features: list[torch.Tensor], network: nn.Module
) -> dict[str, int]:
    """At how many places of each map the features depend on it; maps that they do not depend on are left out."""
    generator = torch.Generator().manual_seed(0)
    # not the logits: the weights of a head may be zero, as those of an untrained one are
    random_projection = sum(
        (tensor * torch.randn(tensor.shape, generator=generator).to(tensor)).sum() for tensor in features
    )
    gradients = torch.autograd.grad(random_projection, list(maps.values()), allow_unused=True)
    return {
        name: int(to_feature_maps(gradient, network).abs().sum(dim=(0, 1)).count_nonzero())
        for name, gradient in zip(maps, gradients, strict=True)
        if gradient is not None
    }


def grad_cam(network: nn.Module, layers: tuple[str, ...], images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How much each place adds to the logit of a class, nowhere less than zero; shape (n, size, size).

    `images`: as the network sees them, shape (n, channels, size, size); `classes`: a number each, shape (n,).
    """
    with torch.enable_grad(), detach_outputs(network, layers) as outputs:
        logits = network(images).float().gather(1, classes[:, None])[:, 0]
    layer_outputs = [outputs[name] for name in layers]
    gradients = torch.autograd.grad(logits.sum(), layer_outputs, materialize_grads=True)
    saliency = sum(
        _compute_layer_map(*pair, network, images.shape[-1]) for pair in zip(layer_outputs, gradients, strict=True)
    )
    head = find_head(network)
    if isinstance(head, MultiScaleHead):
        # it takes every feature less its mean: the average image is no evidence
        offset = (logits - head.linear.bias[classes]).detach() - saliency.mean(dim=(1, 2))
        saliency = saliency + offset[:, None, None]
    return saliency.relu()


def _compute_layer_map(output: torch.Tensor, gradient: torch.Tensor, network: nn.Module, size: int) -> torch.Tensor:
    """What each place of a map adds; the mean over places is its share of the logit, whatever the grid."""
    weight = to_feature_maps(gradient, network).sum(dim=(2, 3), keepdim=True)
    layer_map = (weight * to_feature_maps(output.detach(), network)).sum(dim=1, keepdim=True)
    return interpolate(layer_map, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def detach_outputs(network: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """Inside, gradients end at these modules' outputs, so that none is counted twice; the outputs are collected."""
    outputs: dict[str, torch.Tensor] = {}

    def detach_output(name: str, output: torch.Tensor) -> torch.Tensor:
        outputs[name] = output.detach().float().requires_grad_()
        return outputs[name].to(output.dtype, copy=True)  # a copy: some networks write into it

    # before the hooks of a MultiScaleHead, which is to hear the cut output
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: detach_output(name, output), prepend=True
        )
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def to_feature_maps(output: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Maps or tokens as maps with the channels second, shape (n, channels, side, side); tokens of no place left out."""
    if output.ndim == 4:
        return output.movedim(3, 1) if _has_channels_last(output, network) else output
    side, n_prefix_tokens = _find_token_grid(output.shape[1], network)
    return output[:, n_prefix_tokens:].unflatten(1, (side, side)).movedim(3, 1)


def _record_maps(network: nn.Module, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """All maps before the head in the order in which they come, and what the head sees."""
    maps: dict[str, torch.Tensor] = {}
    features: list[torch.Tensor] = []

    def record_map(name: str, output: object) -> None:
        maps.pop(name, None)  # a module may be used twice: its last place counts
        if not features and isinstance(output, torch.Tensor) and _is_feature_map(output, network):
            maps[name] = output

    head = find_head(network)
    head_modules = list(head) if isinstance(head, nn.ModuleList) else [head]
    hooks = [part.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0])) for part in head_modules]
    hooks += [
        module.register_forward_hook(lambda module, inputs, output, name=name: record_map(name, output))
        for name, module in _list_candidate_modules(network)
    ]
    try:
        with torch.enable_grad():
            network(image.requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    return maps, features


def _list_candidate_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that may give out a map; not what is inside an attention, whose squares are pairs of tokens."""
    attention_prefixes: tuple[str, ...] = ()
    for name, module in network.named_modules():
        type_name = type(module).__name__.lower()
        if not name or name.startswith(attention_prefixes) and attention_prefixes or "adaptive" in type_name:
            continue
        if "attention" in type_name or "attn" in type_name:
            attention_prefixes = (*attention_prefixes, f"{name}.")
        yield name, module


def _is_feature_map(output: torch.Tensor, network: nn.Module) -> bool:
    if not output.requires_grad or not output.is_floating_point():
        return False
    if output.ndim == 4:
        height, width = output.shape[1:3] if _has_channels_last(output, network) else output.shape[2:]
        return height == width > 1
    return output.ndim == 3 and _find_token_grid(output.shape[1], network) is not None


def _has_channels_last(output: torch.Tensor, network: nn.Module) -> bool:
    return is_channels_last(network) and output.shape[1] == output.shape[2]


def _find_token_grid(n_tokens: int, network: nn.Module) -> tuple[int, int] | None:
    """Side of the square that the tokens fill, and how many stand before it: a class token, registers."""
    for n_prefix_tokens in (getattr(network, "num_prefix_tokens", 0), 0, 1):
        side = math.isqrt(max(0, n_tokens - n_prefix_tokens))
        if side > 1 and side * side == n_tokens - n_prefix_tokens:
            return side, n_prefix_tokens
    return None
