"""A pattern becomes a table of backbones: parameters, native size, and whether pretrained weights exist.

Counting the parameters of every network takes minutes, so parameters.csv keeps them; a network that is not in it, of a
newer timm, is counted when it is asked for. `python -m fastcxr.models.registry` writes the file anew.
"""

import csv
import fnmatch
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg

from fastcxr.models.backbones import FASTCXR_BACKBONES, list_torchvision_names
from fastcxr.models.baseline_cnn import NATIVE_SIZE

PARAMETERS_FILE = Path(__file__).with_name("parameters.csv")


def list_backbones(pattern: str = "*") -> Iterator[dict[str, Any]]:
    """Rows name, library, parameters (with a head of 1000 classes), native_size, pretrained; one at a time.

    `pattern`: shell wildcards, or a part of the name. timm first; a name that both have shows torchvision's prefixed;
    those of our own come last.
    """
    glob_pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    timm_names = timm.list_models()
    for name in fnmatch.filter(timm_names, glob_pattern):
        config = get_pretrained_cfg(name)
        yield _make_row(name, "timm", config.input_size[-1], bool(config.has_weights))
    for name in list_torchvision_names():
        display_name = f"torchvision:{name}" if name in timm_names else name
        if fnmatch.fnmatch(display_name, glob_pattern):
            size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
            yield _make_row(display_name, "torchvision", size, True)
    for name in fnmatch.filter([f"fastcxr:{name}" for name in FASTCXR_BACKBONES], glob_pattern):
        yield _make_row(name, "fastcxr", NATIVE_SIZE, False)


def count_parameters(name: str, library: str) -> int:
    """Parameters of a network with its own head, built without memory for them."""
    if library == "fastcxr":
        return sum(parameter.numel() for parameter in FASTCXR_BACKBONES[name](1000).parameters())
    factory = timm.create_model if library == "timm" else partial(torchvision.models.get_model, weights=None)
    try:
        with torch.device("meta"):
            network = factory(name)
    except (NotImplementedError, RuntimeError):  # a few look at their own numbers while they are built
        network = factory(name)
    return sum(parameter.numel() for parameter in network.parameters())


def _make_row(display_name: str, library: str, size: int, pretrained: bool) -> dict[str, Any]:
    name = display_name.rpartition(":")[2]
    known_count = find_known_parameters(name, library)
    parameters = count_parameters(name, library) if known_count is None else known_count
    return {
        "name": display_name,
        "library": library,
        "parameters": parameters,
        "native_size": size,
        "pretrained": pretrained,
    }


def find_known_parameters(name: str, library: str) -> int | None:
    """What parameters.csv says of a network with its own head, or None where it says nothing."""
    return _read_parameter_counts().get((library, name))


@cache
def _read_parameter_counts() -> dict[tuple[str, str], int]:
    if not PARAMETERS_FILE.exists():
        return {}
    with PARAMETERS_FILE.open(newline="") as file:
        return {(row["library"], row["name"]): int(row["parameters"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    rows = [("timm", name) for name in timm.list_models()] + [
        ("torchvision", name) for name in list_torchvision_names()
    ]
    with PARAMETERS_FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["library", "name", "parameters"])
        writer.writerows([library, name, count_parameters(name, library)] for library, name in rows)
