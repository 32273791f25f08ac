"""Columns that say who a person is and how they stood come in; sex, age and view, read from whatever words, go out."""

import re
from collections.abc import Iterable

# the usual names of each column, bare of case, spaces and underscores
COLUMNS = {
    "source": ("source",),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage", "ageyears", "ageinyears"),
    "view": ("view", "viewposition", "projection", "patientposition"),
}
SEXES = {
    "f": "female",
    "female": "female",
    "w": "female",
    "woman": "female",
    "m": "male",
    "male": "male",
    "man": "male",
}
BLANK = {"", "nan", "<na>", "na", "n/a", "none", "null", "unknown", "u", "o", "-"}


def find_trait(columns: Iterable[str], trait: str) -> str | None:
    """The first column that is called as this trait usually is."""
    bare = {re.sub(r"[^a-z]", "", column.casefold()): column for column in reversed(list(columns))}
    return next((bare[name] for name in COLUMNS[trait] if name in bare), None)


def is_stated(cell: str | float | None) -> bool:
    """Whether a cell says anything; a missing one stays missing when pandas makes text of a column."""
    return isinstance(cell, str) and cell.strip().casefold() not in BLANK


def read_sex(cell: str) -> str | None:
    """female, male, or None for any other word."""
    return SEXES.get(cell.strip().casefold())


def read_years(cell: str) -> float | None:
    """An age in years: 58, 65.0, and as DICOM writes it 058Y, 007M, 012D; None for what is no age."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) ?(y|m|w|d|years?)?", cell.strip().casefold())
    if not match:
        return None
    years = float(match[1]) / {"m": 12, "w": 52, "d": 365}.get(match[2], 1)
    return years if years <= 120 else None
