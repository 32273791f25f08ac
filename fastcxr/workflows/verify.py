"""Verification of a run folder: checksums of all files, and metrics recomputed from predictions.csv."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError, InputMissingError
from fastcxr.io.files import CHECKSUMS_FILE, compute_sha256, list_files, read_checksums, read_json
from fastcxr.io.formats import reject_other_format
from fastcxr.io.hub_names import README_FILE, is_published
from fastcxr.io.run_folders import require_run_file
from fastcxr.models.hub_check import is_card_edited
from fastcxr.report.run_page import compute_run_metrics, serialize_metrics
from fastcxr.report.run_reader import read_run_record

REASONS_KEY = "reasons"  # in metrics.json: text by the name of an undefined metric, which is null
MODEL_FILE, MODEL_JSON_FILE = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Fault:
    """A file that fails verification."""

    path: Path
    problem: str


def verify(folder: str | Path) -> tuple[list[Fault], int]:
    """Verify a run folder and the runs inside it; return all faults and the number of files checked.

    Files are compared with SHA256SUMS, the model also with model.json, and the numbers in metrics.json with metrics
    recomputed from predictions.csv, which a published model does not have. Raises InputMissingError for a folder
    without SHA256SUMS.
    """
    folder = Path(folder)
    reject_other_format(folder)
    run_dirs = sorted(path.parent for path in folder.rglob(CHECKSUMS_FILE)) if folder.is_dir() else []
    if folder not in run_dirs:
        if is_published(folder):
            problem = f"{CHECKSUMS_FILE} is missing, without which the files of a published model cannot be checked"
            raise InputMissingError(problem, "Run `fastcxr pull` again, and pass its folder", path=folder, code="E304")
        require_run_file(folder, CHECKSUMS_FILE)
    for run_dir in run_dirs:
        reject_other_format(run_dir)
    faults = [fault for run_dir in run_dirs for fault in _find_faults(run_dir)]
    n_files = sum(len(read_checksums(run_dir)) - len(_find_edited_cards(run_dir)) for run_dir in run_dirs)
    return faults, n_files


def list_unverified(folder: str | Path) -> list[str]:
    """Return sentences on what verify cannot check in a folder that it accepts; none for a run."""
    folder = Path(folder)
    if not is_published(folder):
        return []
    sentences = [
        "a published model has no predictions.csv: the metrics are not recomputed, their file has its checksum"
    ]
    if is_card_edited(folder):
        sentences.append(f"{README_FILE} is not counted: it was edited after the push, which is no fault")
    return sentences


def _find_edited_cards(run_dir: Path) -> set[str]:
    """Return the listed files that may differ from their checksum: the model card that its owner has edited."""
    return {README_FILE} & set(read_checksums(run_dir)) if is_card_edited(run_dir) else set()


def _find_faults(run_dir: Path) -> Iterator[Fault]:
    checksums = read_checksums(run_dir)
    if is_card_edited(run_dir):
        checksums |= {README_FILE: compute_sha256(run_dir / README_FILE)}
    for name, checksum in checksums.items():
        path = run_dir / name
        if not path.is_file():
            yield Fault(path, "is missing")
        elif compute_sha256(path) != checksum:
            yield Fault(path, f"differs from its checksum in {CHECKSUMS_FILE}")
    for name in list_files(run_dir):
        if name not in checksums:
            yield Fault(run_dir / name, f"is not in {CHECKSUMS_FILE}")
    try:
        yield from _find_model_faults(run_dir)
        yield from _find_metric_faults(run_dir)
    except (FastcxrError, ValueError, AttributeError, TypeError) as error:
        yield Fault(run_dir, f"cannot be read ({error})")


def _find_model_faults(run_dir: Path) -> Iterator[Fault]:
    if (run_dir / MODEL_FILE).is_file() and (run_dir / MODEL_JSON_FILE).is_file():
        recorded_checksum = read_json(run_dir / MODEL_JSON_FILE).get("files", {}).get(MODEL_FILE)
        if recorded_checksum != compute_sha256(run_dir / MODEL_FILE):
            yield Fault(run_dir / MODEL_FILE, f"differs from its checksum in {MODEL_JSON_FILE}")


def _find_metric_faults(run_dir: Path) -> Iterator[Fault]:
    path = run_dir / "metrics.json"
    if not path.is_file() or is_published(run_dir):  # a published model has no predictions to compute them from
        return
    metrics_json = serialize_metrics(compute_run_metrics(read_run_record(run_dir)))
    saved_metrics, computed_metrics = read_json(path), json.loads(metrics_json)
    for name, saved, computed in find_differences(drop_prose(saved_metrics), drop_prose(computed_metrics)):
        yield Fault(path, f"{name} is {saved}, expected {computed} from predictions.csv")


def drop_prose(metrics: Any) -> Any:
    """Return metrics.json without the reasons for undefined metrics, whose wording differs between versions."""
    if isinstance(metrics, dict):
        return {name: drop_prose(part) for name, part in metrics.items() if name != REASONS_KEY}
    return metrics


def find_differences(first: Any, second: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name and both values of each difference between two JSON values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from find_differences(first.get(key), second.get(key), f"{name}.{key}" if name else key)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for number, (first_item, second_item) in enumerate(zip(first, second, strict=True)):
            yield from find_differences(first_item, second_item, f"{name}[{number}]")
    elif first != second and not _is_rounding_difference(first, second):
        yield name, first, second


def _is_rounding_difference(first: Any, second: Any) -> bool:
    """Return whether two numbers differ by 1e-9 at most: versions of NumPy sum in different orders."""
    both_floats = isinstance(first, float) and isinstance(second, float)
    return both_floats and abs(first - second) <= 1e-9 * max(1.0, abs(first))
