"""Grad-CAM: which positions of an image contribute to a class, for convolutional networks and transformers.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization": each channel
of the last spatial map is weighted by its contribution to the class logit, and only positive evidence is kept. A
MultiScaleHead is explained at each of its stages, a class token at each attention, and the contributions are added.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, reduce

import torch
from torch import nn
from torch.nn.functional import interpolate

from fastcxr.errors import ModelError
from fastcxr.models.heads import MultiScaleHead, find_head, is_channels_last

ATTENTION_INPUT = ".norm1"  # end of the name of the norm before an attention, in the blocks of timm


def find_target_layers(network: nn.Module, image: torch.Tensor) -> tuple[str, ...]:
    """Return the names of the modules to explain, from stem to head; `image`: a batch of one for a trial run.

    One is the last map before pooling of which the features use several positions. The stages of a MultiScaleHead are
    others, and the inputs of all attentions if the features contain the class token, which reads the patches there.

    Raises:
        ModelError: the network has no such map.
    """
    maps, features = _record_maps(network, image)
    gradients = _compute_gradients(maps, features) if maps else {}
    n_positions = {name: _count_positions(to_feature_maps(gradients[name], network)) for name in gradients}
    last_layer = next((name for name in reversed(n_positions) if n_positions[name] > 1), None)
    if last_layer is None:
        raise ModelError("the network has no spatial map for Grad-CAM", "Pass `method='occlusion'`", code="E308")
    layers = {last_layer, *getattr(find_head(network), "stages", ())}
    last_gradient = gradients[last_layer]
    if last_gradient[:, : _count_prefix_tokens(last_gradient, network)].any():
        layers |= {name for name in maps if name.endswith(ATTENTION_INPUT)}
    return tuple(name for name in maps if name in layers)


def _compute_gradients(maps: dict[str, torch.Tensor], features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the gradient of the features at each map that influences them."""
    generator = torch.Generator().manual_seed(0)
    # features instead of logits: the weights of an untrained head may be zero
    projections = ((part * torch.randn(part.shape, generator=generator).to(part)).sum() for part in features)
    gradients = torch.autograd.grad(reduce(torch.add, projections), list(maps.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(maps, gradients, strict=True) if gradient is not None}


def _count_positions(gradient: torch.Tensor) -> int:
    return int(gradient.abs().sum(dim=(0, 1)).count_nonzero())


def grad_cam(network: nn.Module, layers: tuple[str, ...], images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the positive contribution of each position to the logit of a class, shape (n, size, size).

    `images`: normalized, shape (n, channels, size, size). `classes`: one index per image, shape (n,).
    """
    with torch.enable_grad(), detach_outputs(network, layers) as outputs:
        logits = network(images).float().gather(1, classes[:, None])[:, 0]
    layer_outputs = [outputs[name] for name in layers]
    gradients = torch.autograd.grad(logits.sum(), layer_outputs, materialize_grads=True)
    pairs = zip(layer_outputs, gradients, strict=True)
    saliency = reduce(torch.add, (_compute_layer_map(*pair, network, images.shape[-1]) for pair in pairs))
    head = find_head(network)
    if isinstance(head, MultiScaleHead):
        # the head subtracts the mean of each feature: an average image is no evidence
        offset = (logits - head.linear.bias[classes]).detach() - saliency.mean(dim=(1, 2))
        saliency = saliency + offset[:, None, None]
    return saliency.relu()


def _compute_layer_map(output: torch.Tensor, gradient: torch.Tensor, network: nn.Module, size: int) -> torch.Tensor:
    """Return the contribution of each position; the mean over positions is the contribution of the layer."""
    weight = to_feature_maps(gradient, network).sum(dim=(2, 3), keepdim=True)
    layer_map = (weight * to_feature_maps(output.detach(), network)).sum(dim=1, keepdim=True)
    return interpolate(layer_map, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


@contextmanager
def detach_outputs(network: nn.Module, layers: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of these modules and end gradients there, which prevents counting a contribution twice.

    Gradients of class and register tokens, which have no position, continue to the patches that these tokens read.
    """
    outputs: dict[str, torch.Tensor] = {}

    def detach_output(name: str, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        outputs[name] = output.detach().float().requires_grad_()
        detached = outputs[name].to(output.dtype, copy=True)  # a copy: some networks modify it in place
        if not (n_prefix_tokens := _count_prefix_tokens(output, network)):
            return detached
        return torch.cat([output[:, :n_prefix_tokens], detached[:, n_prefix_tokens:]], dim=1)

    with ExitStack() as hooks:
        for name in layers:
            # prepend: before the hooks of a MultiScaleHead, which must receive the detached output
            hook = network.get_submodule(name).register_forward_hook(partial(detach_output, name), prepend=True)
            hooks.enter_context(hook)
        yield outputs


def to_feature_maps(output: torch.Tensor, network: nn.Module) -> torch.Tensor:
    """Return maps or tokens as maps, shape (n, channels, side, side); tokens without a position are dropped."""
    if output.ndim == 4:
        return output.movedim(3, 1) if _has_channels_last(output, network) else output
    grid = _find_token_grid(output.shape[1], network)
    assert grid is not None, "only outputs that _is_feature_map accepts are passed"
    side, n_prefix_tokens = grid
    return output[:, n_prefix_tokens:].unflatten(1, (side, side)).movedim(3, 1)


def _record_maps(network: nn.Module, image: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """Return all maps before the head in forward order, and the inputs of the head."""
    maps: dict[str, torch.Tensor] = {}
    features: list[torch.Tensor] = []

    def record_map(name: str, module: nn.Module, inputs: tuple, output: object) -> None:
        maps.pop(name, None)  # if a module is used twice, its last use counts
        if not features and isinstance(output, torch.Tensor) and _is_feature_map(output, network):
            maps[name] = output

    head = find_head(network)
    with ExitStack() as hooks, torch.enable_grad():
        for part in head if isinstance(head, nn.ModuleList) else [head]:
            hooks.enter_context(part.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0])))
        for name, module in _list_candidate_modules(network):
            hooks.enter_context(module.register_forward_hook(partial(record_map, name)))
        network(image.requires_grad_())
    return maps, features


def _list_candidate_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that may output a map, without those inside an attention, whose maps are pairs of tokens."""
    attention_prefixes: tuple[str, ...] = ()
    for name, module in network.named_modules():
        type_name = type(module).__name__.lower()
        if not name or name.startswith(attention_prefixes) or "adaptive" in type_name:
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


def _count_prefix_tokens(output: torch.Tensor, network: nn.Module) -> int:
    grid = _find_token_grid(output.shape[1], network) if output.ndim == 3 else None
    return grid[1] if grid else 0


def _find_token_grid(n_tokens: int, network: nn.Module) -> tuple[int, int] | None:
    """Return the side of the square grid of tokens, and the number of class and register tokens before it."""
    for n_prefix_tokens in (getattr(network, "num_prefix_tokens", 0), 0, 1):
        side = math.isqrt(max(0, n_tokens - n_prefix_tokens))
        if side > 1 and side * side == n_tokens - n_prefix_tokens:
            return side, n_prefix_tokens
    return None
