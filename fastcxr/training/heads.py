"""A description becomes the head of a network: what stands between its pooled features and one number a class."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fastcxr.errors import RecipeError
from fastcxr.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """Sizes of the hidden layers, and the share that dropout takes; without both the head is one linear layer."""

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


LINEAR = HeadPlan()


class Head(nn.Sequential):
    """Linear, ReLU and dropout for each hidden size, then a linear layer; without a hidden size dropout comes first.

    Only the last layer starts at zero (see start_even): hidden ones need the random start to learn different things.
    """


def plan_head(recipe: Recipe) -> HeadPlan:
    """The head that a recipe describes."""
    return HeadPlan(hidden=recipe.head, dropout=recipe.dropout)


def head_of(network: nn.Module) -> nn.Module:
    """The module that turns features into one number a class, hidden layers included."""
    own = [module for module in network.modules() if isinstance(module, Head)]
    found = own or _classifiers(network)
    return found[0] if len(found) == 1 else nn.ModuleList(found)


def head_keys(network: nn.Module) -> set[str]:
    """Names of the head's parameters in the state dict."""
    head = {id(parameter) for parameter in head_of(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head}


def head_names(network: nn.Module) -> list[str]:
    """Where the head stands in the network; two places in distilled ones."""
    head = head_of(network)
    heads = {id(part) for part in (head if isinstance(head, nn.ModuleList) else [head])}
    return [name for name, module in network.named_modules() if id(module) in heads]


def replace_head(network: nn.Module, classes: int, plan: HeadPlan) -> None:
    """Give a network a new head, in place."""
    names = {id(module): name for name, module in network.named_modules()}
    for old in _classifiers(network):
        parent, _, child = names[id(old)].rpartition(".")
        setattr(network.get_submodule(parent), child, _make_head(old, classes, plan))


def start_even(network: nn.Module) -> None:
    """Let a new head give every class the same probability: timm's, scaled for 1000 classes, would shout at random."""
    head = head_of(network)
    for part in head if isinstance(head, nn.ModuleList) else [head]:
        for parameter in (part[-1] if isinstance(part, Head) else part).parameters():
            nn.init.zeros_(parameter)


def _classifiers(network: nn.Module) -> list[nn.Module]:
    """The last layer, as timm's networks name it themselves; distilled networks have two."""
    if hasattr(network, "get_classifier"):
        found = network.get_classifier()
        return list(found) if isinstance(found, tuple | list) else [found]
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]


def _make_head(old: nn.Module, classes: int, plan: HeadPlan) -> nn.Module:
    if not isinstance(old, nn.Linear | nn.Conv2d):
        raise RecipeError(
            f"the head of this backbone is a {type(old).__name__}, which cannot be replaced",
            "Leave --head and --dropout out, or take another backbone",
        )
    features = old.in_features if isinstance(old, nn.Linear) else old.in_channels
    layers = list(_layers(type(old), [features, *plan.hidden], plan.dropout))
    last = _layer(type(old), plan.hidden[-1] if plan.hidden else features, classes)
    return Head(*layers, last) if layers else last


def _layers(kind: type, sizes: list[int], dropout: float) -> Iterator[nn.Module]:
    for start, end in zip(sizes, sizes[1:], strict=False):
        yield _layer(kind, start, end)
        yield nn.ReLU()
        if dropout:
            yield nn.Dropout(dropout)
    if dropout and len(sizes) == 1:
        yield nn.Dropout(dropout)


def _layer(kind: type, start: int, end: int) -> nn.Module:
    """A linear layer, or in SqueezeNet and its like a 1x1 convolution, which is one at each place."""
    return nn.Conv2d(start, end, kernel_size=1) if issubclass(kind, nn.Conv2d) else nn.Linear(start, end)
