"""A description becomes the head of a network: what stands between its pooled features and one number a class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """Sizes of the hidden layers, and the share that dropout takes; without both the head is one linear layer.

    depths: the head sees pooled features of several depths of the network, not of its last layer alone.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    depths: bool = False


LINEAR = HeadPlan()


class Head(nn.Sequential):
    """Linear, ReLU and dropout for each hidden size, then a linear layer; without a hidden size dropout comes first.

    Only the last layer starts at zero (see start_even): hidden ones need the random start to learn different things.
    """


class DepthHead(nn.Module):
    """One linear layer on features of several depths: the pooled maps of the network's stages beside its last ones.

    What a lobe looks like stands in the last features, what its texture is like in earlier ones (as Hariharan 2015
    argues for "hypercolumns"). Every feature is standardised by `mean` and `deviation`, which are set, not learned.
    """

    def __init__(self, network: nn.Module, old: nn.Module, classes: int, image: torch.Tensor):
        super().__init__()
        depths = find_depths(network, image)
        self.stages, self.channels, self.seen = tuple(depths), tuple(depths.values()), []
        self.channels_last = is_channels_last(network)
        for number, name in enumerate(depths):
            stage = network.get_submodule(name)
            stage.register_forward_hook(self.catch)
            if not number:
                stage.register_forward_pre_hook(self.begin)
        features = sum(self.channels) + _features_into(old)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.linear = nn.Linear(features, classes)

    def begin(self, stage: nn.Module, inputs: tuple) -> None:
        """Forget what a batch that never came to its end left behind."""
        self.seen = []

    def catch(self, stage: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Keep what a stage gives out, pooled over places, until the head's turn."""
        self.seen.append(pool(output, self.channels[len(self.seen)], self.channels_last))

    def forward(self, last: torch.Tensor) -> torch.Tensor:
        """`last`: (n, features of the last layer), (n, k) comes out."""
        return self.linear((self.gather(last) - self.mean) / self.deviation)

    def gather(self, last: torch.Tensor) -> torch.Tensor:
        """All features of a batch, in single precision; shape (n, features)."""
        seen, self.seen = self.seen, []
        return torch.cat([*(part.float() for part in seen), last.float().flatten(1)], dim=1)


def find_depths(network: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Stages of the network as timm lists them, by the name of the module, with their channels; none for others.

    `image`: one to try them on. Stages that give no map of it, or several at once, are left out.
    """
    known, found = dict(network.named_modules()), {}
    stages = {stage["module"]: stage["num_chs"] for stage in getattr(network, "feature_info", None) or []}
    hooks = [
        known[name].register_forward_hook(lambda stage, inputs, output, name=name: found.update({name: output}))
        for name in stages.keys() & known.keys()
    ]
    if hooks:
        _try(network, image)
    for hook in hooks:
        hook.remove()
    last = is_channels_last(network)
    return {name: stages[name] for name, output in found.items() if _is_map(output, stages[name], last)}


def _try(network: nn.Module, image: torch.Tensor) -> None:
    was_training = network.training
    with torch.no_grad():
        network.eval()(image)  # in the mode of use: batch norm keeps its statistics
    network.train(was_training)


def _is_map(output: Any, channels: int, channels_last: bool) -> bool:
    maps = isinstance(output, torch.Tensor) and output.ndim > 2
    return maps and pool(output, channels, channels_last).shape == (1, channels)


def is_channels_last(network: nn.Module) -> bool:
    """Whether maps of the network have their channels last, as timm says."""
    return getattr(network, "output_fmt", None) == "NHWC"


def pool(maps: torch.Tensor, channels: int, channels_last: bool = False) -> torch.Tensor:
    """Maps with the channels second or last, or tokens, averaged over places: shape (n, channels).

    `channels_last` matters where a map is as high or as wide as it has channels.
    """
    second = maps.ndim == 4 and maps.shape[1] == channels and not (channels_last and maps.shape[3] == channels)
    return maps.mean(dim=(2, 3) if second else tuple(range(1, maps.ndim - 1)))


def is_banked(recipe: Recipe) -> bool:
    """Whether the head is fitted on a bank of features; those of random weights would be none to fine-tune from."""
    return recipe.strategy == "probe" or (recipe.strategy == "rapid" and recipe.weights != "none")


def plan_head(recipe: Recipe) -> HeadPlan:
    """The head that a recipe describes. Raises RecipeError for one that cannot be fitted."""
    if not is_banked(recipe):
        return HeadPlan(hidden=recipe.head, dropout=recipe.dropout)
    if recipe.head or recipe.dropout:
        raise RecipeError(
            f"strategy {recipe.strategy} fits one linear layer, and the recipe asks for hidden layers or dropout",
            "Leave --head and --dropout out, or give --strategy fine",
        )
    return HeadPlan(depths=True)


def head_of(network: nn.Module) -> nn.Module:
    """The module that turns features into one number a class, hidden layers included."""
    own = [module for module in network.modules() if isinstance(module, Head | DepthHead)]
    found = own or _classifiers(network)
    return found[0] if len(found) == 1 else nn.ModuleList(found)


def head_keys(network: nn.Module) -> set[str]:
    """Names of the head's parameters in the state dict."""
    head = {id(parameter) for parameter in head_of(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head}


def head_entries(network: nn.Module) -> set[str]:
    """Names of all that the head has in the state dict, what is set and not learned included."""
    places = tuple(f"{name}." for name in head_names(network))
    return {name for name in network.state_dict() if name.startswith(places)}


def head_names(network: nn.Module) -> list[str]:
    """Where the head stands in the network; two places in distilled ones."""
    head = head_of(network)
    heads = {id(part) for part in (head if isinstance(head, nn.ModuleList) else [head])}
    return [name for name, module in network.named_modules() if id(module) in heads]


def replace_head(network: nn.Module, classes: int, plan: HeadPlan, image: torch.Tensor | None = None) -> None:
    """Give a network a new head, in place. `image`: what it will see, for a plan with depths."""
    names = {id(module): name for name, module in network.named_modules()}
    if plan.depths and len(_classifiers(network)) > 1:
        raise RecipeError("this backbone has two heads, and only one can be fitted", "Give --strategy fine")
    for old in _classifiers(network):
        parent, _, child = names[id(old)].rpartition(".")
        new = DepthHead(network, old, classes, image) if plan.depths else _make_head(old, classes, plan)
        setattr(network.get_submodule(parent), child, new)


def start_even(network: nn.Module) -> None:
    """Let a new head give every class the same probability: timm's, scaled for 1000 classes, would shout at random."""
    head = head_of(network)
    for part in head if isinstance(head, nn.ModuleList) else [head]:
        last = part[-1] if isinstance(part, Head) else part
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


def _classifiers(network: nn.Module) -> list[nn.Module]:
    """The last layer, as timm's networks name it themselves; distilled networks have two."""
    if hasattr(network, "get_classifier"):
        found = network.get_classifier()
        return list(found) if isinstance(found, tuple | list) else [found]
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]


def _features_into(old: nn.Module) -> int:
    if not isinstance(old, nn.Linear):
        raise RecipeError(
            f"the head of this backbone is a {type(old).__name__}: features of several depths do not fit beside it",
            "Give --strategy fine, or take another backbone",
        )
    return old.in_features


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


def look(network: nn.Module, images: torch.Tensor, depths: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, shape (n, k), and the maps of the stages pooled over places, shape (n, all channels), single precision.

    `depths`: stages by the name of the module, in the order of the pass, with their channels; see heads.find_depths.
    """
    if isinstance(network, Watched):
        return network(images)
    seen, channels_last = [], is_channels_last(network)
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda stage, inputs, output, channels=channels: seen.append(pool(output, channels, channels_last).float())
        )
        for name, channels in depths.items()
    ]
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.cat(seen, dim=1)


class Watched(nn.Module):
    """A network that answers with what its stages see too, so that it can be converted as a whole."""

    def __init__(self, network: nn.Module, depths: Mapping[str, int]):
        super().__init__()
        self.network, self.depths = network, depths

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, size, size) -> (n, k) and (n, all channels of the stages)."""
        return look(self.network, images, self.depths)
