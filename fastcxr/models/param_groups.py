"""A network becomes three to five groups of parameters, from stem to head: what freezing and rates work on."""

from itertools import groupby

from timm.models._manipulate import group_with_matcher  # timm's own reading of each network's depth
from torch import nn

from fastcxr.models.heads import find_head_parameters

N_BACKBONE_GROUPS = 4  # with the head five: enough for rates that fall towards the stem, few enough to read


def layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters in three to five lists, from stem to head: what freezing and discriminative rates work on."""
    head_names = find_head_parameters(network)
    layers = [[name for name in layer if name not in head_names] for layer in _list_layers(network)]
    backbone_groups = _merge_layers([layer for layer in layers if layer], N_BACKBONE_GROUPS)
    parameters = dict(network.named_parameters())
    return [[parameters[name] for name in group] for group in [*backbone_groups, sorted(head_names)]]


def find_frozen(network: nn.Module) -> list[nn.Module]:
    """Modules that do not learn, those without parameters among them: dropout, stochastic depth, activations.

    A module without parameters belongs to the smallest module around it that has some. If only a part of that one
    learns, it belongs to the layer that follows it: dropout before a head is the head's, after an embedding the body's.
    """
    frozen, is_learning = [], True  # of the layer that follows, in the order of definition
    for module in reversed(list(network.modules())):
        own_parameters, all_parameters = list(module.parameters(recurse=False)), list(module.parameters())
        if all_parameters and not any(parameter.requires_grad for parameter in all_parameters):
            frozen += module.modules()
        if own_parameters:
            is_learning = any(parameter.requires_grad for parameter in own_parameters)
        if not is_learning and (own_parameters or not all_parameters):
            frozen.append(module)
    return frozen


def _list_layers(network: nn.Module) -> list[list[str]]:
    """Parameter names, layer by layer from the stem: timm's own grouping, or the stages of any other network."""
    names = [name for name, _ in network.named_parameters()]
    if not hasattr(network, "group_matcher"):
        return _split_by_module(names, 0, len(names) // N_BACKBONE_GROUPS)
    layer_of = group_with_matcher(network.named_parameters(), network.group_matcher(coarse=False), reverse=True)
    return [[name for name in names if layer_of[name] == layer] for layer in sorted(set(layer_of.values()))]


def _split_by_module(names: list[str], depth: int, max_names: int) -> list[list[str]]:
    """Neighbouring parameters by the module they stand in, taken apart where a module holds more than `limit`."""
    if len(names) <= max_names or depth > 5:
        return [names]
    modules = groupby(names, key=lambda name: (name.split(".")[:-1] + [""] * 9)[depth])
    return [stage for _, inside in modules for stage in _split_by_module(list(inside), depth + 1, max_names)]


def _merge_layers(layers: list[list[str]], n_groups: int) -> list[list[str]]:
    """Neighbouring layers joined into at most `count` groups that hold about as many parameters tensors each."""
    total, n_before = sum(map(len, layers)), 0
    groups: dict[int, list[str]] = {}
    for layer in layers:
        groups.setdefault(n_before * n_groups // total, []).extend(layer)
        n_before += len(layer)
    return list(groups.values())
