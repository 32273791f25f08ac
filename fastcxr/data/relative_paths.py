"""Replace absolute image paths by paths below a common folder, because outputs must not contain machine paths.

A CSV may list absolute paths, and so may a dataset packed by an earlier version. The column `file`, which is never
written, keeps the absolute path.
"""

import os
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.patients import OWN_PATIENT_PREFIX
from fastcxr.io.tables import to_text

DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def make_paths_relative(rows: pd.DataFrame, *roots: str | Path) -> pd.DataFrame:
    """Return the rows with each absolute `path` relative to the first root that contains it, else to a shared folder.

    A patient named by such a path (`image:/data/1.png`) is renamed too.
    """
    absolute = rows["path"].map(is_absolute).astype(bool)
    if not absolute.any():
        return rows
    given = rows["path"][absolute]
    names = _make_unique_names(given, set(rows["path"][~absolute]), [str(root) for root in roots])
    rows = rows.assign(path=to_text(rows["path"].mask(absolute, names)))
    if "patient" not in rows:
        return rows
    scoped = rows.get("source", given)[absolute].fillna("") + "/" + given
    renamed = {OWN_PATIENT_PREFIX + old: OWN_PATIENT_PREFIX + new
               for old_names in (given, scoped) for old, new in zip(old_names, names, strict=True)}  # fmt: skip
    return rows.assign(patient=rows["patient"].replace(renamed))


def is_absolute(path: str) -> bool:
    """Return whether a path is absolute on any operating system."""
    return path.startswith("/") or os.path.isabs(path) or DRIVE.match(path) is not None


def _make_unique_names(given: pd.Series, taken: set[str], roots: list[str]) -> pd.Series:
    """Return a relative path for each absolute path; the paths are unique and differ from those in `taken`."""
    real = given.map(_normalize)
    names = pd.Series([_remove_root(path, roots) for path in real], index=given.index, dtype="object")
    taken = taken | set(names.dropna())
    outside = real[names.isna()]
    for _, paths in outside.groupby(outside.map(_get_disk)):
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        below = pd.Series([_remove_root(path, [folder]) for path in paths], index=paths.index)
        number = 1
        free = below
        while not taken.isdisjoint(free):
            free, number = f"{Path(folder).name}{f'-{number}' * (number > 1)}/" + below, number + 1
        names.loc[paths.index] = free
        taken |= set(free)
    return names


def _get_disk(path: str) -> str:
    return "/".join(path.split("/")[:2])


def _normalize(path: str) -> str:
    """Return the path with slashes and without `..`, which is resolved on disk because of symbolic links."""
    if ".." in Path(path).parts:
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    path = path.replace("\\", "/") if os.sep == "\\" or DRIVE.match(path) else path
    return re.sub(r"/(\./)*/*", "/", path)


def _remove_root(path: str, roots: list[str]) -> str | None:
    """Return the path below the first root that contains it, or None."""
    below = (path.removeprefix(f"{root.replace(os.sep, '/').rstrip('/')}/") for root in roots)
    return next((name for name in below if name != path), None)
