"""Layer groups of a network, from stem to head, for freezing and discriminative learning rates."""

from itertools import groupby

from timm.models._manipulate import group_with_matcher  # timm's own order of the layers of each network
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fastcxr.models.heads import find_head_parameters

N_BACKBONE_GROUPS = 4  # with the head five: enough for learning rates that decrease towards the stem, few to report
TRANSFORMERS = (Beit, Eva, SwinTransformer, SwinTransformerV2, VisionTransformer)


def layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """Split all parameters into layer groups from stem to head; the last group is the head.

    A transformer of timm has a group of its embeddings and one of each block; the norm and the attention pool after the
    last block belong to it. Other networks have three to five groups. With n groups, `layer_lr_ratio` = d ** -(n - 1)
    is a layer-wise decay d (Bao 2021, arXiv:2106.08254): the rate of each group is d times that of the next.
    """
    if not isinstance(network, TRANSFORMERS):
        return merged_layer_groups(network)
    *layers, after_blocks = _list_backbone_layers(network)
    return _make_groups(network, [*layers[:-1], layers[-1] + after_blocks])


def merged_layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """Split all parameters into three to five groups of consecutive layers; the last group is the head."""
    layers = [layer for layer in _list_backbone_layers(network) if layer]
    return _make_groups(network, _merge_layers(layers, N_BACKBONE_GROUPS))


def _make_groups(network: nn.Module, backbone_groups: list[list[str]]) -> list[list[nn.Parameter]]:
    parameters = dict(network.named_parameters())
    return [[parameters[name] for name in group] for group in [*backbone_groups, sorted(find_head_parameters(network))]]


def find_frozen(network: nn.Module) -> list[nn.Module]:
    """Return the frozen modules, including those without parameters (dropout, stochastic depth, activations).

    A module without parameters belongs to the smallest enclosing module with parameters. If that one trains only in
    part, the module belongs to the next layer: dropout before the head to the head, dropout after an embedding to the
    backbone.
    """
    frozen, is_training = [], True  # of the next layer in the order of definition
    for module in reversed(list(network.modules())):
        own_parameters, all_parameters = list(module.parameters(recurse=False)), list(module.parameters())
        if all_parameters and not any(parameter.requires_grad for parameter in all_parameters):
            frozen += module.modules()
        if own_parameters:
            is_training = any(parameter.requires_grad for parameter in own_parameters)
        if not is_training and (own_parameters or not all_parameters):
            frozen.append(module)
    return frozen


def _list_backbone_layers(network: nn.Module) -> list[list[str]]:
    """List parameter names by layer from the stem, without the head; the last layer, that of the head, may be empty."""
    head_names = find_head_parameters(network)
    return [[name for name in layer if name not in head_names] for layer in _list_layers(network)]


def _list_layers(network: nn.Module) -> list[list[str]]:
    """List parameter names by layer from the stem, in timm's grouping or, for other networks, by module."""
    names = [name for name, _ in network.named_parameters()]
    group_matcher = getattr(network, "group_matcher", None)
    if group_matcher is None:
        return _split_by_module(names, 0, len(names) // N_BACKBONE_GROUPS)
    layer_of = group_with_matcher(network.named_parameters(), group_matcher(coarse=False), reverse=True)
    return [[name for name in names if layer_of[name] == layer] for layer in sorted(set(layer_of.values()))]


def _split_by_module(names: list[str], depth: int, max_names: int) -> list[list[str]]:
    """Group consecutive parameter names by module, and split modules with more than `max_names` by submodule."""
    if len(names) <= max_names or depth > 5:
        return [names]
    modules = groupby(names, key=lambda name: (name.split(".")[:-1] + [""] * 9)[depth])
    return [stage for _, inside in modules for stage in _split_by_module(list(inside), depth + 1, max_names)]


def _merge_layers(layers: list[list[str]], n_groups: int) -> list[list[str]]:
    """Merge consecutive layers into at most `n_groups` groups with similar numbers of parameter tensors."""
    total, n_before = sum(map(len, layers)), 0
    groups: dict[int, list[str]] = {}
    for layer in layers:
        groups.setdefault(n_before * n_groups // total, []).extend(layer)
        n_before += len(layer)
    return list(groups.values())
