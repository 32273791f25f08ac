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
from fastcxr.io.files import sha256_of
from fastcxr.models import baseline_cnn
from fastcxr.models.heads import LINEAR, HeadPlan, replace_head, start_even
from fastcxr.models.weights import XRV, XRV_MEAN, XRV_STD, find_xrv, load_weights

log = logging.getLogger("fastcxr")
OWN = {"baseline_cnn": baseline_cnn.BaselineCNN}
RANDOM = "random weights"
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

    Raises RecipeError for a name that nobody has. With weights "imagenet", a name without weights of its own
    resolves to its closest kin that has them (efficientnet_b7 to tf_efficientnet_b7).
    """
    library, _, plain = name.rpartition(":")
    if library not in ("", "timm", "torchvision", "fastcxr"):
        raise RecipeError(f"no library called {library!r}", "Write timm:NAME or torchvision:NAME")
    if library in ("", "timm") and timm.is_model(plain):
        backbone = _find_timm(plain, weights)
    elif library in ("", "torchvision") and plain in torchvision_names():
        backbone = _find_torchvision(plain)
    elif library in ("", "fastcxr") and plain in OWN:
        backbone = _find_own(plain, weights)
    else:
        raise _unknown_name(plain, library)
    return _for_chest_weights(backbone, weights) if weights.startswith(XRV) else backbone


def explain_choice(asked: str, backbone: Backbone, weights: str) -> str | None:
    """One line on what a plain name became, or None where there was nothing to choose."""
    plain = asked.rpartition(":")[2]
    if weights != "imagenet" or plain == backbone.full_name or backbone.tag is None:
        return None
    if plain != backbone.name:
        return f"{plain} has no pretrained weights of its own: {backbone.full_name} stands in (the same architecture)"
    others = len(list_pretrained(f"{backbone.name}.*")) - 1 if backbone.library == "timm" else 0
    return f"{plain} has {others + 1} sets of pretrained weights: {backbone.tag} is used" if others else None


def make_network(backbone: Backbone, classes: int, weights: str, image_size: int, head: HeadPlan = LINEAR) -> nn.Module:
    """The network with a new head for `classes` labels. Its body holds `weights`, as a recipe names them.

    Raises WeightsError when weights are out of reach or do not fit: never a silent random start.
    """
    if backbone.library == "fastcxr":
        network = OWN[backbone.name](classes)
    elif backbone.library == "torchvision":
        network = _make_torchvision(backbone, weights, image_size)
    else:
        network = _make_timm(backbone, classes, weights, image_size)
    if head != LINEAR or backbone.library == "torchvision":
        replace_head(network, classes, head, torch.zeros(1, len(backbone.mean), image_size, image_size))
    start_even(network)
    if weights not in ("imagenet", "none"):
        load_weights(network, weights)
    return network


def describe_backbone(backbone: Backbone, weights: str, network: nn.Module) -> dict[str, Any]:
    """Describe the network for model.json: library, name, size, and the weights that `make_network` loaded into it.

    `weights` becomes their name: mobilenetv2_100.ra_in1k, IMAGENET1K_V2, that of a file, or "random weights".
    """
    is_file = weights not in ("imagenet", "none") and not weights.startswith(XRV)
    pretrained = backbone.full_name if backbone.library == "timm" else backbone.tag
    names = {"imagenet": pretrained, "none": RANDOM}
    return {
        "library": backbone.library,
        "name": backbone.name,
        "tag": backbone.tag if weights == "imagenet" else None,
        "weights": Path(weights).name if is_file else names.get(weights, weights),
        "weights_sha256": sha256_of(weights) if is_file else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


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


def _find_own(name: str, weights: str) -> Backbone:
    if weights == "imagenet":
        raise WeightsError(f"fastcxr:{name} has no pretrained weights", "Give --weights none or a file", code="E201")
    return Backbone(
        library="fastcxr", name=name, tag=None,
        native_size=baseline_cnn.NATIVE_SIZE, mean=baseline_cnn.MEAN, std=baseline_cnn.STD,
        fixed_size=False, url=None,
    )  # fmt: skip


def _for_chest_weights(backbone: Backbone, weights: str) -> Backbone:
    """The backbone with the pixels of torchxrayvision's weights: one channel, black -1024, white 1024."""
    architecture, size = find_xrv(weights)
    if (backbone.library, backbone.name) != ("timm", architecture):
        raise RecipeError(
            f"{weights} are weights of {architecture}, not of {backbone.library}:{backbone.name}",
            f"Name {architecture} as the backbone",
        )
    return replace(backbone, tag=None, native_size=size, mean=XRV_MEAN, std=XRV_STD, url=None)


def _unknown_name(name: str, library: str) -> RecipeError:
    names = {"timm": timm.list_models, "torchvision": torchvision_names, "fastcxr": lambda: list(OWN)}
    known = [found for place, listed in names.items() if library in ("", place) for found in listed()]
    close = get_close_matches(name, known, n=1) or get_close_matches(f"{name}_100", known, n=1)
    what = f"no backbone called {name!r}" + (f" in {library}" if library else "")
    fix = f"Did you mean {close[0]!r}?" if close else "`fastcxr models` lists them"
    return RecipeError(what, f"{fix} `fastcxr models '*{name[:8]}*'` searches them" if close else fix)


def _make_timm(backbone: Backbone, classes: int, weights: str, image_size: int) -> nn.Module:
    options = {"img_size": image_size} if backbone.fixed_size and image_size != backbone.native_size else {}
    if len(backbone.mean) != 3:
        options["in_chans"] = len(backbone.mean)
    if weights != "imagenet":
        return _construct(backbone, timm.create_model, backbone.name, num_classes=classes, **options)
    cached = _cached_file(backbone)
    if cached:
        options["pretrained_cfg_overlay"] = {"file": cached}
    else:
        _require_host(backbone)
    return _fetch(backbone, timm.create_model, backbone.full_name, pretrained=True, num_classes=classes, **options)


def _make_torchvision(backbone: Backbone, weights: str, image_size: int) -> nn.Module:
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
    return network


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
