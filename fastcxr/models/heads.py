"""A description becomes the head of a network: what stands between its pooled features and one number a class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the hidden layers, and the share that dropout takes; without both the head is one linear layer.

    multi_scale: the head sees pooled features of several depths of the network, not of its last layer alone.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    multi_scale: bool = False


LINEAR_HEAD = HeadConfig()


class Head(nn.Sequential):
    """Linear, ReLU and dropout for each hidden size, then a linear layer; without a hidden size dropout comes first.

    Only the last layer starts at zero (see zero_init): hidden ones need the random start to learn different things.
    """


class MultiScaleHead(nn.Module):
    """One linear layer on features of several depths: the pooled maps of the network's stages beside its last ones.

    What a lobe looks like stands in the last features, what its texture is like in earlier ones (as Hariharan 2015
    argues for "hypercolumns"). Every feature is standardised by `mean` and `std`, which are set, not learned.
    """

    def __init__(self, network: nn.Module, old_head: nn.Module, n_classes: int, image: torch.Tensor):
        super().__init__()
        stage_channels = find_stages(network, image)
        self.stages, self.channels, self.stage_features = tuple(stage_channels), tuple(stage_channels.values()), []
        self.channels_last = is_channels_last(network)
        for index, name in enumerate(stage_channels):
            stage = network.get_submodule(name)
            stage.register_forward_hook(self.store_features)
            if not index:
                stage.register_forward_pre_hook(self.reset_features)
        n_features = sum(self.channels) + _count_input_features(old_head)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.linear = nn.Linear(n_features, n_classes)

    def reset_features(self, stage: nn.Module, inputs: tuple) -> None:
        """Forget what a batch that never came to its end left behind."""
        self.stage_features = []

    def store_features(self, stage: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Keep what a stage gives out, pooled over places, until the head's turn."""
        self.stage_features.append(pool_features(output, self.channels[len(self.stage_features)], self.channels_last))

    def forward(self, last_features: torch.Tensor) -> torch.Tensor:
        """`last_features`: (n, features of the last layer), (n, k) comes out."""
        return self.linear((self.gather_features(last_features) - self.mean) / self.std)

    def gather_features(self, last_features: torch.Tensor) -> torch.Tensor:
        """All features of a batch, in single precision; shape (n, features)."""
        stage_features, self.stage_features = self.stage_features, []
        return torch.cat([*(features.float() for features in stage_features), last_features.float().flatten(1)], dim=1)


def find_stages(network: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Stages of the network as timm lists them, by the name of the module, with their channels; none for others.

    `image`: one to try them on. Stages that give no map of it, or several at once, are left out.
    """
    module_by_name, outputs = dict(network.named_modules()), {}
    stage_channels = {stage["module"]: stage["num_chs"] for stage in getattr(network, "feature_info", None) or []}
    hooks = [
        module_by_name[name].register_forward_hook(
            lambda stage, inputs, output, name=name: outputs.update({name: output})
        )
        for name in stage_channels.keys() & module_by_name.keys()
    ]
    if hooks:
        _run_in_eval_mode(network, image)
    for hook in hooks:
        hook.remove()
    channels_last = is_channels_last(network)
    return {
        name: stage_channels[name]
        for name, output in outputs.items()
        if _is_feature_map(output, stage_channels[name], channels_last)
    }


def _run_in_eval_mode(network: nn.Module, image: torch.Tensor) -> None:
    was_training = network.training
    with torch.no_grad():
        network.eval()(image)  # in the mode of use: batch norm keeps its statistics
    network.train(was_training)


def _is_feature_map(output: Any, n_channels: int, channels_last: bool) -> bool:
    is_spatial = isinstance(output, torch.Tensor) and output.ndim > 2
    return is_spatial and pool_features(output, n_channels, channels_last).shape == (1, n_channels)


def is_channels_last(network: nn.Module) -> bool:
    """Whether maps of the network have their channels last, as timm says."""
    return getattr(network, "output_fmt", None) == "NHWC"


def pool_features(maps: torch.Tensor, n_channels: int, channels_last: bool = False) -> torch.Tensor:
    """Maps with the channels second or last, or tokens, averaged over places: shape (n, channels).

    `channels_last` matters where a map is as high or as wide as it has channels.
    """
    is_channels_second = (
        maps.ndim == 4 and maps.shape[1] == n_channels and not (channels_last and maps.shape[3] == n_channels)
    )
    return maps.mean(dim=(2, 3) if is_channels_second else tuple(range(1, maps.ndim - 1)))


def uses_feature_bank(recipe: Recipe) -> bool:
    """Whether the head is fitted on a bank of features; those of random weights would be none to fine-tune from."""
    return recipe.strategy == "linear_probe" or (recipe.strategy == "lp_ft" and recipe.weights != "none")


def head_config(recipe: Recipe) -> HeadConfig:
    """The head that a recipe describes. Raises RecipeError for one that cannot be fitted."""
    if not uses_feature_bank(recipe):
        return HeadConfig(hidden=recipe.head_hidden, dropout=recipe.dropout)
    if recipe.head_hidden or recipe.dropout:
        raise RecipeError(
            f"strategy {recipe.strategy} fits one linear layer, and the recipe asks for hidden layers or dropout",
            "Leave --head-hidden and --dropout out, or give --strategy gradual",
        )
    return HeadConfig(multi_scale=True)


def find_head(network: nn.Module) -> nn.Module:
    """The module that turns features into one number a class, hidden layers included."""
    custom_heads = [module for module in network.modules() if isinstance(module, Head | MultiScaleHead)]
    heads = custom_heads or _find_classifiers(network)
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def find_head_parameters(network: nn.Module) -> set[str]:
    """Names of the head's parameters in the state dict."""
    head_ids = {id(parameter) for parameter in find_head(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head_ids}


def find_head_state_keys(network: nn.Module) -> set[str]:
    """Names of all that the head has in the state dict, what is set and not learned included."""
    prefixes = tuple(f"{name}." for name in find_head_modules(network))
    return {name for name in network.state_dict() if name.startswith(prefixes)}


def find_head_modules(network: nn.Module) -> list[str]:
    """Where the head stands in the network; two places in distilled ones."""
    head = find_head(network)
    head_ids = {id(module) for module in (head if isinstance(head, nn.ModuleList) else [head])}
    return [name for name, module in network.named_modules() if id(module) in head_ids]


def replace_head(network: nn.Module, n_classes: int, config: HeadConfig, image: torch.Tensor | None = None) -> None:
    """Give a network a new head, in place. `image`: what it will see, for a multi-scale head."""
    name_by_id = {id(module): name for name, module in network.named_modules()}
    if config.multi_scale and len(_find_classifiers(network)) > 1:
        raise RecipeError("this backbone has two heads, and only one can be fitted", "Give --strategy gradual")
    for old_head in _find_classifiers(network):
        parent, _, child = name_by_id[id(old_head)].rpartition(".")
        new_head = (
            MultiScaleHead(network, old_head, n_classes, image)
            if config.multi_scale
            else _make_head(old_head, n_classes, config)
        )
        setattr(network.get_submodule(parent), child, new_head)


def zero_init(network: nn.Module) -> None:
    """Let a new head give every class the same probability: timm's, scaled for 1000 classes, would shout at random."""
    head = find_head(network)
    for module in head if isinstance(head, nn.ModuleList) else [head]:
        last_layer = module[-1] if isinstance(module, Head) else module
        for parameter in last_layer.parameters():
            nn.init.zeros_(parameter)


def _find_classifiers(network: nn.Module) -> list[nn.Module]:
    """The last layer, as timm's networks name it themselves; distilled networks have two."""
    if hasattr(network, "get_classifier"):
        classifiers = network.get_classifier()
        return list(classifiers) if isinstance(classifiers, tuple | list) else [classifiers]
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]


def _count_input_features(old_head: nn.Module) -> int:
    if not isinstance(old_head, nn.Linear):
        raise RecipeError(
            f"the head of this backbone is a {type(old_head).__name__}: features of several depths do not fit beside "
            f"it",
            "Give --strategy gradual, or take another backbone",
        )
    return old_head.in_features


def _make_head(old_head: nn.Module, n_classes: int, config: HeadConfig) -> nn.Module:
    if not isinstance(old_head, nn.Linear | nn.Conv2d):
        raise RecipeError(
            f"the head of this backbone is a {type(old_head).__name__}, which cannot be replaced",
            "Leave --head-hidden and --dropout out, or take another backbone",
        )
    features = old_head.in_features if isinstance(old_head, nn.Linear) else old_head.in_channels
    layers = list(_make_hidden_layers(type(old_head), [features, *config.hidden], config.dropout))
    last_layer = _make_layer(type(old_head), config.hidden[-1] if config.hidden else features, n_classes)
    return Head(*layers, last_layer) if layers else last_layer


def _make_hidden_layers(layer_type: type, sizes: list[int], dropout: float) -> Iterator[nn.Module]:
    for in_features, out_features in zip(sizes, sizes[1:], strict=False):
        yield _make_layer(layer_type, in_features, out_features)
        yield nn.ReLU()
        if dropout:
            yield nn.Dropout(dropout)
    if dropout and len(sizes) == 1:
        yield nn.Dropout(dropout)


def _make_layer(layer_type: type, in_features: int, out_features: int) -> nn.Module:
    """A linear layer, or in SqueezeNet and its like a 1x1 convolution, which is one at each place."""
    return (
        nn.Conv2d(in_features, out_features, kernel_size=1)
        if issubclass(layer_type, nn.Conv2d)
        else nn.Linear(in_features, out_features)
    )


def forward_with_features(
    network: nn.Module, images: torch.Tensor, stage_channels: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, shape (n, k), and the maps of the stages pooled over places, shape (n, all channels), single precision.

    `stage_channels`: channels by the name of the module, in the order of the forward pass; see find_stages.
    """
    if isinstance(network, StageFeatureExtractor):
        return network(images)
    features, channels_last = [], is_channels_last(network)
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda stage, inputs, output, channels=channels: features.append(
                pool_features(output, channels, channels_last).float()
            )
        )
        for name, channels in stage_channels.items()
    ]
    try:
        logits = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, torch.cat(features, dim=1)


class StageFeatureExtractor(nn.Module):
    """A network that answers with what its stages see too, so that it can be converted as a whole."""

    def __init__(self, network: nn.Module, stage_channels: Mapping[str, int]):
        super().__init__()
        self.network, self.stage_channels = network, stage_channels

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, size, size) -> (n, k) and (n, all channels of the stages)."""
        return forward_with_features(self.network, images, self.stage_channels)
