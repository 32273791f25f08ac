"""Format numbers of the files that fastcxr writes, and the refusal of run folders that have another one.

Raise a number when the files change so that earlier versions could not read them, or this one not theirs.
"""

import re
from pathlib import Path
from typing import Any

from fastcxr.errors import ModelError
from fastcxr.io.files import read_json

FORMAT_KEY = "format"  # key of the number in recipe.json, model.json and checkpoints; 0.1 wrote none
RECIPE_FORMAT = 2  # recipe.json
MODEL_FORMAT = 2  # model.json
CHECKPOINT_FORMAT = 2  # checkpoints of an unfinished run
IMAGE_CACHE_FORMAT = 3  # decoded images: the number is part of the name of a folder
FEATURE_CACHE_FORMAT = 2  # features of a frozen network: the number is part of a file's name
FORMAT_BY_FILE = {"recipe.json": RECIPE_FORMAT, "model.json": MODEL_FORMAT}


def reject_other_format(folder: str | Path) -> None:
    """Raise ModelError for a run folder whose recipe.json or model.json has another format number, or none.

    A file that is missing or damaged passes: what reads it has more to say.
    """
    for name, number in FORMAT_BY_FILE.items():
        content = _read_json_inside(Path(folder), name)
        if isinstance(content, dict) and not is_format(content.get(FORMAT_KEY), number):
            raise make_format_error(folder)


def is_format(value: Any, number: int) -> bool:
    """Whether a value that anyone may have written is this format number."""
    return type(value) is int and value == number


def make_format_error(folder: str | Path) -> ModelError:
    """The error for a run folder of another format; it names the version that run.json says made the run."""
    version = _find_version(Path(folder))
    maker, remedy = (f"fastcxr {version}",) * 2 if version else ("another version of fastcxr", "that version")
    problem = f"made by {maker}, whose format this version cannot read"
    return ModelError(problem, f"Use {remedy}, or train again", path=folder, code="E306")


def _find_version(folder: Path) -> str | None:
    try:
        version = _read_json_inside(folder, "run.json")["versions"]["fastcxr"]
    except (KeyError, TypeError):
        return None
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,40}", version) else None


def _read_json_inside(folder: Path, name: str) -> Any:
    """The value in a JSON file of this folder; None where it is missing or damaged, or a link leads elsewhere."""
    path = folder / name
    try:
        return read_json(path) if path.resolve().is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: links in a circle
        return None
