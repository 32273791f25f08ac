"""A table of file names and patients, and paths of images, come in; the patient of each image goes out."""

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.cohort.tables import NOBODY, TEXT, find_column, is_blank, name_lines, name_some, read_table, texts
from fastcxr.errors import DataError

log = logging.getLogger("fastcxr")

PATIENT_NAMES = ("patient", "patientid", "subject", "subjectid", "pid")
FILE_NAMES = ("path", "filename", "file", "filepath", "imagename", "imageindex", "xrayimagename", "image", "imageid")

# how closely a name of the table must be an image's, the strictest first
WAYS: tuple[Callable[[str], str], ...] = (
    str,
    lambda path: str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path,
    lambda path: PurePosixPath(path).name,
    lambda path: PurePosixPath(path).stem,  # collections were published as PNG and copied as JPEG
)


def join_patients(paths: pd.Series, table: str | Path, files: pd.Series | None = None) -> pd.Series:
    """The patient of each path by whole path or, where that is unique, by file name, then whatever its suffix.

    `files`: where the images lie on this machine, for a table that names absolute paths.

    Raises DataError for a table that gives one file two patients, or that knows none of the images.
    """
    listed = _read_patients(Path(table))
    paths = paths.map(_normalize)
    found = pd.Series(index=paths.index, dtype=TEXT)
    if files is not None:
        found = texts(files.map(_normalize).map(_choose_patients(listed, str)))
    for way in WAYS:
        keys, patients = paths.map(way), _choose_patients(listed, way)
        unique = ~keys.duplicated(keep=False)
        found = found.where(found.notna() | ~unique, keys.map(patients))
    found = texts(found)
    _refuse_strangers(found, paths, listed, Path(table))
    _warn_ambiguous(found, paths, listed, Path(table))
    log.info("%s images have their patient from %s", f"{int(found.notna().sum()):,}", Path(table).name)
    return found


def clean_ids(ids: pd.Series) -> pd.Series:
    """Identifiers as text: blanks are missing, and 2.0, as programs write 2 in a column with blanks, is 2."""
    ids = texts(ids)
    return texts(ids.where(~is_blank(ids, NOBODY)).str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True))


def _read_patients(path: Path) -> pd.DataFrame:
    """Columns name and patient, blank rows left out; the index is the line."""
    table = read_table(path)
    columns = [_find(table, names, path) for names in (FILE_NAMES, PATIENT_NAMES)]
    listed = table[columns].set_axis(["name", "patient"], axis=1)
    listed = listed.assign(name=listed["name"].map(_normalize), patient=clean_ids(listed["patient"]))
    listed = listed[listed["patient"].notna() & ~is_blank(listed["name"])]
    counts = listed.groupby("name")["patient"].transform("nunique")
    if (counts > 1).any():
        torn = listed.index[counts > 1]
        what = f"{listed.loc[torn, 'name'].nunique():,} files have more than one patient ({name_lines(torn)})"
        raise DataError(what, "Give every file one patient", path=path, code="E016")
    return listed


def _find(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> str:
    column = find_column(table.columns, names)
    if column is None:
        wanted = {"path": "filename"}.get(names[0], names[0])
        what = f"no column called {wanted}; there are {name_some(map(repr, table.columns))}"
        fix = f"Rename the column that holds it to {wanted}"
        raise DataError(what, fix, path=path, code="E011")
    return column


def _normalize(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _choose_patients(listed: pd.DataFrame, way: Callable[[str], str]) -> pd.Series:
    """One patient a name; names that stand for several patients are left out."""
    groups = listed["patient"].groupby(listed["name"].map(way))
    return groups.first()[groups.nunique() == 1]


def _refuse_strangers(found: pd.Series, paths: pd.Series, listed: pd.DataFrame, table: Path) -> None:
    if found.notna().any():
        return
    there = f"{listed['name'].iloc[0]!r}, the images {paths.iloc[0]!r}" if len(listed) else "nothing"
    what = f"none of its file names belongs to an image (it says {there})"
    raise DataError(what, "Give a table of the same files: columns filename and patient", path=table, code="E016")


def _warn_ambiguous(found: pd.Series, paths: pd.Series, listed: pd.DataFrame, table: Path) -> None:
    name = WAYS[2]
    spare = set(listed["name"].map(name)) - set(paths[found.notna()].map(name))
    if (torn := found.isna() & paths.map(name).isin(spare)).any():
        text = "%s gives names that several images share; these have no patient from it: %s. Give whole paths"
        log.warning(text, table.name, name_some(paths[torn]))
