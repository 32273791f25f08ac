"""Whether a folder is one that fastcxr made: whoever stands in the folder of the data gets runs/ beside the classes."""

import os
from collections.abc import Iterable
from pathlib import Path

from fastcxr.lock import LOCK

RUNS = "runs"  # where folders are made that nobody named
MARKS = {  # what stands in a file of ours, and by chance in no other of this name
    "recipe.json": '"given_splits"',
    "run.json": '"fastcxr"',
    "compare.json": '"shared"',
    "explain.json": '"withheld"',
}


def is_own(folder: str) -> bool:
    """Whether fastcxr made this folder, or all that is in it. A link is nobody's."""
    try:
        return not os.path.islink(folder) and (has_mark(folder) or _holds_own(folder))
    except OSError:  # whoever reads the images says so
        return False


def has_mark(folder: str, names: Iterable[str] = tuple(MARKS)) -> bool:
    """Whether one of these files of a folder is ours."""
    return any(_holds(f"{folder}/{name}", text) for name, text in MARKS.items() if name in names)


def _holds_own(folder: str) -> bool:
    """Whether only folders of ours are in it; of empty ones runs/ is ours, and one that is about to be written to."""
    is_empty = True
    with os.scandir(folder) as entries:
        for entry in entries:  # the first image ends it: a class may hold a hundred thousand
            if not entry.name.startswith("."):
                is_empty = False
                if not (entry.is_dir(follow_symlinks=False) and is_own(entry.path)):
                    return False
    return not is_empty or Path(folder).name == RUNS or Path(folder, LOCK).is_file()


def _holds(file: str, text: str) -> bool:
    try:
        return os.path.isfile(file) and text in Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
