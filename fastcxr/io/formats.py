"""Format numbers of the files that fastcxr writes, and rejection of run folders of another format or unfinished.

Increase a number if earlier versions cannot read the new files, or this version cannot read theirs.
"""

import re
import shlex
from pathlib import Path
from typing import Any

from fastcxr.errors import InputMissingError, ModelError
from fastcxr.io.files import read_json
from fastcxr.io.hub_names import is_cache_link, is_published
from fastcxr.io.lock import is_locked

FORMAT_KEY = "format"  # key of the number in recipe.json, model.json and checkpoints; 0.1 wrote none
RECIPE_FORMAT = 2  # recipe.json
MODEL_FORMAT = 2  # model.json
CHECKPOINT_FORMAT = 3  # checkpoints of an unfinished run
EXPORT_FORMAT = 1  # export.json
TUNING_FORMAT = 1  # tuning.json
PUBLISHED_FORMAT = 1  # published.json
IMAGE_CACHE_FORMAT = 4  # decoded images: part of the name of a folder; 4: several files
FEATURE_CACHE_FORMAT = 4  # features of a frozen network: part of the name of a file; 4: one file per view
FORMAT_BY_FILE = {"recipe.json": RECIPE_FORMAT, "model.json": MODEL_FORMAT}


def reject_other_format(folder: str | Path) -> None:
    """Raise ModelError for a run folder whose recipe.json or model.json has another format number, or none.

    A missing or damaged file passes: the function that reads it raises a more specific error.
    """
    for name, number in FORMAT_BY_FILE.items():
        content = _read_json_inside(Path(folder), name)
        if isinstance(content, dict) and not is_format(content.get(FORMAT_KEY), number):
            raise make_format_error(folder)


def is_unfinished(folder: Path) -> bool:
    """Return whether the folder contains a run without a report; a published model has none."""
    is_run = (folder / "recipe.json").is_file() and not is_published(folder)
    return is_run and not (folder / "report.html").is_file()


def find_unfinished_state(folder: Path) -> str:
    """Return "running" or "interrupted" for a run without a report, empty for any other folder."""
    if not is_unfinished(folder):
        return ""
    return "running" if is_locked(folder) else "interrupted"


def reject_unfinished(path: Path) -> None:
    """Raise InputMissingError if this file is missing because its run is not finished; the fix is to resume the run."""
    folder = path.parent
    if path.is_file() or not (state := find_unfinished_state(folder)):
        return
    resume = f"Resume it with: {shlex.join(['fastcxr', 'resume', str(folder)])}"
    fix = "Wait until it ends" if state == "running" else resume
    raise InputMissingError(f"the run is {state}, it has no {path.name} yet", fix, path=folder, code="E304")


def is_format(value: Any, number: int) -> bool:
    """Return whether a value from an untrusted file is this format number; True is no number."""
    return type(value) is int and value == number


def make_format_error(folder: str | Path) -> ModelError:
    """Return the error for a run folder of another format, with the version of fastcxr from its run.json."""
    version = _find_version(Path(folder))
    writer, reader = (f"fastcxr {version}",) * 2 if version else ("another version of fastcxr", "that version")
    problem = f"made by {writer}, whose format this version cannot read"
    return ModelError(problem, f"Use {reader}, or train again", path=folder, code="E306")


def _find_version(folder: Path) -> str | None:
    try:
        version = _read_json_inside(folder, "run.json")["versions"]["fastcxr"]
    except (KeyError, TypeError):
        return None
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version) else None


def _read_json_inside(folder: Path, name: str) -> Any:
    """Read a JSON file of this folder; None if it is missing, damaged or a link to another folder."""
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve()) or is_cache_link(path)
        return read_json(path) if is_inside else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        return None
