"""Does a run folder still hold what the run wrote, and do its numbers follow from its predictions?"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError, InputMissingError
from fastcxr.io.files import SUMS, list_files, read_json, read_sums, sha256_of
from fastcxr.report.run_page import measure_run, write_numbers
from fastcxr.report.run_reader import read_run

MODEL, FACTS = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Fault:
    """What is wrong with which file."""

    path: Path
    what: str


def verify(folder: str | Path) -> tuple[list[Fault], int]:
    """Every fault of a run folder and of the runs inside it, and how many files were looked at.

    Checksums are compared with SHA256SUMS, the model's with model.json, and metrics.json with what predictions.csv
    gives when it is computed again. Raises InputMissingError for a folder that has no checksums.
    """
    folder = Path(folder)
    places = sorted(path.parent for path in folder.rglob(SUMS)) if folder.is_dir() else []
    if folder not in places:
        raise InputMissingError(f"no {SUMS} in this folder", "Name the folder of a finished run", path=folder)
    faults = [fault for place in places for fault in _find_faults(place)]
    return faults, sum(len(read_sums(place)) for place in places)


def _find_faults(place: Path) -> Iterator[Fault]:
    known = read_sums(place)
    for name, checksum in known.items():
        path = place / name
        if not path.is_file():
            yield Fault(path, "is missing")
        elif sha256_of(path) != checksum:
            yield Fault(path, "is not as the run wrote it")
    for name in list_files(place):
        if name not in known:
            yield Fault(place / name, f"is not in {SUMS}")
    try:
        yield from _model_faults(place)
        yield from _number_faults(place)
    except (FastcxrError, ValueError, AttributeError, TypeError) as error:
        yield Fault(place, f"cannot be read again ({error})")


def _model_faults(place: Path) -> Iterator[Fault]:
    if (place / MODEL).is_file() and (place / FACTS).is_file():
        said = read_json(place / FACTS).get("files", {}).get(MODEL)
        if said != sha256_of(place / MODEL):
            yield Fault(place / MODEL, f"is not the model that {FACTS} describes")


def _number_faults(place: Path) -> Iterator[Fault]:
    path = place / "metrics.json"
    if not path.is_file():
        return
    numbers = write_numbers(measure_run(read_run(place)))
    printed, computed = read_json(path), json.loads(numbers)
    for name, one, other in differences(printed, computed):
        yield Fault(path, f"{name} is {one}, predictions.csv gives {other}")


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ, by dotted names."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, theirs, f"{name}[{number}]")
    elif one != other and not _is_rounding(one, other):
        yield name, one, other


def _is_rounding(one: Any, other: Any) -> bool:
    """Another release of numpy may add up in another order."""
    both_floats = isinstance(one, float) and isinstance(other, float)
    return both_floats and abs(one - other) <= 1e-9 * max(1.0, abs(one))
