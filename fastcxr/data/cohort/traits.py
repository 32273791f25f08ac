"""Rows with DICOM files come in; the same with sex, age and view from their headers, for figures of groups, go out."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.cohort.tables import TEXT, is_blank, texts
from fastcxr.data.formats.files import DICOM_SUFFIXES

TAGS = {"sex": "PatientSex", "age": "PatientAge", "view": "ViewPosition"}
OLDEST = 90  # years: whoever is older counts as that old, for a high age points to a person


def read_traits(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with columns sex, age and view; what a table says of an image goes before its header.

    Rows without a DICOM file that says any of it come back as they are.
    """
    files = rows.loc[rows["file"].map(_is_named_dicom), "file"]
    if files.empty:
        return rows
    from fastcxr.data.formats.dicom import read_tags  # pydicom takes its time, and most cohorts have no DICOM

    said = files.map(lambda file: read_tags(file, TAGS.values()))
    found = {name: texts(said.map(lambda values, tag=tag: values[tag])) for name, tag in TAGS.items()}
    found["age"] = texts(found["age"].map(hide_age))
    columns = {name: _fill(rows, name, cells) for name, cells in found.items() if cells.notna().any()}
    return rows.assign(**columns)


def is_choice_of_traits(where: Iterable[str]) -> bool:
    """Return whether one of the choices "column=value,value" names sex, age or view."""
    return any(choice.partition("=")[0].strip() in TAGS for choice in where)


def hide_age(cell: str) -> str | None:
    """A DICOM age such as 093Y, at most OLDEST; None for what is none."""
    match = re.fullmatch(r"(\d{3})([DWMY])", str(cell).strip())
    if not match:
        return None
    return f"{OLDEST:03d}Y" if match[2] == "Y" and int(match[1]) > OLDEST else match[0]


def _fill(rows: pd.DataFrame, name: str, cells: pd.Series) -> pd.Series:
    given = rows[name] if name in rows else pd.Series(index=rows.index, dtype=TEXT)
    return texts(given.where(~is_blank(given), cells.reindex(rows.index)))


def _is_named_dicom(file: str) -> bool:
    """By its name, as the files that have none of its own do: every other file would have to be opened."""
    suffix = Path(file).suffix.casefold()
    return suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")
