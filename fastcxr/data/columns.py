"""Choose which columns of the data reach the outputs: those of the manifest, and those that a person names.

Tables of radiographs come with clinical notes, names and dates. The row filter sees all columns; a manifest, and every
file that is written from it, holds the columns below and those of `keep_columns`, none of them text about a person.
"""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from fastcxr.data.demographics import find_demographic_column
from fastcxr.errors import RecipeError
from fastcxr.io.tables import find_column, format_names, is_blank, suggest_name

SCHEMA = ("source", "path", "label", "patient", "patient_origin", "split", "split_origin", "file", "bit_depth")
TRAITS = ("sex", "age", "view")  # under any of the names that fastcxr.data.demographics knows
PERSONAL = {  # what the name of a column says, without case, blanks and signs
    "free text": r"notes?$|^notes?|comment|remark|report|text(?!ure)|narrative|impression|history|description",
    "a name": r"(?<!model)(?<!scanner)(?<!device)name|physician|doctor|radiologist|operator",
    "a birth date": r"birth|dob$|^dob",
    "an address": r"address|street|phone|mail$|^mail|email|postcode|zipcode",
    "an identifier of a person": r"(patient|subject|person|insurance|accession|admission|case|visit)s?(id|number|no)$"
    r"|^mrn|mrn$|^ssn|ssn$|medicalrecord|socialsecurity|nationalid|insurance|accession",
}
LONG_TEXT = 40  # characters of a cell with spaces; longer ones are sentences
MOSTLY_UNIQUE, MIN_CELLS = 0.9, 10  # share of different values, in columns with that many cells
NUMBER = re.compile(r"[+-]?\d{0,5}(\.\d*)?([eE][+-]?\d+)?")  # a longer whole number may be a record number


def validate_kept_columns(tables: Sequence[pd.DataFrame], keep: Iterable[str]) -> None:
    """Raise RecipeError for a column to keep that is missing (E022) or that may identify a person (E039)."""
    for name in keep:
        columns = dict.fromkeys(column for table in tables for column in table.columns if column != "file")
        found = [table[column] for table in tables if (column := find_column(table.columns, [name]))]
        if not found:
            what = f"keep_columns: no column is called {name!r}{suggest_name(name, columns)}"
            raise RecipeError(what, f"There are {format_names(columns)}", code="E022")
        if not is_schema_column(str(found[0].name)) and (
            why := find_privacy_risk(str(found[0].name), pd.concat(found))
        ):
            what = f"keep_columns: the column {found[0].name!r} {why}"
            fix = "Leave it out: outputs must not identify a person"
            raise RecipeError(what, fix, code="E039")


def select_columns(rows: pd.DataFrame, keep: Sequence[str] = ()) -> pd.DataFrame:
    """The rows with the columns of a manifest, and those to keep that they have, in the order of the data."""
    named = {find_column(rows.columns, [name]) for name in keep}
    return rows[[name for name in rows.columns if is_schema_column(name) or name in named]]


def is_schema_column(name: str) -> bool:
    """Whether a column belongs to every manifest: the schema, and the sex, age and view that reports use."""
    return name in SCHEMA or any(find_demographic_column([name], trait) for trait in TRAITS)


def find_privacy_risk(name: str, cells: pd.Series) -> str | None:
    """Why a column may identify a person or hold free text, as the end of a sentence; None for any other."""
    bare = "".join(letter for letter in name.casefold() if letter.isalnum())
    if kind := next((kind for kind, pattern in PERSONAL.items() if re.search(pattern, bare)), None):
        return f"looks like {kind} by its name"
    stated = cells[~is_blank(cells)].astype(str).str.strip()
    if (stated.str.contains(r"\s") & (stated.str.len() > LONG_TEXT)).any():
        return f"looks like free text: it has cells of more than {LONG_TEXT} characters"
    is_number = stated.map(lambda cell: NUMBER.fullmatch(cell) is not None).all()
    if len(stated) >= MIN_CELLS and not is_number and stated.nunique() > MOSTLY_UNIQUE * len(stated):
        return "looks like an identifier: almost every row has another value"
    return None
