"""Select the columns of the data that outputs contain: the schema of a manifest and the columns named by the user.

Tables of radiographs may contain clinical notes, names and dates. Row filters use all columns, but a manifest and every
file derived from it contain only the columns below and those of `keep_columns`, which must not identify a person.
"""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from fastcxr.data.demographics import find_demographic_column
from fastcxr.data.findings import FINDING_PREFIX
from fastcxr.errors import RecipeError
from fastcxr.io.tables import find_column, format_names, is_blank, suggest_name

SCHEMA = ("source", "path", "label", "patient", "patient_origin", "split", "split_origin", "file", "bit_depth")
DEMOGRAPHICS = ("sex", "age", "view")  # under any of the names in fastcxr.data.demographics
PRIVATE_NAME_PATTERNS = {  # matched against the column name in lower case, letters and digits only
    "free text": r"notes?$|^notes?|comment|remark|report|text(?!ure)|"  # codespell:ignore ure
    r"narrative|impression|history|description",
    "a name": r"(?<!model)(?<!scanner)(?<!device)name|physician|doctor|radiologist|operator",
    "a birth date": r"birth|dob$|^dob",
    "an address": r"address|street|phone|mail$|^mail|email|postcode|zipcode",
    "an identifier of a person": r"(patient|subject|person|insurance|accession|admission|case|visit)s?(id|number|no)$"
    r"|^mrn|mrn$|^ssn|ssn$|medicalrecord|socialsecurity|nationalid|insurance|accession",
}
MAX_VALUE_CHARACTERS = 40  # a longer cell with spaces counts as free text
MAX_UNIQUE_FRACTION, MIN_CELLS = 0.9, 10  # limit on the fraction of different values, in columns of at least MIN_CELLS
NUMBER = re.compile(r"[+-]?\d{0,5}(\.\d*)?([eE][+-]?\d+)?")  # a longer whole number may be a record number


def validate_kept_columns(tables: Sequence[pd.DataFrame], keep: Iterable[str]) -> None:
    """Raise RecipeError for a column to keep that is missing (E022) or that may identify a person (E039)."""
    columns = dict.fromkeys(column for table in tables for column in table.columns if column != "file")
    for name in keep:
        found = [table[column] for table in tables if (column := find_column(table.columns, [name]))]
        if not found:
            problem = f"keep_columns: no column is called {name!r}{suggest_name(name, columns)}"
            raise RecipeError(problem, f"Choose from {format_names(columns)}", code="E022")
        column = str(found[0].name)
        if not is_schema_column(column) and (risk := find_privacy_risk(column, pd.concat(found))):
            fix = "Leave out this column: outputs must not identify a person"
            raise RecipeError(f"keep_columns: the column {column!r} {risk}", fix, code="E039")


def select_columns(rows: pd.DataFrame, keep: Sequence[str] = ()) -> pd.DataFrame:
    """Return the rows with the columns of a manifest and the existing columns of `keep`, in the order of the data."""
    kept = {find_column(rows.columns, [name]) for name in keep}
    return rows[[name for name in rows.columns if is_schema_column(name) or name in kept]]


def is_schema_column(name: str) -> bool:
    """Return whether every manifest keeps the column: the schema, the findings, and sex, age and view."""
    if name in SCHEMA or name.startswith(FINDING_PREFIX):
        return True
    return any(find_demographic_column([name], demographic) for demographic in DEMOGRAPHICS)


def find_privacy_risk(name: str, cells: pd.Series) -> str | None:
    """Return why a column may identify a person or contain free text (the end of a sentence), or None."""
    letters = "".join(letter for letter in name.casefold() if letter.isalnum())
    if content := next((c for c, pattern in PRIVATE_NAME_PATTERNS.items() if re.search(pattern, letters)), None):
        return f"may contain {content}, judging by its name"
    values = cells[~is_blank(cells)].astype(str).str.strip().tolist()
    if any(len(value) > MAX_VALUE_CHARACTERS and re.search(r"\s", value) for value in values):
        return f"may contain free text: it has cells of more than {MAX_VALUE_CHARACTERS} characters"
    has_text = not all(NUMBER.fullmatch(value) for value in values)
    if len(values) >= MIN_CELLS and has_text and len(set(values)) > MAX_UNIQUE_FRACTION * len(values):
        return "may contain an identifier: almost every row has a different value"
    return None
