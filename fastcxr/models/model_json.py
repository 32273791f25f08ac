"""Validation of model.json and of the files that it lists, before the model is loaded.

model.json can come from an untrusted source. Limits on numbers prevent excessive memory use; limits on file names and
links prevent reading files outside the run folder.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.data.bit_depth import LEAST, MOST
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.io.files import compute_sha256, read_json
from fastcxr.io.formats import reject_other_format
from fastcxr.io.hub_names import is_cache_link
from fastcxr.io.run_folders import require_run_file
from fastcxr.models.registry import find_known_parameters

WEIGHTS_FILE, MODEL_JSON_FILE = "model.safetensors", "model.json"
MAX_LABELS, MAX_HEAD_WIDTH, MAX_HEAD_LAYERS, MAX_IMAGE_PIXELS = 10_000, 100_000, 10, 4096
MAX_PRETRAINED_HEAD_PARAMETERS = 50_000_000  # of a removed pretrained head with up to 22,000 classes
COPY_AGAIN_FIX, OTHER_VERSION_FIX = "Copy the run folder again", "Use the versions listed in run.json"


def read_model_json(folder: str | Path) -> dict[str, Any]:
    """Read and validate the model.json of a run folder. Raise InputMissingError or ModelError."""
    path = Path(folder) / MODEL_JSON_FILE
    reject_other_format(folder)
    if not path.is_file():
        if part_folders := [*list_models_below(folder, "fold"), *list_models_below(folder, "source")]:
            problem = f"no model.json in this folder; {len(part_folders)} subfolders are runs with a model"
            raise InputMissingError(problem, f"Pass one of them, for example {part_folders[0]}", path=folder)
        require_run_file(folder, MODEL_JSON_FILE)
    _reject_outside_link(path)
    try:
        model_json = read_json(path)
        if not isinstance(model_json["files"][WEIGHTS_FILE], str):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("not a model.json of fastcxr", COPY_AGAIN_FIX, path=path, code="E301") from error
    invalid = find_invalid_entries(model_json)
    if not invalid and model_json.get("kind") != MULTI_LABEL and len(model_json.get("labels", ())) == 1:
        invalid = ["labels"]
    missing = [name for name in ("labels", "input_spec", "backbone", "choices") if name not in model_json]
    if invalid or missing:
        problem = f"invalid value of {invalid[0]!r}" if invalid else f"missing key {missing[0]!r}"
        raise ModelError(problem, f"{COPY_AGAIN_FIX}. {OTHER_VERSION_FIX}", path=path, code="E301")
    return model_json


def find_invalid_entries(model_json: Mapping[str, Any]) -> list[str]:
    """Return the names of the entries with invalid values; a missing entry is not one."""
    return [name for name, is_valid in FIELD_CHECKS.items() if name in model_json and not is_valid(model_json[name])]


def list_models_below(folder: str | Path, unit: str) -> list[Path]:
    """Return the run folders of the folds, or with unit "source" of the held-out sources, that have a model."""
    return [file.parent for file in sorted(Path(folder).glob(f"{unit}-*/{MODEL_JSON_FILE}"))]


def validate_model_files(folder: Path, model_json: dict[str, Any]) -> None:
    """Raise unless all files listed in model.json are in the folder and have the listed checksums."""
    for name, checksum in model_json["files"].items():
        path = folder / name
        require_run_file(folder, name)
        _reject_outside_link(path)
        if compute_sha256(path) != checksum:
            problem = "sha256 differs from model.json: the file is damaged or replaced"
            raise ModelError(problem, "Copy it again", path=path, code="E301")
    _validate_weights_size(folder, model_json)


def _reject_outside_link(path: Path) -> None:
    is_inside = not path.is_symlink() or path.resolve().is_relative_to(path.parent.resolve())
    if not is_inside and not is_cache_link(path):
        raise ModelError("a link to a file outside the run folder", "Copy the file itself", path=path, code="E301")


def _validate_weights_size(folder: Path, model_json: dict[str, Any]) -> None:
    """Raise if the files are too small for the network: constructing a huge network would exhaust the memory."""
    backbone = model_json["backbone"]
    n_known_parameters = find_known_parameters(backbone["name"].partition(".")[0], backbone["library"]) or 0
    layer_widths = [*model_json.get("head", {}).get("hidden", []), len(model_json["labels"])]
    min_parameters = max(0, n_known_parameters - MAX_PRETRAINED_HEAD_PARAMETERS) + sum(
        width * next_width for width, next_width in pairwise(layer_widths)
    )
    n_bytes = sum((folder / name).stat().st_size for name in model_json["files"])
    if n_bytes < 2 * min_parameters:  # the smallest dtype of saved weights has 2 bytes
        problem = f"{n_bytes:,} bytes are too few for the {backbone['name']} described in model.json"
        raise ModelError(problem, COPY_AGAIN_FIX, path=folder / WEIGHTS_FILE, code="E301")


def _is_int_between(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_checksum_table(files: Any) -> bool:
    name_pattern = r"(?!\.)[\w.-]{1,100}"  # without path separators
    return all(
        re.fullmatch(name_pattern, name) and isinstance(checksum, str) and re.fullmatch("[0-9a-f]{64}", checksum)
        for name, checksum in files.items()
    )


def is_label_list(labels: Any) -> bool:
    """Return whether a value of a file is a list of different names, of at most MAX_LABELS classes or findings."""
    return (
        isinstance(labels, list)
        and 1 <= len(labels) <= MAX_LABELS  # a model of findings may have one
        and all(isinstance(label, str) and 0 < len(label) <= 1000 for label in labels)
        and len(set(labels)) == len(labels)
    )


def _is_input_spec(spec: Any) -> bool:
    if not isinstance(spec, dict) or set(spec) != {"image_size", "mean", "std"}:
        return False
    mean, std = spec["mean"], spec["std"]
    return (
        _is_int_between(spec["image_size"], 16, MAX_IMAGE_PIXELS)
        and all(isinstance(values, list) and len(values) in (1, 3) for values in (mean, std))
        and len(mean) == len(std)
        and all(type(value) in (int, float) and math.isfinite(value) for value in [*mean, *std])
        and all(value > 0 for value in std)
    )


def _is_head_config(head: Any) -> bool:
    return (
        isinstance(head, dict)
        and set(head) <= {"hidden", "dropout", "multi_scale"}
        and isinstance(head.get("hidden", []), list)
        and len(head.get("hidden", [])) <= MAX_HEAD_LAYERS
        and all(_is_int_between(size, 1, MAX_HEAD_WIDTH) for size in head.get("hidden", []))
        and type(head.get("dropout", 0)) in (int, float)
        and 0 <= head.get("dropout", 0) < 1
        and isinstance(head.get("multi_scale", False), bool)
    )


def _is_backbone(backbone: Any) -> bool:
    return isinstance(backbone, dict) and all(
        isinstance(backbone.get(name), str) and len(backbone[name]) <= 200 for name in ("library", "name")
    )


def are_depths(depths: Any) -> bool:
    """Return whether a value of a file has the fields of BitDepths."""
    return (
        isinstance(depths, dict)
        and set(depths) == {"sources", "default"}
        and isinstance(depths["sources"], dict)
        and all(_is_int_between(depth, LEAST, MOST) for depth in depths["sources"].values())
        and (depths["default"] is None or _is_int_between(depths["default"], LEAST, MOST))
    )


def _is_fitted_on(fitted: Any) -> bool:
    return (
        isinstance(fitted, dict)
        and set(fitted) == {"splits", "images", "patients", "valid_predictions"}
        and isinstance(fitted["splits"], list)
        and all(isinstance(split, str) for split in fitted["splits"])
        and all(_is_int_between(fitted[name], 0, sys.maxsize) for name in ("images", "patients"))
        and fitted["valid_predictions"] in ("saved_model", "train_only_head")
    )


FIELD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "kind": lambda kind: kind in (SINGLE_LABEL, MULTI_LABEL),
    "files": _is_checksum_table,
    "labels": is_label_list,
    "input_spec": _is_input_spec,
    "head": _is_head_config,
    "backbone": _is_backbone,
    "choices": lambda choices: isinstance(choices, dict),
    "hflip_tta": lambda value: isinstance(value, bool),
    "bit_depths": are_depths,
    "fitted_on": _is_fitted_on,
}
