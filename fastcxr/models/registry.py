"""Lists of backbones and chest encoders: number of parameters, native size, weights; and all facts of an encoder.

parameters.csv stores the numbers of parameters, because counting those of all networks takes minutes. Networks of newer
versions of timm are counted when they are listed. `python -m fastcxr.models.registry` updates the file. Encoders are
listed without loading torch, timm or torchvision.
"""

import csv
import fnmatch
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from fastcxr.models.encoders import CHEST_PREFIX, ENCODERS, READ_DATE, Encoder, find_patch_size

PARAMETERS_FILE = Path(__file__).with_name("parameters.csv")


def list_backbones(pattern: str = "*") -> Iterator[dict[str, Any]]:
    """Yield rows with name, library, parameters (with a head of 1000 classes), native_size and pretrained.

    The order is chest, timm, torchvision, fastcxr. A torchvision name that timm has too gets the prefix "torchvision:".
    Parameters of chest encoders are without a head. Their native_size is None if it was not read on a page.
    `pattern`: shell wildcards, or a part of the name.
    """
    import timm
    import torchvision

    from fastcxr.models.backbones import FASTCXR_BACKBONES, find_timm_config, list_torchvision_names
    from fastcxr.models.baseline_cnn import NATIVE_SIZE

    for encoder in list_encoders(pattern):
        yield _make_row(encoder["name"], "chest", encoder["native_size"], True)
    glob_pattern, timm_names = _make_glob_pattern(pattern), timm.list_models()
    for name in fnmatch.filter(timm_names, glob_pattern):
        config = find_timm_config(name)
        yield _make_row(name, "timm", config.input_size[-1], bool(config.has_weights))
    for name in list_torchvision_names():
        display_name = f"torchvision:{name}" if name in timm_names else name
        if fnmatch.fnmatch(display_name, glob_pattern):
            size = torchvision.models.get_model_weights(name)["DEFAULT"].transforms().crop_size[0]
            yield _make_row(display_name, "torchvision", size, True)
    for name in fnmatch.filter([f"fastcxr:{name}" for name in FASTCXR_BACKBONES], glob_pattern):
        yield _make_row(name, "fastcxr", NATIVE_SIZE, False)


def list_encoders(pattern: str = "*") -> list[dict[str, Any]]:
    """Return the facts of each chest encoder whose name matches: those of a list.

    None marks a licence, an access or a native_size that was not read on its page. `pattern`: as of list_backbones.
    """
    names = fnmatch.filter(ENCODERS, _make_glob_pattern(pattern))
    return [_make_encoder_row(ENCODERS[name]) for name in names]


def _make_encoder_row(encoder: Encoder) -> dict[str, Any]:
    facts = find_read_facts(encoder)
    return {
        "name": encoder.name,
        "parameters": find_known_parameters(encoder.name, "chest"),
        "native_size": facts["image_size"]["value"],
        "access": facts["access"]["value"],
        "licence": facts["licence"]["value"],
        "page": encoder.page,
        "cached": _find_cached_file(encoder) is not None,
    }


def find_encoder(name: str) -> Encoder | None:
    """Return the encoder with this exact name, with or without the prefix "chest:", or None."""
    return ENCODERS.get(name.removeprefix(CHEST_PREFIX))


def find_read_facts(encoder: Encoder) -> dict[str, dict[str, Any]]:
    """Return licence, access and pixels of an encoder: value, page, and the date on which the page was read.

    A fact that was not read has the value None, the page of the weights and no date.
    """
    values = {
        "licence": encoder.licence,
        "access": encoder.access,
        "image_size": encoder.image_size,
        "normalization": {"mean": encoder.mean, "std": encoder.std},
        "interpolation": encoder.interpolation,
    }
    known = dict(encoder.read_on)
    if encoder.access in ("page", "package"):  # what fastcxr does, which needs no page of the authors
        known.setdefault("access", encoder.page)
    return {
        name: {"value": value, "page": known[name], "read": READ_DATE if name in encoder.read_on else None}
        if name in known
        else {"value": None, "page": encoder.page, "read": None}
        for name, value in values.items()
    }


def _find_cached_file(encoder: Encoder) -> Path | None:
    from fastcxr.models.encoder_files import find_cached_file  # loads huggingface_hub

    return find_cached_file(encoder)


def describe_encoder(encoder: Encoder) -> dict[str, Any]:
    """Return all facts of an encoder, as `fastcxr models NAME` shows them."""
    cached_file = _find_cached_file(encoder)
    return {
        "name": encoder.name,
        "kind": _find_kind(encoder),
        "page": encoder.page,
        "repo": encoder.repo,
        "file": encoder.file or None,
        "layout": encoder.layout,
        "cached": cached_file is not None,
        "cached_file": str(cached_file) if cached_file else None,
        "architecture": encoder.architecture,
        "options": dict(encoder.options) | ({"mlp": "SwiGLU"} if encoder.has_swiglu else {}),
        "parameters": find_known_parameters(encoder.name, "chest"),
        "channels": len(encoder.mean),
        "features": encoder.features,
        **find_read_facts(encoder),
        "other_sizes": _describe_other_sizes(encoder),
        "citation": encoder.citation,
        "reported": [{"figure": reported.figure, "source": reported.source} for reported in encoder.reported],
    }


def _find_kind(encoder: Encoder) -> str:
    if encoder.architecture.startswith("swin"):
        return "Swin transformer"
    return "vision transformer" if encoder.is_transformer else "convolutional network"


def _describe_other_sizes(encoder: Encoder) -> str:
    if encoder.architecture.startswith("swin"):
        return "none"
    return (
        f"multiples of {find_patch_size(encoder)} px, with resampled position embeddings"
        if encoder.is_transformer
        else "any"
    )


def _make_glob_pattern(pattern: str) -> str:
    return pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"


def count_parameters(name: str, library: str) -> int:
    """Count the parameters of a network with its original head, of a chest encoder without a head.

    They are not allocated, if possible.
    """
    import timm
    import torch
    import torchvision

    from fastcxr.models.backbones import FASTCXR_BACKBONES
    from fastcxr.models.encoder_network import make_encoder_network

    def make_encoder(name: str) -> torch.nn.Module:
        network = make_encoder_network(ENCODERS[name], 1, ENCODERS[name].image_size)
        network.reset_classifier(0)  # pyright: ignore[reportCallIssue]  every network of timm has it
        return network

    factories = {
        "chest": make_encoder,
        "timm": timm.create_model,
        "torchvision": partial(torchvision.models.get_model, weights=None),
        "fastcxr": lambda name: FASTCXR_BACKBONES[name](1000),
    }
    try:
        with torch.device("meta"):
            network = factories[library](name)
    except (NotImplementedError, RuntimeError):  # a few networks read their weights during construction
        network = factories[library](name)
    return sum(parameter.numel() for parameter in network.parameters())


def _make_row(display_name: str, library: str, size: int | None, pretrained: bool) -> dict[str, Any]:
    name = display_name.rpartition(":")[2]
    parameters = find_known_parameters(name, library) or count_parameters(name, library)
    return {
        "name": display_name, "library": library, "parameters": parameters, "native_size": size,
        "pretrained": pretrained,
    }  # fmt: skip


def find_known_parameters(name: str, library: str) -> int | None:
    """Return the number of parameters in parameters.csv (see count_parameters), or None."""
    return _read_parameter_counts().get((library, name))


@cache
def _read_parameter_counts() -> dict[tuple[str, str], int]:
    if not PARAMETERS_FILE.exists():
        return {}
    with PARAMETERS_FILE.open(newline="") as file:
        return {(row["library"], row["name"]): int(row["parameters"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    import timm

    from fastcxr.models.backbones import list_torchvision_names

    rows = [("timm", name) for name in timm.list_models()]
    rows += [("torchvision", name) for name in list_torchvision_names()]
    rows += [("chest", name) for name in ENCODERS]
    with PARAMETERS_FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["library", "name", "parameters"])
        writer.writerows([library, name, count_parameters(name, library)] for library, name in rows)
