"""Replace absolute paths of images by paths below a common folder: outputs name no place of this machine.

A CSV may list absolute paths, and so may a cohort that an earlier version packed. The real place stays in `file`,
which is never written.
"""

import os
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.patients import OWN_PATIENT_PREFIX
from fastcxr.io.tables import to_text

DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def make_paths_relative(rows: pd.DataFrame, *roots: str | Path) -> pd.DataFrame:
    """The rows with every absolute `path` relative to the first of the roots that holds it, else to what they share.

    A patient who is called by such a path (`image:/data/1.png`) is renamed too.
    """
    absolute = rows["path"].map(is_absolute).astype(bool)
    if not absolute.any():
        return rows
    given = rows["path"][absolute]
    names = _make_unique_names(given, set(rows["path"][~absolute]), [str(root) for root in roots])
    rows = rows.assign(path=to_text(rows["path"].mask(absolute, names)))
    if "patient" not in rows:
        return rows
    before = [
        OWN_PATIENT_PREFIX + given,
        OWN_PATIENT_PREFIX + rows.get("source", given)[absolute].fillna("") + "/" + given,
    ]
    renamed = {old: OWN_PATIENT_PREFIX + new for olds in before for old, new in zip(olds, names, strict=True)}
    return rows.assign(patient=rows["patient"].replace(renamed))


def is_absolute(path: str) -> bool:
    """Whether a path is absolute on this machine or on any other."""
    return path.startswith("/") or Path(path).is_absolute() or DRIVE.match(path) is not None


def _make_unique_names(given: pd.Series, taken: set[str], roots: list[str]) -> pd.Series:
    """A relative path for each of these absolute ones, none of them twice and none in `taken`."""
    real = given.map(_normalize)
    named = real.map(lambda path: _remove_root(path, roots))
    taken = taken | set(named.dropna())
    outside = real[named.isna()]
    for _, paths in outside.groupby(outside.map(lambda path: "/".join(path.split("/")[:2]))):  # no disk is like another
        shared = os.path.commonpath([os.path.dirname(path) for path in paths])
        names = _make_free_names(
            paths.map(lambda path, shared=shared: _remove_root(path, [shared])), Path(shared).name, taken
        )
        named.loc[paths.index] = names
        taken |= set(names)
    return named


def _normalize(path: str) -> str:
    """The path in slashes, without `..`: behind a link it leads elsewhere than the text says."""
    if ".." in Path(path).parts:
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    path = path.replace("\\", "/") if os.sep == "\\" or DRIVE.match(path) else path
    return re.sub(r"/(\./)*/*", "/", path)


def _remove_root(path: str, roots: list[str]) -> str | None:
    """The path below the first of the roots that holds it."""
    below = (path.removeprefix(f"{root.replace(os.sep, '/').rstrip('/')}/") for root in roots)
    return next((name for name in below if name != path), None)


def _make_free_names(names: pd.Series, folder: str, taken: set[str]) -> pd.Series:
    """The names, where one is taken below a folder with the first number that makes all of them free."""
    free, number = names, 1
    while not taken.isdisjoint(free):
        free, number = f"{folder}{f'-{number}' * (number > 1)}/" + names, number + 1
    return free
