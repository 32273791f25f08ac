"""model.json comes in, whoever wrote it; facts that this version understands, or one line of error, go out.

Nothing in it is believed: an absurd number would cost memory before anything fails, a name with a slash would lead out
of the folder. Only model.json and what it lists beside itself are ever opened, and no link that leads elsewhere.
"""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastcxr.data.bit_depth import LEAST, MOST
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.io.files import read_json, sha256_of
from fastcxr.models.registry import known_parameters

FORMAT_VERSION = 1
WEIGHTS_FILE, FACTS_FILE = "model.safetensors", "model.json"
MOST_LABELS, MOST_WIDE, MOST_DEEP, LARGEST_IMAGE = 10_000, 100_000, 10, 4096
MOST_HEAD = 50_000_000  # parameters that a head of the catalogue, of up to 22,000 classes, may have and ours lacks
COPY_AGAIN, OTHER_VERSION = "Copy the run folder again", "Use the versions that run.json names"


def read_facts(folder: str | Path) -> dict[str, Any]:
    """model.json, checked to be one that this version understands. Raises InputMissingError or ModelError."""
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        parts = sorted(one.parent for word in ("fold", "source") for one in Path(folder).glob(f"{word}-*/{FACTS_FILE}"))
        if parts:
            what = f"no model.json in this folder, which holds {len(parts)} runs with a model each"
            raise InputMissingError(what, f"Name one of them, as {parts[0]}", path=folder)
        raise InputMissingError(
            "no model.json in this folder", "Name the folder of a finished run, as runs/first", path=folder
        )
    _refuse_link(path)
    try:
        facts = read_json(path)
        version, files = facts["format_version"], facts["files"]
        if not isinstance(files[WEIGHTS_FILE], str):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("this is no model.json of fastcxr", COPY_AGAIN, path=path, code="E301") from error
    if version != FORMAT_VERSION or isinstance(version, bool):
        what = f"format version {str(version)[:40]!r}, this fastcxr reads {FORMAT_VERSION}"
        raise ModelError(what, "Install the fastcxr version that run.json names", path=path, code="E302")
    wrong = [name for name, is_right in CHECKS.items() if name in facts and not is_right(facts[name])]
    missing = [name for name in ("labels", "pixels", "backbone", "choices") if name not in facts]
    if wrong or missing:
        what = f"its {wrong[0]} makes no sense" if wrong else f"it has no {missing[0]}"
        raise ModelError(what, f"{COPY_AGAIN}. {OTHER_VERSION}", path=path, code="E302")
    return facts


def check_files(folder: Path, facts: dict[str, Any]) -> None:
    """Raise unless every file that the facts list is there, in this very folder, with the checksum that they give."""
    for name, checksum in facts["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputMissingError(f"this run has no {name}", "Name the folder of a finished run", path=folder)
        _refuse_link(path)
        if sha256_of(path) != checksum:
            what = "sha256 differs from model.json: damaged or exchanged"
            raise ModelError(what, "Copy it again", path=path, code="E301")
    _refuse_hollow(folder / WEIGHTS_FILE, facts)


def _refuse_link(path: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise ModelError("a link that leads out of the run folder", "Copy the file itself", path=path, code="E301")


def _refuse_hollow(weights: Path, facts: dict[str, Any]) -> None:
    """A few bytes that claim to be a network of billions would take its memory before they are found out."""
    backbone = facts["backbone"]
    body = known_parameters(backbone["name"].partition(".")[0], backbone["library"]) or 0
    widths = [*facts.get("head", {}).get("hidden", []), len(facts["labels"])]
    least = max(0, body - MOST_HEAD) + sum(one * other for one, other in pairwise(widths))
    if weights.stat().st_size < 2 * least:  # bytes of the smallest numbers that weights are kept in
        what = f"{weights.stat().st_size:,} bytes are too few for the {backbone['name']} that model.json describes"
        raise ModelError(what, COPY_AGAIN, path=weights, code="E302")


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _are_files(files: Any) -> bool:
    """Plain names in this folder, each with a checksum."""
    plain = r"(?!\.)[\w.-]{1,100}"
    return all(
        re.fullmatch(plain, name) and isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)
        for name, checksum in files.items()
    )


def _are_labels(labels: Any) -> bool:
    return (
        isinstance(labels, list)
        and 2 <= len(labels) <= MOST_LABELS
        and all(isinstance(label, str) and 0 < len(label) <= 1000 for label in labels)
        and len(set(labels)) == len(labels)
    )


def _are_pixels(pixels: Any) -> bool:
    if not isinstance(pixels, dict) or set(pixels) != {"image_size", "mean", "std"}:
        return False
    mean, std = pixels["mean"], pixels["std"]
    return (
        _is_whole(pixels["image_size"], 16, LARGEST_IMAGE)
        and all(isinstance(values, list) and len(values) in (1, 3) for values in (mean, std))
        and len(mean) == len(std)
        and all(type(value) in (int, float) and math.isfinite(value) for value in [*mean, *std])
        and all(value > 0 for value in std)
    )


def _is_head(head: Any) -> bool:
    return (
        isinstance(head, dict)
        and set(head) <= {"hidden", "dropout", "depths"}
        and isinstance(head.get("hidden", []), list)
        and len(head.get("hidden", [])) <= MOST_DEEP
        and all(_is_whole(size, 1, MOST_WIDE) for size in head.get("hidden", []))
        and type(head.get("dropout", 0)) in (int, float)
        and 0 <= head.get("dropout", 0) < 1
        and isinstance(head.get("depths", False), bool)
    )


def _is_backbone(backbone: Any) -> bool:
    return isinstance(backbone, dict) and all(
        isinstance(backbone.get(name), str) and len(backbone[name]) <= 200 for name in ("library", "name")
    )


def _are_depths(depths: Any) -> bool:
    return (
        isinstance(depths, dict)
        and set(depths) == {"sources", "default"}
        and isinstance(depths["sources"], dict)
        and all(_is_whole(depth, LEAST, MOST) for depth in depths["sources"].values())
        and (depths["default"] is None or _is_whole(depths["default"], LEAST, MOST))
    )


CHECKS: dict[str, Callable[[Any], bool]] = {
    "files": _are_files,
    "labels": _are_labels,
    "pixels": _are_pixels,
    "head": _is_head,
    "backbone": _is_backbone,
    "choices": lambda choices: isinstance(choices, dict),
    "mirror_images": lambda given: isinstance(given, bool),
    "bit_depths": _are_depths,
}
