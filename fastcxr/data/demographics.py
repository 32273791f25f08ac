"""Rows with DICOM files come in; the same with sex, age and view from their headers, for figures of groups, go out."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.imaging.sniff import DICOM_SUFFIXES
from fastcxr.io.tables import TEXT_DTYPE, is_blank, to_text

DICOM_TAGS = {"sex": "PatientSex", "age": "PatientAge", "view": "ViewPosition"}
MAX_AGE_YEARS = 90  # years: whoever is older counts as that old, for a high age points to a person
# the usual names of each column, bare of case, spaces and underscores
DEMOGRAPHIC_COLUMNS = {
    "source": ("source",),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage", "ageyears", "ageinyears"),
    "view": ("view", "viewposition", "projection", "patientposition"),
}
SEX_VALUES = {
    "f": "female",
    "female": "female",
    "w": "female",
    "woman": "female",
    "m": "male",
    "male": "male",
    "man": "male",
}
BLANK_VALUES = {"", "nan", "<na>", "na", "n/a", "none", "null", "unknown", "u", "o", "-"}


def add_dicom_demographics(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with columns sex, age and view; what a table says of an image goes before its header.

    Rows without a DICOM file that says any of it come back as they are.
    """
    files = rows.loc[rows["file"].map(_has_dicom_name), "file"]
    if files.empty:
        return rows
    from fastcxr.data.imaging.dicom import read_tags  # pydicom takes its time, and most cohorts have no DICOM

    headers = files.map(lambda file: read_tags(file, DICOM_TAGS.values()))
    demographics = {name: to_text(headers.map(lambda values, tag=tag: values[tag])) for name, tag in DICOM_TAGS.items()}
    demographics["age"] = to_text(demographics["age"].map(cap_age))
    columns = {name: _fill_missing(rows, name, cells) for name, cells in demographics.items() if cells.notna().any()}
    return rows.assign(**columns)


def is_choice_of_traits(filters: Iterable[str]) -> bool:
    """Return whether one of the choices "column=value,value" names sex, age or view."""
    return any(choice.partition("=")[0].strip() in DICOM_TAGS for choice in filters)


def cap_age(cell: str) -> str | None:
    """A DICOM age such as 093Y, at most OLDEST; None for what is none."""
    match = re.fullmatch(r"(\d{3})([DWMY])", str(cell).strip())
    if not match:
        return None
    return f"{MAX_AGE_YEARS:03d}Y" if match[2] == "Y" and int(match[1]) > MAX_AGE_YEARS else match[0]


def _fill_missing(rows: pd.DataFrame, name: str, cells: pd.Series) -> pd.Series:
    given = rows[name] if name in rows else pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    return to_text(given.where(~is_blank(given), cells.reindex(rows.index)))


def _has_dicom_name(file: str) -> bool:
    """By its name, as the files that have none of its own do: every other file would have to be opened."""
    suffix = Path(file).suffix.casefold()
    return suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")


def find_demographic_column(columns: Iterable[str], demographic: str) -> str | None:
    """The first column that is called as this trait usually is."""
    column_by_name = {re.sub(r"[^a-z]", "", column.casefold()): column for column in reversed(list(columns))}
    return next((column_by_name[name] for name in DEMOGRAPHIC_COLUMNS[demographic] if name in column_by_name), None)


def has_value(cell: str | float | None) -> bool:
    """Whether a cell says anything; a missing one stays missing when pandas makes text of a column."""
    return isinstance(cell, str) and cell.strip().casefold() not in BLANK_VALUES


def parse_sex(cell: str) -> str | None:
    """female, male, or None for any other word."""
    return SEX_VALUES.get(cell.strip().casefold())


def parse_age(cell: str) -> float | None:
    """An age in years: 58, 65.0, and as DICOM writes it 058Y, 007M, 012D; None for what is no age."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?(y|m|w|d|years?)?", cell.strip().casefold())
    if not match:
        return None
    years = float(match[1]) / {"m": 12, "w": 52, "d": 365}.get(match[2], 1)
    return years if years <= 120 else None
