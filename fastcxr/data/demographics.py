"""Read sex, age and view from DICOM headers and table cells, for metrics of subgroups."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from fastcxr.data.file_names import NAME_TAGS, find_identifying_paths, has_dicom_name, warn_identifying_paths
from fastcxr.io.tables import TEXT_DTYPE, is_blank, to_text

DICOM_TAGS = {"sex": "PatientSex", "age": "PatientAge", "view": "ViewPosition"}
MAX_AGE_YEARS = 90  # higher ages are capped, because a very high age may identify a person
# common names of each column, in lower case without spaces and underscores
DEMOGRAPHIC_COLUMNS = {
    "source": ("source",),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage", "ageyears", "ageinyears"),
    "view": ("view", "viewposition", "projection", "patientposition"),
}
SEX_VALUES = {"f": "female", "female": "female", "w": "female", "woman": "female",
              "m": "male", "male": "male", "man": "male"}  # fmt: skip
BLANK_VALUES = {"", "nan", "<na>", "na", "n/a", "none", "null", "unknown", "u", "o", "-"}


def add_dicom_demographics(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with columns sex, age and view; values of the table take precedence over DICOM headers.

    Without such values in DICOM headers, the rows are returned unchanged. Paths that name the patient are a warning.
    """
    files = rows.loc[rows["file"].map(has_dicom_name, na_action="ignore").fillna(False).astype(bool), "file"]
    if files.empty:
        return rows
    from fastcxr.data.imaging.dicom import read_tags  # importing pydicom is slow, and most datasets have no DICOM files

    headers = [read_tags(file, (*DICOM_TAGS.values(), *NAME_TAGS)) for file in files]  # each header is read once
    warn_identifying_paths(find_identifying_paths(rows.loc[files.index], headers))
    columns = {}
    for name, tag in DICOM_TAGS.items():
        values = [cap_age(header[tag]) if name == "age" else header[tag] for header in headers]
        cells = to_text(pd.Series(values, index=files.index, dtype="object"))
        if cells.notna().any():
            given = rows[name] if name in rows else pd.Series(index=rows.index, dtype=TEXT_DTYPE)
            columns[name] = to_text(given.where(~is_blank(given), cells.reindex(rows.index)))
    return rows.assign(**columns)


def filters_demographics(filters: Iterable[str]) -> bool:
    """Return whether one of the filters "column=value,value" uses sex, age or view."""
    return any(choice.partition("=")[0].strip() in DICOM_TAGS for choice in filters)


def cap_age(cell: str | None) -> str | None:
    """Return a DICOM age such as 093Y, at most MAX_AGE_YEARS, or None for another value."""
    match = re.fullmatch(r"(\d{3})([DWMY])", str(cell).strip())
    if not match:
        return None
    return f"{MAX_AGE_YEARS:03d}Y" if match[2] == "Y" and int(match[1]) > MAX_AGE_YEARS else match[0]


def find_demographic_column(columns: Iterable[str], demographic: str) -> str | None:
    """Return the first column with a common name of this demographic, or None."""
    column_by_name = {re.sub(r"[^a-z]", "", column.casefold()): column for column in reversed(list(columns))}
    return next((column_by_name[name] for name in DEMOGRAPHIC_COLUMNS[demographic] if name in column_by_name), None)


def has_value(cell: str | float | None) -> bool:
    """Return whether a cell has a value; pandas keeps missing cells of a text column as NaN."""
    return isinstance(cell, str) and cell.strip().casefold() not in BLANK_VALUES


def parse_cells(cells: pd.Series, parse: Callable[[str], Any]) -> pd.Series:
    """Return the parsed value of each cell, None for a blank or missing one; equal cells are parsed once."""
    listed = cells.tolist()
    values = {cell: parse(cell) if has_value(cell) else None for cell in set(listed)}
    return pd.Series([values[cell] for cell in listed], cells.index, dtype=object)


def parse_sex(cell: str) -> str | None:
    """Return female or male, or None for another value."""
    return SEX_VALUES.get(cell.strip().casefold())


def parse_age(cell: str) -> float | None:
    """Return an age in years from 58, 65.0 or the DICOM forms 058Y, 007M and 012D, or None for another value."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?(y|m|w|d|years?)?", cell.strip().casefold())
    if not match:
        return None
    years = float(match[1]) / {"m": 12, "w": 52, "d": 365}.get(match[2], 1)
    return years if years <= 120 else None
