"""List the runs, tunings and exports in a folder: state, headline metrics and date."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import FastcxrError, InputMissingError
from fastcxr.export.export_json import TARGETS
from fastcxr.io.files import read_json
from fastcxr.io.formats import EXPORT_FORMAT, FORMAT_KEY, find_unfinished_state, is_format, reject_other_format
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import is_hub_name, is_published, parse_hub_name
from fastcxr.io.run_folders import (
    EXPORT_JSON_FILE,
    TUNING_FILE,
    TUNING_TABLE_FILE,
    list_exports,
    list_runs,
    list_tunings,
)
from fastcxr.metrics.predictions import OUT_OF_FOLD

HEADLINE_SPLITS = (OUT_OF_FOLD, "test", "valid", INTERNAL_TEST)  # the first that a run has


def describe_runs(parent: str | Path) -> list[dict[str, Any]]:
    """Return a row for each run, tuning and export in `parent`, and for `parent` itself, the newest first.

    Columns: run (path in `parent`), folder, state, target of an export, split of the metrics, accuracy, auroc (macro)
    and date (start of the run or of its last resumption, or the time of the export, ISO, local time). A value that the
    run or the export does not have is None.

    State: finished, published, running, interrupted, folds n/m of an interrupted cross-validation, tuning with the
    number of its trials, export, or other version. The metric of a tuning is the validation AUROC of its best trial.
    Raises InputMissingError for a folder that does not exist.
    """
    if is_hub_name(parent):
        problem, fix = "a model on the hub, expected a folder that holds run folders", "Leave it out for those in runs/"
        raise InputMissingError(problem, fix, path=str(parse_hub_name(parent)))
    parent = Path(parent)
    if not parent.is_dir():
        raise InputMissingError("no such folder", "Pass the folder that holds run folders", path=parent)
    rows = []
    for file, list_folders, describe in (
        ("recipe.json", list_runs, _describe_run),
        (TUNING_FILE, list_tunings, _describe_tuning),
        (EXPORT_JSON_FILE, list_exports, _describe_export),
    ):
        own = [parent] if (parent / file).is_file() else []
        rows += [describe(folder, _name_in(folder, parent)) for folder in [*own, *list_folders(parent)]]
    return sorted(rows, key=lambda row: row["date"], reverse=True)


def _name_in(folder: Path, parent: Path) -> str:
    return parent.resolve().name if folder == parent else folder.relative_to(parent).as_posix()


def _describe_run(folder: Path, name: str) -> dict[str, Any]:
    state, metrics = _find_state(folder), _read_object(folder / "metrics.json")
    split = next((name for name in HEADLINE_SPLITS if name in metrics), "")
    auroc = metrics.get(split, {}).get("auroc")
    return {
        "run": name,
        "folder": folder,
        "state": state,
        "target": None,
        "split": {OUT_OF_FOLD: "out of fold"}.get(split, split),
        "accuracy": metrics.get(split, {}).get("accuracy"),
        "auroc": auroc.get("macro") if isinstance(auroc, Mapping) else auroc,
        "date": _find_start(folder).isoformat(timespec="seconds"),
    }


def _describe_export(folder: Path, name: str) -> dict[str, Any]:
    path = folder / EXPORT_JSON_FILE
    content = _read_object(path)
    return {
        "run": name,
        "folder": folder,
        "state": "export" if is_format(content.get(FORMAT_KEY), EXPORT_FORMAT) else "other version",
        "target": target if (target := content.get("target")) in TARGETS else None,
        "split": "",
        "accuracy": None,
        "auroc": None,
        "date": datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds"),
    }


def _describe_tuning(folder: Path, name: str) -> dict[str, Any]:
    tuning, objectives = _read_object(folder / TUNING_FILE), _read_objectives(folder / TUNING_TABLE_FILE)
    has_auroc = tuning.get("metric") == "auroc" and objectives.notna().any()
    return {
        "run": name,
        "folder": folder,
        "state": f"tuning, {pluralize(len(objectives), 'trial')}",
        "target": None,
        "split": "valid" if has_auroc else "",
        "accuracy": None,
        "auroc": float(objectives.max()) if has_auroc else None,
        "date": datetime.fromtimestamp((folder / TUNING_FILE).stat().st_mtime).isoformat(timespec="seconds"),
    }


def _read_objectives(path: Path) -> pd.Series:
    """Return the objective of each trial; NaN of one that is not complete."""
    try:
        table = pd.read_csv(path)
        return table["objective"].where(table["state"] == "complete").astype(float)
    except (OSError, ValueError, KeyError):
        return pd.Series(dtype=float)


def _find_state(folder: Path) -> str:
    try:
        reject_other_format(folder)
    except FastcxrError:
        return "other version"
    if is_published(folder):
        return "published"
    state = find_unfinished_state(folder)
    if state != "interrupted":
        return state or "finished"
    recipe = _read_object(folder / "recipe.json")
    n_folds, n_finished = recipe.get("folds") or 0, len(list(folder.glob("fold-*/report.html")))
    return f"folds {n_finished}/{n_folds}" if n_folds and not recipe.get("fold") else state


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _find_start(folder: Path) -> datetime:
    """Return the start in run.json, as local time; before run.json is written, the time of recipe.json.

    Not the time of another file: `report` writes most of them again.
    """
    try:
        start = datetime.fromisoformat(_read_object(folder / "run.json").get("started", ""))
    except (TypeError, ValueError):
        start = datetime.fromtimestamp((folder / "recipe.json").stat().st_mtime)
    return start.astimezone().replace(tzinfo=None)
