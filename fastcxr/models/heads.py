"""Classification heads: linear, with hidden layers, or linear on pooled features of several stages of the network."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Sizes of the hidden layers and dropout rate of a head; the default is one linear layer.

    multi_scale: use pooled features of all stages of the network in addition to those of its last layer.
    """

    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    multi_scale: bool = False


LINEAR_HEAD = HeadConfig()


class Float64Linear(nn.Linear):
    """A linear layer that computes in float64 at inference, also under autocast.

    In float32 the last digits of a matrix product depend on the number of rows. Here a row has the same output in a
    batch of any size.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the outputs, in float32 at inference; shape (..., out_features)."""
        if self.training or features.device.type == "mps":  # Apple GPUs have no float64
            return super().forward(features)
        bias = None if self.bias is None else self.bias.double()
        return nn.functional.linear(features.double(), self.weight.double(), bias).float()


class Head(nn.Sequential):
    """Linear, ReLU and dropout for each hidden size, then a linear layer; without a hidden size dropout comes first.

    Only the last layer is initialized with zeros (see zero_init): equal hidden units would remain equal in training.
    """


class MultiScaleHead(nn.Module):
    """One linear layer on pooled features of the network's stages and its last layer.

    Late stages encode shape and location, early ones texture (Hariharan 2015, "hypercolumns"). Every feature is
    standardized by the buffers `mean` and `std`, which are not trained.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, old_head: nn.Module, n_classes: int, image: torch.Tensor):
        super().__init__()
        if not isinstance(old_head, nn.Linear):
            problem = f"features of several stages need a linear head; this backbone has a {type(old_head).__name__}"
            raise RecipeError(problem, "Pass `strategy='gradual'`, or choose another backbone")
        stage_channels = find_stages(network, image)
        self.stages, self.channels, self.stage_features = tuple(stage_channels), tuple(stage_channels.values()), []
        self.channels_last, self.n_unpooled_tokens = is_channels_last(network), find_n_unpooled_tokens(network)
        for index, name in enumerate(stage_channels):
            stage = network.get_submodule(name)
            stage.register_forward_hook(self.store_features)
            if not index:
                stage.register_forward_pre_hook(self.reset_features)
        n_features = sum(self.channels) + old_head.in_features
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.linear = nn.Linear(n_features, n_classes)

    def reset_features(self, stage: nn.Module, inputs: tuple) -> None:
        """Delete the features of an earlier batch that did not reach the head."""
        self.stage_features = []

    def store_features(self, stage: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Store the pooled output of a stage for the head."""
        n_channels = self.channels[len(self.stage_features)]
        self.stage_features.append(pool_features(output, n_channels, self.channels_last, self.n_unpooled_tokens))

    def forward(self, last_features: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, n_classes), from the last layer's features, shape (n, in_features)."""
        return self.classify(self.gather_features(last_features))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, n_classes), from all features, shape (n, features)."""
        return self.linear((features - self.mean) / self.std)

    def gather_features(self, last_features: torch.Tensor) -> torch.Tensor:
        """Return all features of a batch in float32, shape (n, features), and delete the stored ones."""
        stage_features, self.stage_features = self.stage_features, []
        return torch.cat([*(features.float() for features in stage_features), last_features.float().flatten(1)], dim=1)


def find_stages(network: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """Return the number of channels of the stages listed by timm, by module name; empty for other networks.

    Stages that do not output exactly one feature map in a trial forward pass of `image` are left out.
    """
    outputs: dict[str, Any] = {}
    stage_channels = {stage["module"]: stage["num_chs"] for stage in getattr(network, "feature_info", None) or []}
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if name in stage_channels:

                def store(stage: nn.Module, inputs: tuple, output: Any, name: str = name) -> None:
                    outputs[name] = output

                hooks.enter_context(module.register_forward_hook(store))
        if stage_channels:
            run_in_eval_mode(network, image)
    maps = {name: output for name, output in outputs.items() if isinstance(output, torch.Tensor) and output.ndim > 2}
    layout = is_channels_last(network), find_n_unpooled_tokens(network)
    pooled = {name: pool_features(maps[name], stage_channels[name], *layout) for name in maps}
    return {name: stage_channels[name] for name in maps if pooled[name].shape == (1, stage_channels[name])}


def run_in_eval_mode(network: nn.Module, image: torch.Tensor) -> None:
    """Run a forward pass without gradients that keeps batch norm statistics and the mode of the network."""
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(was_training)


def is_channels_last(network: nn.Module) -> bool:
    """Return whether timm documents the feature maps of the network as (n, height, width, channels)."""
    return getattr(network, "output_fmt", None) == "NHWC"


def find_n_unpooled_tokens(network: nn.Module) -> int:
    """Return how many class and register tokens, which come first, are left out of the mean of the tokens.

    make_encoder_network sets the number. It is 0 for other networks, so that runs saved by earlier versions of fastcxr
    predict the same.
    """
    return getattr(network, "n_unpooled_tokens", 0)


def pool_features(
    maps: torch.Tensor, n_channels: int, channels_last: bool = False, n_unpooled_tokens: int = 0
) -> torch.Tensor:
    """Return the mean over all positions of feature maps or tokens, shape (n, channels).

    `channels_last` decides if both the second and the last dimension of a map have `n_channels` entries.
    `n_unpooled_tokens`: number of first tokens that are no positions; maps have none.
    """
    if maps.ndim == 3:
        return maps[:, n_unpooled_tokens:].mean(dim=1)
    is_channels_second = (
        maps.ndim == 4 and maps.shape[1] == n_channels and not (channels_last and maps.shape[3] == n_channels)
    )
    return maps.mean(dim=(2, 3) if is_channels_second else tuple(range(1, maps.ndim - 1)))


def uses_feature_cache(recipe: Recipe) -> bool:
    """Return whether the head is fitted on cached features; LP-FT needs pretrained weights for this."""
    return recipe.strategy == "linear_probe" or (recipe.strategy == "lp_ft" and recipe.weights != "none")


def head_config(recipe: Recipe) -> HeadConfig:
    """Return the head of a recipe. Raise RecipeError if the strategy does not support it."""
    if not uses_feature_cache(recipe):
        return HeadConfig(hidden=recipe.head_hidden, dropout=recipe.dropout)
    if recipe.head_hidden or recipe.dropout:
        problem = f"strategy {recipe.strategy} fits one linear layer and supports neither hidden layers nor dropout"
        raise RecipeError(problem, "Remove `head_hidden` and `dropout`, or pass `strategy='gradual'`")
    return HeadConfig(multi_scale=True)


def find_head(network: nn.Module) -> nn.Module:
    """Return the head, hidden layers included; for the two heads of a distilled network, a ModuleList."""
    heads = _list_heads(network)
    return heads[0] if len(heads) == 1 else nn.ModuleList(heads)


def _list_heads(network: nn.Module) -> Sequence[nn.Module]:
    custom_heads = [module for module in network.modules() if isinstance(module, Head | MultiScaleHead)]
    return custom_heads or _find_classifiers(network)


def set_output_bias(network: nn.Module, bias: torch.Tensor) -> None:
    """Set the bias of the last layer of each new head; `bias`: of each output, shape (k,).

    A new head has a bias of zero. Layers without bias, and heads with loaded weights, are kept.
    """
    for head in _list_heads(network):
        layers = [module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if layers and layers[-1].bias is not None and not layers[-1].bias.any():
            with torch.no_grad():
                layers[-1].bias.copy_(bias)


def find_head_parameters(network: nn.Module) -> set[str]:
    """Return the names of the head's parameters."""
    head_ids = {id(parameter) for parameter in find_head(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head_ids}


def find_head_state_keys(network: nn.Module) -> set[str]:
    """Return the keys of the head in the state dict: parameters and buffers."""
    prefixes = tuple(f"{name}." for name in find_head_modules(network))
    return {name for name in network.state_dict() if name.startswith(prefixes)}


def find_head_modules(network: nn.Module) -> list[str]:
    """Return the module names of the head; a distilled network has two."""
    head_ids = {id(module) for module in _list_heads(network)}
    return [name for name, module in network.named_modules() if id(module) in head_ids]


def replace_head(network: nn.Module, n_classes: int, config: HeadConfig, image: torch.Tensor) -> None:
    """Replace the head of a network in place. `image`: input for the trial forward pass of a multi-scale head."""
    name_by_id = {id(module): name for name, module in network.named_modules()}
    classifiers = _find_classifiers(network)
    if config.multi_scale and len(classifiers) > 1:
        problem = f"the backbone has {len(classifiers)} heads, and only one can be fitted"
        raise RecipeError(problem, "Pass `strategy='gradual'`")
    for old_head in classifiers:
        parent, _, child = name_by_id[id(old_head)].rpartition(".")
        new_head = (
            MultiScaleHead(network, old_head, n_classes, image)
            if config.multi_scale
            else _make_head(old_head, n_classes, config)
        )
        setattr(network.get_submodule(parent), child, new_head)


def zero_init(network: nn.Module) -> None:
    """Set the last layer of the head to zero, which gives all classes the same initial probability."""
    for module in _list_heads(network):
        last_layer = module[-1] if isinstance(module, Head) else module
        for parameter in last_layer.parameters():
            nn.init.zeros_(parameter)


def use_float64_head(network: nn.Module) -> None:
    """Compute the head in float64 at inference, by changing the class of its linear layers."""
    for module in find_head(network).modules():
        if type(module) is nn.Linear:  # subclasses may compute something else
            module.__class__ = Float64Linear


def _find_classifiers(network: nn.Module) -> Sequence[nn.Module]:
    """Return the classifiers that a timm network names (two if distilled), or the last layer of another network."""
    if get_classifier := getattr(network, "get_classifier", None):
        classifiers = get_classifier()
        return classifiers if isinstance(classifiers, tuple | list) else [classifiers]
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]


def _make_head(old_head: nn.Module, n_classes: int, config: HeadConfig) -> nn.Module:
    if isinstance(old_head, nn.Linear):
        n_features, make_layer = old_head.in_features, nn.Linear
    elif isinstance(old_head, nn.Conv2d):  # SqueezeNet: a 1x1 convolution, which is a linear layer at each position
        n_features, make_layer = old_head.in_channels, partial(nn.Conv2d, kernel_size=1)
    else:
        problem = f"the head of this backbone is a {type(old_head).__name__}, which cannot be replaced"
        raise RecipeError(problem, "Remove `head_hidden` and `dropout`, or choose another backbone")
    sizes, layers = [n_features, *config.hidden], []
    for n_inputs, n_outputs in pairwise(sizes):
        layers += [make_layer(n_inputs, n_outputs), nn.ReLU()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
    if config.dropout and not layers:
        layers = [nn.Dropout(config.dropout)]
    last_layer = make_layer(sizes[-1], n_classes)
    return Head(*layers, last_layer) if layers else last_layer


def forward_with_features(
    network: nn.Module, images: torch.Tensor, stage_channels: Mapping[str, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, shape (n, n_classes), and pooled stage features in float32, shape (n, all channels).

    `stage_channels`: the result of find_stages, in the order of the forward pass.
    """
    if isinstance(network, StageFeatureExtractor):
        return network(images)
    features, layout = [], (is_channels_last(network), find_n_unpooled_tokens(network))
    with ExitStack() as hooks:
        for name, n_channels in stage_channels.items():
            # pooled at once: later layers may change the output in place
            def store(stage: nn.Module, inputs: tuple, output: torch.Tensor, n_channels: int = n_channels) -> None:
                features.append(pool_features(output, n_channels, *layout).float())

            hooks.enter_context(network.get_submodule(name).register_forward_hook(store))
        logits = network(images)
    return logits, torch.cat(features, dim=1)


class StageFeatureExtractor(nn.Module):
    """A network that returns logits and pooled stage features, for conversion as one module."""

    def __init__(self, network: nn.Module, stage_channels: Mapping[str, int]):
        super().__init__()
        self.network, self.stage_channels = network, stage_channels

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the result of forward_with_features for images of shape (n, channels, size, size)."""
        return forward_with_features(self.network, images, self.stage_channels)
