"""A network becomes three to five groups of parameters, from stem to head: what freezing and rates work on."""

from itertools import groupby

from timm.models._manipulate import group_with_matcher  # timm's own reading of each network's depth
from torch import nn

from fastcxr.models.heads import head_keys

BODY_GROUPS = 4  # with the head five: enough for rates that fall towards the stem, few enough to read


def layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters in three to five lists, from stem to head: what freezing and discriminative rates work on."""
    head = head_keys(network)
    layers = [[name for name in layer if name not in head] for layer in _layers(network)]
    bodies = _merge([layer for layer in layers if layer], BODY_GROUPS)
    parameters = dict(network.named_parameters())
    return [[parameters[name] for name in group] for group in [*bodies, sorted(head)]]


def find_frozen(network: nn.Module) -> list[nn.Module]:
    """Modules that do not learn, those without parameters among them: dropout, stochastic depth, activations.

    A module without parameters belongs to the smallest module around it that has some. If only a part of that one
    learns, it belongs to the layer that follows it: dropout before a head is the head's, after an embedding the body's.
    """
    frozen, is_learning = [], True  # of the layer that follows, in the order of definition
    for module in reversed(list(network.modules())):
        own, inside = list(module.parameters(recurse=False)), list(module.parameters())
        if inside and not any(parameter.requires_grad for parameter in inside):
            frozen += module.modules()
        if own:
            is_learning = any(parameter.requires_grad for parameter in own)
        if not is_learning and (own or not inside):
            frozen.append(module)
    return frozen


def _layers(network: nn.Module) -> list[list[str]]:
    """Parameter names, layer by layer from the stem: timm's own grouping, or the stages of any other network."""
    names = [name for name, _ in network.named_parameters()]
    if not hasattr(network, "group_matcher"):
        return _stages(names, 0, len(names) // BODY_GROUPS)
    layer_of = group_with_matcher(network.named_parameters(), network.group_matcher(coarse=False), reverse=True)
    return [[name for name in names if layer_of[name] == layer] for layer in sorted(set(layer_of.values()))]


def _stages(names: list[str], depth: int, limit: int) -> list[list[str]]:
    """Neighbouring parameters by the module they stand in, taken apart where a module holds more than `limit`."""
    if len(names) <= limit or depth > 5:
        return [names]
    modules = groupby(names, key=lambda name: (name.split(".")[:-1] + [""] * 9)[depth])
    return [stage for _, inside in modules for stage in _stages(list(inside), depth + 1, limit)]


def _merge(layers: list[list[str]], count: int) -> list[list[str]]:
    """Neighbouring layers joined into at most `count` groups that hold about as many parameters tensors each."""
    total, before = sum(map(len, layers)), 0
    groups: dict[int, list[str]] = {}
    for layer in layers:
        groups.setdefault(before * count // total, []).extend(layer)
        before += len(layer)
    return list(groups.values())
