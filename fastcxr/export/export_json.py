"""export.json, which describes an exported model: labels, thresholds, input, files with checksums, and the check.

The file can come from an untrusted source: it is validated before any file that it lists is opened.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.io.files import compute_sha256, read_json
from fastcxr.io.formats import EXPORT_FORMAT, FORMAT_KEY, is_format
from fastcxr.io.run_folders import EXPORT_JSON_FILE, is_export
from fastcxr.metrics.calibration_entry import find_invalid_value, is_valid_calibration
from fastcxr.models.model_json import MAX_IMAGE_PIXELS, are_depths, is_label_list

ONNX_FILE = "model.onnx"
INPUT_NAME, PROBABILITY_NAME, OOD_NAME = "images", "probabilities", "ood_score"  # of the ONNX graph
TARGETS = ("onnx", "timm")
WARNING = "For research, not for diagnosis"
COPY_AGAIN_FIX = "Copy the folder again, or export the run again"
MAX_SHOWN_CHARACTERS = 60  # of an invalid value in a message


def read_export_json(folder: str | Path, target: str = "onnx") -> dict[str, Any]:
    """Read and validate the export.json of an exported model, and the checksums of the files that it lists.

    Raises:
        InputMissingError: export.json, or a file that it lists, is missing.
        ModelError: export.json is invalid or of another version or target, or a file is damaged.
    """
    folder = Path(folder)
    path = folder / EXPORT_JSON_FILE
    if not is_export(folder):
        problem = f"no {EXPORT_JSON_FILE} in this folder: it is not an exported model"
        raise InputMissingError(problem, "Export a run with `fastcxr export`", path=folder, code="E304")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ModelError("export.json cannot be parsed", COPY_AGAIN_FIX, path=path, code="E301") from error
    if isinstance(content, dict) and not is_format(content.get(FORMAT_KEY), EXPORT_FORMAT):
        problem = f"export.json has the format {shorten_value(content.get(FORMAT_KEY))}, expected {EXPORT_FORMAT}"
        raise ModelError(problem, "Export the run again", path=folder, code="E306")
    if problem := _find_problem(content):
        raise ModelError(problem, COPY_AGAIN_FIX, path=path, code="E301")
    if content["target"] != target:
        problem = f"this export is for {content['target']}, expected one for {target}"
        raise ModelError(problem, f"Export the run with `to={target!r}`", path=folder, code="E305")
    for name, checksum in content["files"].items():
        _validate_file(folder / name, checksum)
    return content


def _validate_file(path: Path, checksum: str) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise ModelError("a link to a file outside the folder", "Copy the file itself", path=path, code="E301")
    if not path.is_file():
        raise InputMissingError("the export is incomplete: this file is missing", COPY_AGAIN_FIX, path=path)
    if compute_sha256(path) != checksum:
        problem = "sha256 differs from export.json: the file is damaged or replaced"
        raise ModelError(problem, COPY_AGAIN_FIX, path=path, code="E301")


def _find_problem(content: Any) -> str:
    """Return the first problem of the content of export.json, empty if it is valid."""
    if not isinstance(content, dict):
        return f"invalid content: {shorten_value(content)}, expected an object"
    for name, is_valid in FIELD_CHECKS.items():
        if name not in content:
            return f"the value of {name!r} is missing"
        if not is_valid(content[name]):
            place, value = (name == "calibration" and find_invalid_value(content[name])) or ("", content[name])
            return f"invalid value of {(name + place)[:MAX_SHOWN_CHARACTERS]!r}: {shorten_value(value)}"
    return ""


def shorten_value(value: Any) -> str:
    """Return a value of a file as JSON of at most MAX_SHOWN_CHARACTERS characters."""
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def _is_checksum_table(files: Any) -> bool:
    return (
        isinstance(files, dict)
        and bool(files)
        and all(
            name == Path(name).name and not name.startswith(".") and isinstance(checksum, str)
            for name, checksum in files.items()
        )
    )


FIELD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "target": lambda target: target in TARGETS,
    "task": lambda task: task in (SINGLE_LABEL, MULTI_LABEL),
    "labels": is_label_list,
    "image_size": lambda size: type(size) is int and 16 <= size <= MAX_IMAGE_PIXELS,
    "calibration": is_valid_calibration,
    "bit_depths": are_depths,
    "has_ood_detector": lambda value: isinstance(value, bool),
    "files": _is_checksum_table,
    "check": lambda check: isinstance(check, dict),
    "versions": lambda versions: isinstance(versions, dict),
    "notices": lambda notices: isinstance(notices, list),
}
