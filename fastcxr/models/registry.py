"""List of backbones: number of parameters, native size, and whether pretrained weights exist.

parameters.csv stores the numbers of parameters, because counting those of all networks takes minutes. Networks of newer
versions of timm are counted when they are listed. `python -m fastcxr.models.registry` updates the file.
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

from fastcxr.models.backbones import FASTCXR_BACKBONES, find_timm_config, list_torchvision_names
from fastcxr.models.baseline_cnn import NATIVE_SIZE

PARAMETERS_FILE = Path(__file__).with_name("parameters.csv")


def list_backbones(pattern: str = "*") -> Iterator[dict[str, Any]]:
    """Yield rows with name, library, parameters (with a head of 1000 classes), native_size and pretrained.

    The order is timm, torchvision, fastcxr. A torchvision name that timm has too gets the prefix "torchvision:".
    `pattern`: shell wildcards, or a part of the name.
    """
    glob_pattern = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    timm_names = timm.list_models()
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


def count_parameters(name: str, library: str) -> int:
    """Count the parameters of a network with its original head, without allocating them if possible."""
    if library == "fastcxr":
        return sum(parameter.numel() for parameter in FASTCXR_BACKBONES[name](1000).parameters())
    factory = timm.create_model if library == "timm" else partial(torchvision.models.get_model, weights=None)
    try:
        with torch.device("meta"):
            network = factory(name)
    except (NotImplementedError, RuntimeError):  # a few networks read their weights during construction
        network = factory(name)
    return sum(parameter.numel() for parameter in network.parameters())


def _make_row(display_name: str, library: str, size: int, pretrained: bool) -> dict[str, Any]:
    name = display_name.rpartition(":")[2]
    parameters = find_known_parameters(name, library) or count_parameters(name, library)
    return {
        "name": display_name, "library": library, "parameters": parameters, "native_size": size,
        "pretrained": pretrained,
    }  # fmt: skip


def find_known_parameters(name: str, library: str) -> int | None:
    """Return the number of parameters in parameters.csv, for a network with its original head, or None."""
    return _read_parameter_counts().get((library, name))


@cache
def _read_parameter_counts() -> dict[tuple[str, str], int]:
    if not PARAMETERS_FILE.exists():
        return {}
    with PARAMETERS_FILE.open(newline="") as file:
        return {(row["library"], row["name"]): int(row["parameters"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    rows = [("timm", name) for name in timm.list_models()]
    rows += [("torchvision", name) for name in list_torchvision_names()]
    with PARAMETERS_FILE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["library", "name", "parameters"])
        writer.writerows([library, name, count_parameters(name, library)] for library, name in rows)
