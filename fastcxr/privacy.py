"""What is written down tells no place of this machine: of an absolute path only its last part stays.

The folders above may name a patient, a ward or a person; what lies below the data folder is the user's own naming.
"""

import os
import re
import shlex
from pathlib import Path, PurePath

from fastcxr.recipe import Recipe

FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/:]+[\\/])+")  # of an absolute path in a sentence
PLACES = ("data", "patients", "weights", "split_from")  # choices of a recipe that may be paths


def without_places(recipe: Recipe) -> Recipe:
    """The recipe as recipe.json holds it; relative paths stay as they were typed."""
    return recipe.but(**{name: _hide(getattr(recipe, name)) for name in PLACES})


def _hide(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, tuple):
        return tuple(map(_hide, value))
    return PurePath(value).name if value and PurePath(value).is_absolute() else value


def hide_places(command: str | None) -> str | None:
    """A command line as run.json holds it: each absolute path, also behind a `=`, becomes its last part."""
    return command and shlex.join(map(_hide_word, shlex.split(command)))


def hide_folders(text: str) -> str:
    """A sentence in which each absolute path is its last part."""
    return FOLDERS.sub("", text)


def _hide_word(word: str) -> str:
    name, sign, value = word.partition("=")
    if _is_place(word):
        return Path(word).name
    return f"{name}={Path(value).name}" if sign and _is_place(value) else word


def _is_place(word: str) -> bool:
    """Whether this is an absolute path, and no pattern that merely begins with a slash."""
    path = Path(word)
    return path.is_absolute() and (os.path.exists(path) or (path.parent != Path(path.anchor) and path.parent.exists()))
