"""Backbones from timm, torchvision and fastcxr, and chest encoders: lookup by name, construction, initial weights."""

import logging
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from timm.models import PretrainedCfg, get_pretrained_cfg, list_pretrained
from torch import nn

from fastcxr.config.fields import find_similar_name
from fastcxr.errors import RecipeError, WeightsError
from fastcxr.io.files import compute_sha256
from fastcxr.io.hub_names import is_hub_name, parse_hub_name
from fastcxr.models import baseline_cnn
from fastcxr.models.checkpoint_file import find_weights_file
from fastcxr.models.encoder_files import (
    describe_licence,
    describe_pixels,
    fetch_weights,
    find_cached_file,
    validate_access,
    validate_pixels,
)
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS, XRV_MEAN, XRV_PREFIX, XRV_STD, Encoder
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig, replace_head, use_float64_head, zero_init
from fastcxr.models.weights import find_xrv_weights, load_weights, read_xrv_weights

log = logging.getLogger("fastcxr")
FASTCXR_BACKBONES = {"baseline_cnn": baseline_cnn.BaselineCNN}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network by library, name and weights tag, with the image size and normalization of its pretrained weights."""

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
        """Name with the weights tag in the notation of the library."""
        return f"{self.name}.{self.tag}" if self.tag and self.library == "timm" else self.name


def find_backbone(name: str, weights: str = "pretrained") -> Backbone:
    """Return the backbone called `name`, with an optional prefix "chest:", "timm:", "torchvision:" or "fastcxr:".

    A name without a prefix is searched in this order. With weights "pretrained", a timm name without pretrained weights
    resolves to the same architecture with weights (efficientnet_b7 to tf_efficientnet_b7).

    Raises:
        RecipeError: no library has this name, or `weights` are torchxrayvision weights of another backbone.
        WeightsError: there are no pretrained weights.
    """
    library, _, base_name = name.rpartition(":")
    if library not in ("", "chest", "timm", "torchvision", "fastcxr"):
        raise RecipeError(f"unknown library {library!r}", "Pass timm:NAME or torchvision:NAME")
    if library in ("", "chest") and base_name in ENCODERS:
        return _find_encoder_backbone(ENCODERS[base_name], weights)
    if library in ("", "timm") and timm.is_model(base_name):
        backbone = _find_timm_backbone(base_name, weights)
    elif library in ("", "torchvision") and base_name in list_torchvision_names():
        backbone = _find_torchvision_backbone(base_name)
    elif library in ("", "fastcxr") and base_name in FASTCXR_BACKBONES:
        backbone = _find_fastcxr_backbone(base_name, weights)
    else:
        raise _make_unknown_name_error(base_name, library)
    return _adapt_to_xrv_weights(backbone, weights) if weights.startswith(XRV_PREFIX) else backbone


def describe_weights_choice(requested_name: str, backbone: Backbone, weights: str) -> str | None:
    """Describe in one line which backbone and weights tag a plain name selected; None if there was one choice."""
    base_name = requested_name.rpartition(":")[2]
    if weights != "pretrained" or base_name == backbone.full_name or backbone.tag is None:
        return None
    if base_name != backbone.name:
        return f"{base_name} has no pretrained weights; using {backbone.full_name} (same architecture)"
    n_others = len(list_pretrained(f"{backbone.name}.*")) - 1 if backbone.library == "timm" else 0
    return f"{base_name} has {n_others + 1} sets of pretrained weights; using {backbone.tag}" if n_others else None


def make_network(
    backbone: Backbone, n_classes: int, weights: str, image_size: int, head: HeadConfig = LINEAR_HEAD
) -> nn.Module:
    """Return a network with initial weights `weights` (see Recipe) and a new head for `n_classes` classes.

    Raise WeightsError if the weights are not available or do not fit.
    """
    if backbone.library == "chest":
        network = _make_chest_network(backbone, n_classes, image_size)
    elif backbone.library == "fastcxr":
        network = FASTCXR_BACKBONES[backbone.name](n_classes)
    elif backbone.library == "torchvision":
        network = _make_torchvision_network(backbone, weights, image_size)
    else:
        network = _make_timm_network(backbone, n_classes, weights, image_size)
    if head != LINEAR_HEAD or backbone.library == "torchvision":
        replace_head(network, n_classes, head, torch.zeros(1, len(backbone.mean), image_size, image_size))
    zero_init(network)
    use_float64_head(network)
    if backbone.library == "chest" and weights != "none":
        _load_encoder_weights(network, ENCODERS[backbone.name], weights, image_size)
    elif weights not in ("pretrained", "none"):
        layout = load_weights(network, weights).layout
        _warn_of_encoder_pixels(backbone, layout, image_size)
    return network


def describe_backbone(backbone: Backbone, weights: str, network: nn.Module) -> dict[str, Any]:
    """Return the entry `backbone` of model.json: library, name, number of parameters, and initial weights.

    The name of the weights is, for example, mobilenetv2_100.ra_in1k, IMAGENET1K_V2, a file name or "random weights".
    """
    if backbone.library == "chest" and weights == "pretrained":
        encoder = ENCODERS[backbone.name]
        weights = encoder.xrv_weights or str(fetch_weights(encoder))
    is_file = weights not in ("pretrained", "none") and not weights.startswith(XRV_PREFIX)
    pretrained_name = backbone.full_name if backbone.library == "timm" else backbone.tag
    names = {"pretrained": pretrained_name, "none": "random weights"}
    terms = {}
    if backbone.library == "chest" and weights != "none":
        encoder = ENCODERS[backbone.name]
        terms = {"licence": describe_licence(encoder), "citation": encoder.citation}
    return {
        "library": backbone.library,
        "name": backbone.name,
        "tag": backbone.tag if weights == "pretrained" else None,
        "weights": _name_weights_file(weights) if is_file else names.get(weights, weights),
        "weights_sha256": compute_sha256(find_weights_file(weights)) if is_file else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    } | terms


def _name_weights_file(weights: str) -> str:
    return str(parse_hub_name(weights)) if is_hub_name(weights) else Path(weights).name


def list_torchvision_names() -> list[str]:
    """List the classification networks of torchvision."""
    return torchvision.models.list_models(module=torchvision.models)


def _find_timm_backbone(base_name: str, weights: str) -> Backbone:
    config = find_timm_config(base_name)
    if weights == "pretrained" and not config.has_weights:
        variants = [name for prefix in ("tf_", "tv_") if timm.is_model(name := f"{prefix}{base_name}")]
        variants = [name for name in variants if find_timm_config(name).has_weights]
        if not variants:
            fix = (
                "Choose a backbone marked as pretrained by `fastcxr models`, or pass `weights=FILE` or `weights='none'`"
            )
            raise WeightsError(f"timm has no pretrained weights of {base_name}", fix, code="E201")
        base_name, config = variants[0], find_timm_config(variants[0])
    return Backbone(
        library="timm", name=base_name.partition(".")[0], tag=config.tag if config.has_weights else None,
        native_size=config.input_size[-1], mean=tuple(config.mean), std=tuple(config.std),
        fixed_size=bool(config.fixed_input_size),
        url=f"{ENDPOINT}/{config.hf_hub_id}" if config.hf_hub_id else cast(str, config.url) or None,
    )  # fmt: skip


def find_timm_config(name: str) -> PretrainedCfg:
    """Return timm's configuration of an existing backbone. Raise RecipeError if there is no such weights tag."""
    try:
        return cast(PretrainedCfg, get_pretrained_cfg(name))  # None only for names that timm does not have
    except RuntimeError as error:
        base_name, _, tag = name.partition(".")
        tags = [full_name.partition(".")[2] for full_name in list_pretrained(f"{base_name}.*")]
        problem = f"{base_name} has no pretrained weights with the tag {tag!r}"
        raise RecipeError(problem, f"Choose from {', '.join(tags) or 'none'}") from error


def _find_torchvision_backbone(name: str) -> Backbone:
    default_weights = torchvision.models.get_model_weights(name)["DEFAULT"]
    transforms = default_weights.transforms()
    return Backbone(
        library="torchvision", name=name, tag=default_weights.name, native_size=transforms.crop_size[0],
        mean=tuple(transforms.mean), std=tuple(transforms.std), fixed_size=name.startswith("vit_"),
        url=default_weights.url,
    )  # fmt: skip


def _find_fastcxr_backbone(name: str, weights: str) -> Backbone:
    if weights == "pretrained":
        raise WeightsError(
            f"fastcxr:{name} has no pretrained weights", "Pass `weights='none'` or `weights=FILE`", code="E201"
        )
    return Backbone(
        library="fastcxr", name=name, tag=None, native_size=baseline_cnn.NATIVE_SIZE, mean=baseline_cnn.MEAN,
        std=baseline_cnn.STD, fixed_size=False, url=None,
    )  # fmt: skip


def _find_encoder_backbone(encoder: Encoder, weights: str) -> Backbone:
    if weights.startswith(XRV_PREFIX) and weights != encoder.xrv_weights:
        problem = f"{weights} are not weights of {encoder.name}"
        raise RecipeError(problem, f"Pass {find_xrv_weights(weights)[0]} as the backbone, or leave `weights` out")
    return Backbone(
        library="chest", name=encoder.name, tag=None, native_size=encoder.image_size, mean=encoder.mean,
        std=encoder.std, fixed_size=encoder.is_transformer, url=encoder.page,
    )  # fmt: skip


def _adapt_to_xrv_weights(backbone: Backbone, weights: str) -> Backbone:
    """Set the input of torchxrayvision's weights: one channel, gray values from -1024 to 1024."""
    architecture, size = find_xrv_weights(weights)
    if (backbone.library, backbone.name) != ("timm", architecture):
        problem = f"{weights} are weights of timm:{architecture}, not of {backbone.library}:{backbone.name}"
        raise RecipeError(problem, f"Pass {architecture} as the backbone")
    return replace(backbone, tag=None, native_size=size, mean=XRV_MEAN, std=XRV_STD, url=None)


def suggest_backbone(name: str, library: str = "") -> str | None:
    """Return the most similar name of a backbone of one library, or of all libraries, or None."""
    names = {
        "chest": ENCODERS.keys,
        "timm": timm.list_models,
        "torchvision": list_torchvision_names,
        "fastcxr": FASTCXR_BACKBONES.keys,
    }
    known_names = [known for owner, list_names in names.items() if library in ("", owner) for known in list_names()]
    return find_similar_name(name, known_names) or find_similar_name(f"{name}_100", known_names)


def _make_unknown_name_error(name: str, library: str) -> RecipeError:
    close = suggest_backbone(name, library)
    problem = f"unknown backbone {name!r}" + (f" in {library}" if library else "")
    if not close:
        return RecipeError(problem, "Run `fastcxr models` for a list")
    return RecipeError(problem, f"Did you mean {close!r}? Run `fastcxr models '*{close[:8]}*'` for similar names")


def _make_chest_network(backbone: Backbone, n_classes: int, image_size: int) -> nn.Module:
    def make_network_of(name: str) -> nn.Module:
        return make_encoder_network(ENCODERS[name], n_classes, image_size)

    return _create_network(backbone, make_network_of, backbone.name)


def _load_encoder_weights(network: nn.Module, encoder: Encoder, weights: str, image_size: int) -> None:
    for line in describe_pixels(encoder, image_size):
        log.info(line)
    if weights == "pretrained":
        weights = encoder.xrv_weights or str(fetch_weights(encoder))
    if not weights.startswith(XRV_PREFIX):
        validate_pixels(encoder, find_weights_file(weights))
    load_weights(network, weights)


def _warn_of_encoder_pixels(backbone: Backbone, layout: str | None, image_size: int) -> None:
    """Warn if the file may hold the weights of an encoder, whose pixels the plain name of its network does not have."""
    names = [one.name for one in ENCODERS.values() if (one.architecture, one.layout) == (backbone.name, layout)]
    if backbone.library == "timm" and layout and names:
        text = (
            "the images have %d px, mean %g and std %g; if these are the weights of %s, pass its name as the backbone"
        )
        log.warning(text, image_size, backbone.mean[0], backbone.std[0], " or ".join(names))


def make_timm_options(backbone: Backbone, image_size: int) -> dict[str, Any]:
    """Return the arguments of timm.create_model for the image size and the channels of a backbone of timm."""
    options: dict[str, Any] = {}
    if backbone.fixed_size and image_size != backbone.native_size:
        options["img_size"] = image_size
    if len(backbone.mean) != 3:
        options["in_chans"] = len(backbone.mean)
    return options


def _make_timm_network(backbone: Backbone, n_classes: int, weights: str, image_size: int) -> nn.Module:
    options = {"num_classes": n_classes} | make_timm_options(backbone, image_size)
    if weights != "pretrained":
        return _create_network(backbone, timm.create_model, backbone.name, **options)
    if cached_file := _find_cached_file(backbone):
        options["pretrained_cfg_overlay"] = {"file": cached_file}
    else:
        _announce_download(backbone)
    return _create_network(backbone, timm.create_model, backbone.full_name, pretrained=True, **options)


def _make_torchvision_network(backbone: Backbone, weights: str, image_size: int) -> nn.Module:
    if backbone.fixed_size and image_size != backbone.native_size:
        problem = f"torchvision:{backbone.name} needs an image size of {backbone.native_size} pixels, got {image_size}"
        fix = f"Pass `image_size={backbone.native_size}`, or choose a timm backbone, which supports other sizes"
        raise RecipeError(problem, fix)
    is_pretrained = weights == "pretrained"
    if is_pretrained and not is_cached(backbone):
        _announce_download(backbone)
    tag = backbone.tag if is_pretrained else None
    network = _create_network(backbone, torchvision.models.get_model, backbone.name, weights=tag)
    # pretrained Inception and GoogLeNet can only be constructed with auxiliary outputs
    if hasattr(network, "aux_logits"):
        network.aux_logits, network.AuxLogits = False, None  # pyright: ignore[reportArgumentType]
        network.aux1, network.aux2 = None, None  # pyright: ignore[reportArgumentType]
    return network


def _create_network(backbone: Backbone, factory: Callable[..., nn.Module], name: str, **options: Any) -> nn.Module:
    try:
        return factory(name, **options)
    except (AssertionError, TypeError, ValueError) as error:  # for example an image size that the network rejects
        fix = f"Pass `image_size={backbone.native_size}`, or choose another backbone"
        raise RecipeError(f"{backbone.name} cannot be constructed ({error})", fix) from error
    except OSError as error:
        raise _make_unreachable_error(backbone) from error


def _make_unreachable_error(backbone: Backbone) -> WeightsError:
    host = urlparse(backbone.url or ENDPOINT).netloc
    problem = f"the pretrained weights of {backbone.full_name} cannot be downloaded: {host} is not reachable"
    fix = f"Download {backbone.url} on another computer and pass `weights=FILE`, or pass `weights='none'`"
    return WeightsError(problem, fix, code="E202")


def validate_pretrained(backbone: Backbone) -> None:
    """Raise WeightsError if the pretrained weights are neither on this computer nor on a host whose name resolves."""
    encoder = ENCODERS[backbone.name] if backbone.library == "chest" else None
    if encoder and encoder.xrv_weights:
        read_xrv_weights(encoder.xrv_weights)
    elif encoder:
        validate_access(encoder)
    elif not is_cached(backbone):
        _validate_host(backbone)


def is_cached(backbone: Backbone) -> bool:
    """Return whether the pretrained weights are on this computer."""
    if backbone.library == "chest":
        return find_cached_file(ENCODERS[backbone.name]) is not None
    if backbone.library == "torchvision":
        return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(backbone.url or "").path).name).exists()
    return _find_cached_file(backbone) is not None


def _validate_host(backbone: Backbone) -> str | None:
    """Return the host. Raise WeightsError if its name does not resolve: the hub's client would retry for a minute."""
    host = urlparse(backbone.url or ENDPOINT).hostname
    if urllib.request.getproxies():
        return host
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise _make_unreachable_error(backbone) from error
    return host


def _announce_download(backbone: Backbone) -> None:
    host = _validate_host(backbone)
    log.info("downloading the pretrained weights of %s from %s", backbone.full_name, host)


def _find_cached_file(backbone: Backbone) -> str | None:
    repo_id = backbone.url.removeprefix(f"{ENDPOINT}/") if backbone.url else ""
    if repo_id.count("/") != 1:
        return None
    cached_files = [try_to_load_from_cache(repo_id, name) for name in ("model.safetensors", "pytorch_model.bin")]
    return next((file for file in cached_files if isinstance(file, str)), None)
