"""A name becomes a backbone: the network, its weights, and the pixels that those weights expect."""

import logging
import os
import socket
import urllib.request
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from torch import nn

from fastcxr.errors import RecipeError, WeightsError
from fastcxr.io.files import compute_sha256
from fastcxr.models import baseline_cnn
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig, replace_head, zero_init
from fastcxr.models.weights import XRV_MEAN, XRV_PREFIX, XRV_STD, find_xrv_weights, load_weights

log = logging.getLogger("fastcxr")
FASTCXR_BACKBONES = {"baseline_cnn": baseline_cnn.BaselineCNN}
RANDOM_WEIGHTS_NAME = "random weights"
UNREACHABLE_WEIGHTS_FIX = (
    "Give --weights FILE, downloaded elsewhere from {url}, or --weights none to start from random weights"
)


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


def find_backbone(name: str, weights: str = "pretrained") -> Backbone:
    """The backbone that a person means by `name`; timm wins a name that torchvision has too.

    Raises RecipeError for a name that nobody has. With weights "pretrained", a name without weights of its own
    resolves to its closest kin that has them (efficientnet_b7 to tf_efficientnet_b7).
    """
    library, _, base_name = name.rpartition(":")
    if library not in ("", "timm", "torchvision", "fastcxr"):
        raise RecipeError(f"no library called {library!r}", "Write timm:NAME or torchvision:NAME")
    if library in ("", "timm") and timm.is_model(base_name):
        backbone = _find_timm_backbone(base_name, weights)
    elif library in ("", "torchvision") and base_name in list_torchvision_names():
        backbone = _find_torchvision_backbone(base_name)
    elif library in ("", "fastcxr") and base_name in FASTCXR_BACKBONES:
        backbone = _find_fastcxr_backbone(base_name, weights)
    else:
        raise _make_unknown_name_error(base_name, library)
    return _adapt_to_chest_weights(backbone, weights) if weights.startswith(XRV_PREFIX) else backbone


def describe_weights_choice(requested_name: str, backbone: Backbone, weights: str) -> str | None:
    """One line on what a plain name became, or None where there was nothing to choose."""
    base_name = requested_name.rpartition(":")[2]
    if weights != "pretrained" or base_name == backbone.full_name or backbone.tag is None:
        return None
    if base_name != backbone.name:
        return (
            f"{base_name} has no pretrained weights of its own: {backbone.full_name} stands in (the same architecture)"
        )
    n_others = len(list_pretrained(f"{backbone.name}.*")) - 1 if backbone.library == "timm" else 0
    return f"{base_name} has {n_others + 1} sets of pretrained weights: {backbone.tag} is used" if n_others else None


def make_network(
    backbone: Backbone, n_classes: int, weights: str, image_size: int, head: HeadConfig = LINEAR_HEAD
) -> nn.Module:
    """The network with a new head for `classes` labels. Its body holds `weights`, as a recipe names them.

    Raises WeightsError when weights are out of reach or do not fit: never a silent random start.
    """
    if backbone.library == "fastcxr":
        network = FASTCXR_BACKBONES[backbone.name](n_classes)
    elif backbone.library == "torchvision":
        network = _make_torchvision_network(backbone, weights, image_size)
    else:
        network = _make_timm_network(backbone, n_classes, weights, image_size)
    if head != LINEAR_HEAD or backbone.library == "torchvision":
        replace_head(network, n_classes, head, torch.zeros(1, len(backbone.mean), image_size, image_size))
    zero_init(network)
    if weights not in ("pretrained", "none"):
        load_weights(network, weights)
    return network


def describe_backbone(backbone: Backbone, weights: str, network: nn.Module) -> dict[str, Any]:
    """Describe the network for model.json: library, name, size, and the weights that `make_network` loaded into it.

    `weights` becomes their name: mobilenetv2_100.ra_in1k, IMAGENET1K_V2, that of a file, or "random weights".
    """
    is_file = weights not in ("pretrained", "none") and not weights.startswith(XRV_PREFIX)
    pretrained_name = backbone.full_name if backbone.library == "timm" else backbone.tag
    names = {"pretrained": pretrained_name, "none": RANDOM_WEIGHTS_NAME}
    return {
        "library": backbone.library,
        "name": backbone.name,
        "tag": backbone.tag if weights == "pretrained" else None,
        "weights": Path(weights).name if is_file else names.get(weights, weights),
        "weights_sha256": compute_sha256(weights) if is_file else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def list_torchvision_names() -> list[str]:
    """Every classification network of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def _find_timm_backbone(base_name: str, weights: str) -> Backbone:
    config = _find_timm_config(base_name)
    if weights == "pretrained" and not config.has_weights:
        pretrained_variants = [
            f"{prefix}{base_name}" for prefix in ("tf_", "tv_") if timm.is_model(f"{prefix}{base_name}")
        ]
        pretrained_variants = [name for name in pretrained_variants if get_pretrained_cfg(name).has_weights]
        if not pretrained_variants:
            raise WeightsError(
                f"{base_name} has no pretrained weights anywhere in timm",
                "Take one that `fastcxr models` marks as pretrained, or give --weights FILE or --weights none",
                code="E201",
            )
        base_name, config = pretrained_variants[0], get_pretrained_cfg(pretrained_variants[0])
    return Backbone(
        library="timm", name=base_name.partition(".")[0], tag=config.tag if config.has_weights else None,
        native_size=config.input_size[-1], mean=tuple(config.mean), std=tuple(config.std),
        fixed_size=bool(config.fixed_input_size),
        url=f"{ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else config.url or None,
    )  # fmt: skip


def _find_timm_config(name: str) -> PretrainedCfg:
    try:
        return get_pretrained_cfg(name)
    except RuntimeError as error:
        base_name, _, tag = name.partition(".")
        tags = [full_name.partition(".")[2] for full_name in list_pretrained(f"{base_name}.*")]
        raise RecipeError(
            f"{base_name} has no weights tagged {tag!r}", f"Choose from {', '.join(tags) or 'none'}"
        ) from error


def _find_torchvision_backbone(name: str) -> Backbone:
    default_weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = default_weights.transforms()
    return Backbone(
        library="torchvision", name=name, tag=default_weights.name, native_size=transforms.crop_size[0],
        mean=tuple(transforms.mean), std=tuple(transforms.std), fixed_size=name.startswith("vit_"),
        url=default_weights.url,
    )  # fmt: skip


def _find_fastcxr_backbone(name: str, weights: str) -> Backbone:
    if weights == "pretrained":
        raise WeightsError(f"fastcxr:{name} has no pretrained weights", "Give --weights none or a file", code="E201")
    return Backbone(
        library="fastcxr", name=name, tag=None,
        native_size=baseline_cnn.NATIVE_SIZE, mean=baseline_cnn.MEAN, std=baseline_cnn.STD,
        fixed_size=False, url=None,
    )  # fmt: skip


def _adapt_to_chest_weights(backbone: Backbone, weights: str) -> Backbone:
    """The backbone with the pixels of torchxrayvision's weights: one channel, black -1024, white 1024."""
    architecture, size = find_xrv_weights(weights)
    if (backbone.library, backbone.name) != ("timm", architecture):
        raise RecipeError(
            f"{weights} are weights of {architecture}, not of {backbone.library}:{backbone.name}",
            f"Name {architecture} as the backbone",
        )
    return replace(backbone, tag=None, native_size=size, mean=XRV_MEAN, std=XRV_STD, url=None)


def _make_unknown_name_error(name: str, library: str) -> RecipeError:
    names = {
        "timm": timm.list_models,
        "torchvision": list_torchvision_names,
        "fastcxr": lambda: list(FASTCXR_BACKBONES),
    }
    known_names = [known for owner, list_names in names.items() if library in ("", owner) for known in list_names()]
    close = get_close_matches(name, known_names, n=1) or get_close_matches(f"{name}_100", known_names, n=1)
    problem = f"no backbone called {name!r}" + (f" in {library}" if library else "")
    fix = f"Did you mean {close[0]!r}?" if close else "`fastcxr models` lists them"
    return RecipeError(problem, f"{fix} `fastcxr models '*{name[:8]}*'` searches them" if close else fix)


def _make_timm_network(backbone: Backbone, n_classes: int, weights: str, image_size: int) -> nn.Module:
    options = {"img_size": image_size} if backbone.fixed_size and image_size != backbone.native_size else {}
    if len(backbone.mean) != 3:
        options["in_chans"] = len(backbone.mean)
    if weights != "pretrained":
        return _create_network(backbone, timm.create_model, backbone.name, num_classes=n_classes, **options)
    cached_file = _find_cached_file(backbone)
    if cached_file:
        options["pretrained_cfg_overlay"] = {"file": cached_file}
    else:
        _validate_host(backbone)
    return _create_pretrained_network(
        backbone, timm.create_model, backbone.full_name, pretrained=True, num_classes=n_classes, **options
    )


def _make_torchvision_network(backbone: Backbone, weights: str, image_size: int) -> nn.Module:
    if backbone.fixed_size and image_size != backbone.native_size:
        raise RecipeError(
            f"torchvision:{backbone.name} takes {backbone.native_size} px only, image_size is {image_size}",
            f"Give --image-size {backbone.native_size}, or timm's network of that kind, which adapts",
        )
    # Inception and GoogLeNet answer with extra outputs unless told not to; pretrained ones need them built first
    factory = torchvision.models.get_model
    if weights == "pretrained":
        weights_file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(backbone.url).path))
        if not os.path.exists(weights_file):
            _validate_host(backbone)
        network = _create_pretrained_network(backbone, factory, backbone.name, weights=backbone.tag)
    else:
        network = _create_network(backbone, factory, backbone.name, weights=None)
    if hasattr(network, "aux_logits"):
        network.aux_logits, network.AuxLogits, network.aux1, network.aux2 = False, None, None, None
    return network


def _create_network(backbone: Backbone, factory, *args, **options) -> nn.Module:
    try:
        return factory(*args, **options)
    except (AssertionError, TypeError, ValueError) as error:
        # each network has rules of its own on image sizes; its message is the best there is
        raise RecipeError(
            f"{backbone.name} cannot be built ({error})", "Try its native --image-size, or another backbone"
        ) from error


def _create_pretrained_network(backbone: Backbone, factory, *args, **options) -> nn.Module:
    try:
        return _create_network(backbone, factory, *args, **options)
    except (OSError, URLError) as error:
        raise _make_unreachable_error(backbone) from error


def _make_unreachable_error(backbone: Backbone) -> WeightsError:
    host = urlparse(backbone.url or ENDPOINT).netloc
    return WeightsError(
        f"the pretrained weights of {backbone.full_name} cannot be fetched: {host} is out of reach",
        UNREACHABLE_WEIGHTS_FIX.format(url=backbone.url),
        code="E202",
    )


def _validate_host(backbone: Backbone) -> None:
    """Fail at once where the host has no address: the hub's own client would retry for most of a minute."""
    host = urlparse(backbone.url or ENDPOINT).hostname
    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise _make_unreachable_error(backbone) from error
    log.info("fetching the pretrained weights of %s from %s", backbone.full_name, host)


def _find_cached_file(backbone: Backbone) -> str | None:
    repo_id = backbone.url.removeprefix(f"{ENDPOINT}/") if backbone.url else ""
    if repo_id.count("/") != 1:
        return None
    cached_files = [try_to_load_from_cache(repo_id, name) for name in ("model.safetensors", "pytorch_model.bin")]
    return next((file for file in cached_files if isinstance(file, str)), None)
