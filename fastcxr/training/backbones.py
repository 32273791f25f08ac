"""A name becomes a backbone: the network, its layer groups, its weights, and the pixels that those weights expect."""

import logging
import os
import socket
import urllib.request
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from urllib.error import URLError
from urllib.parse import urlparse

import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from timm.models._manipulate import group_with_matcher  # timm's own reading of each network's depth
from torch import nn

from fastcxr.errors import RecipeError, WeightsError
from fastcxr.training.weights import load_weights

log = logging.getLogger("fastcxr")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BODY_GROUPS = 4  # with the head five: enough for rates that fall towards the stem, few enough to read
WAYS_OUT = "Give --weights FILE, downloaded elsewhere from {url}, or --weights none to start from random weights"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network by library, name and weights tag, with the size and the normalization its weights were made for."""

    library: str
    name: str
    tag: str | None
    native_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_size: bool
    url: str | None

    @property
    def full_name(self) -> str:
        """The name with its weights tag, as its library spells it."""
        return f"{self.name}.{self.tag}" if self.tag and self.library == "timm" else self.name


def find_backbone(name: str, weights: str = "imagenet") -> Backbone:
    """The backbone that a person means by `name`; timm wins a name that torchvision has too.

    Raises RecipeError for a name that neither has. With weights "imagenet", a name without weights of its own
    resolves to its closest kin that has them (efficientnet_b7 to tf_efficientnet_b7).
    """
    library, _, plain = name.rpartition(":")
    if library not in ("", "timm", "torchvision"):
        raise RecipeError(f"no library called {library!r}", "Write timm:NAME or torchvision:NAME")
    if library != "torchvision" and timm.is_model(plain):
        return _find_timm(plain, weights)
    if library != "timm" and plain in torchvision_names():
        return _find_torchvision(plain)
    raise _unknown_name(plain, library)


def explain_choice(asked: str, backbone: Backbone, weights: str) -> str | None:
    """One line on what a plain name became, or None where there was nothing to choose."""
    plain = asked.rpartition(":")[2]
    if weights != "imagenet" or plain == backbone.full_name or backbone.tag is None:
        return None
    if plain != backbone.name:
        return f"{plain} has no pretrained weights of its own: {backbone.full_name} stands in (the same architecture)"
    others = len(list_pretrained(f"{backbone.name}.*")) - 1 if backbone.library == "timm" else 0
    return f"{plain} has {others + 1} sets of pretrained weights: {backbone.tag} is used" if others else None


def make_network(backbone: Backbone, classes: int, weights: str, image_size: int) -> nn.Module:
    """The network with a new head for `classes` labels. Its body holds `weights`: "imagenet", "none", or a file's.

    Raises WeightsError when weights are out of reach or do not fit: never a silent random start.
    """
    if backbone.library == "torchvision":
        network = _make_torchvision(backbone, classes, weights, image_size)
    else:
        network = _make_timm(backbone, classes, weights, image_size)
    _start_even(head_of(network))
    if weights not in ("imagenet", "none"):
        load_weights(network, weights, head_keys(network))
    return network


def head_of(network: nn.Module) -> nn.Module:
    """The module that turns features into one number a class."""
    if not hasattr(network, "get_classifier"):
        return _last_layer(network)[1]
    head = network.get_classifier()
    return nn.ModuleList(head) if isinstance(head, tuple | list) else head  # distilled networks have two


def head_keys(network: nn.Module) -> set[str]:
    """Names of the head's parameters in the state dict."""
    head = {id(parameter) for parameter in head_of(network).parameters()}
    return {name for name, parameter in network.named_parameters() if id(parameter) in head}


def layer_groups(network: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters in three to five lists, from stem to head: what freezing and discriminative rates work on."""
    head = head_keys(network)
    layers = [[name for name in layer if name not in head] for layer in _layers(network)]
    bodies = _merge([layer for layer in layers if layer], BODY_GROUPS)
    parameters = dict(network.named_parameters())
    return [[parameters[name] for name in group] for group in [*bodies, sorted(head)]]


def torchvision_names() -> list[str]:
    """Every classification network of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def _find_timm(plain: str, weights: str) -> Backbone:
    config = _timm_config(plain)
    if weights == "imagenet" and not config.has_weights:
        kin = [f"{prefix}{plain}" for prefix in ("tf_", "tv_") if timm.is_model(f"{prefix}{plain}")]
        kin = [name for name in kin if get_pretrained_cfg(name).has_weights]
        if not kin:
            raise WeightsError(
                f"{plain} has no pretrained weights anywhere in timm",
                "Take one that `fastcxr models` marks as pretrained, or give --weights FILE or --weights none",
                code="E201",
            )
        plain, config = kin[0], get_pretrained_cfg(kin[0])
    return Backbone(
        library="timm", name=plain.partition(".")[0], tag=config.tag if config.has_weights else None,
        native_size=config.input_size[-1], mean=tuple(config.mean), std=tuple(config.std),
        fixed_size=bool(config.fixed_input_size),
        url=f"{ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else config.url or None,
    )  # fmt: skip


def _timm_config(name: str) -> PretrainedCfg:
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        plain, _, tag = name.partition(".")
        tags = [found.partition(".")[2] for found in list_pretrained(f"{plain}.*")]
        raise RecipeError(
            f"{plain} has no weights tagged {tag!r}", f"Choose from {', '.join(tags) or 'none'}"
        ) from error


def _find_torchvision(name: str) -> Backbone:
    best = torchvision.models.get_model_weights(name).DEFAULT
    seen = best.transforms()
    return Backbone(
        library="torchvision", name=name, tag=best.name, native_size=seen.crop_size[0], mean=tuple(seen.mean),
        std=tuple(seen.std), fixed_size=name.startswith("vit_"), url=best.url,
    )  # fmt: skip


def _unknown_name(name: str, library: str) -> RecipeError:
    known = ([] if library == "torchvision" else timm.list_models()) + (
        [] if library == "timm" else torchvision_names()
    )
    close = get_close_matches(name, known, n=1) or get_close_matches(f"{name}_100", known, n=1)
    what = f"no backbone called {name!r}" + (f" in {library}" if library else "")
    fix = f"Did you mean {close[0]!r}?" if close else "`fastcxr models` lists them"
    return RecipeError(what, f"{fix} `fastcxr models '*{name[:8]}*'` searches them" if close else fix)


def _make_timm(backbone: Backbone, classes: int, weights: str, image_size: int) -> nn.Module:
    options = {"img_size": image_size} if backbone.fixed_size and image_size != backbone.native_size else {}
    if weights != "imagenet":
        return _construct(backbone, timm.create_model, backbone.name, num_classes=classes, **options)
    cached = _cached_file(backbone)
    if cached:
        options["pretrained_cfg_overlay"] = {"file": cached}
    else:
        _require_host(backbone)
    return _fetch(backbone, timm.create_model, backbone.full_name, pretrained=True, num_classes=classes, **options)


def _make_torchvision(backbone: Backbone, classes: int, weights: str, image_size: int) -> nn.Module:
    if backbone.fixed_size and image_size != backbone.native_size:
        raise RecipeError(
            f"torchvision:{backbone.name} takes {backbone.native_size} px only, image_size is {image_size}",
            f"Give --image-size {backbone.native_size}, or timm's network of that kind, which adapts",
        )
    # Inception and GoogLeNet answer with extra outputs unless told not to; pretrained ones need them built first
    make = torchvision.models.get_model
    if weights == "imagenet":
        file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(backbone.url).path))
        if not os.path.exists(file):
            _require_host(backbone)
        network = _fetch(backbone, make, backbone.name, weights=backbone.tag)
    else:
        network = _construct(backbone, make, backbone.name, weights=None)
    if hasattr(network, "aux_logits"):
        network.aux_logits, network.AuxLogits, network.aux1, network.aux2 = False, None, None, None
    _replace_head(network, classes)
    return network


def _last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _replace_head(network: nn.Module, classes: int) -> None:
    """Give a torchvision network a new last layer: a Linear everywhere, a 1x1 convolution in SqueezeNet."""
    name, old = _last_layer(network)
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes)
    else:
        new = nn.Conv2d(old.in_channels, classes, kernel_size=1)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def _start_even(head: nn.Module) -> None:
    """A new head gives every class the same probability: timm's, scaled for 1000 classes, would shout at random."""
    for parameter in head.parameters():
        nn.init.zeros_(parameter)


def _construct(backbone: Backbone, make, *args, **options) -> nn.Module:
    try:
        return make(*args, **options)
    except (AssertionError, TypeError, ValueError) as error:
        # each network has rules of its own on image sizes; its message is the best there is
        raise RecipeError(
            f"{backbone.name} cannot be built ({error})", "Try its native --image-size, or another backbone"
        ) from error


def _fetch(backbone: Backbone, make, *args, **options) -> nn.Module:
    try:
        return _construct(backbone, make, *args, **options)
    except (OSError, URLError) as error:
        raise _unreachable(backbone) from error


def _unreachable(backbone: Backbone) -> WeightsError:
    host = urlparse(backbone.url or ENDPOINT).netloc
    return WeightsError(
        f"the pretrained weights of {backbone.full_name} cannot be fetched: {host} is out of reach",
        WAYS_OUT.format(url=backbone.url),
        code="E201",
    )


def _require_host(backbone: Backbone) -> None:
    """Fail at once where the host has no address: the hub's own client would retry for most of a minute."""
    host = urlparse(backbone.url or ENDPOINT).hostname
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise _unreachable(backbone) from error
    log.info("fetching the pretrained weights of %s from %s", backbone.full_name, host)


def _cached_file(backbone: Backbone) -> str | None:
    repository = backbone.url.removeprefix(f"{ENDPOINT}/") if backbone.url else ""
    if repository.count("/") != 1:
        return None
    found = [try_to_load_from_cache(repository, name) for name in ("model.safetensors", "pytorch_model.bin")]
    return next((file for file in found if isinstance(file, str)), None)


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
