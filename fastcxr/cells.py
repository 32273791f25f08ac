"""Cells of our tables that a spreadsheet would run as a formula get an apostrophe before them, and lose it on reading.

A file may be called `=HYPERLINK(...)`, and a table of predictions is opened by someone else (OWASP, CSV injection).
Numbers such as -1.5 are left alone. Reading gives back exactly what was written, whatever it was.
"""

import re

import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r]")
NUMBER = re.compile(r"'*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guard(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is written: names of columns and cells of text, those that begin as a formula made harmless."""
    return _apply(table, guard_cell)


def unguard(table: pd.DataFrame) -> pd.DataFrame:
    """The table that was written."""
    return _apply(table, unguard_cell)


def guard_cell(cell: object) -> object:
    """A cell as it is written."""
    return f"'{cell}" if _is_formula(cell) else cell


def unguard_cell(cell: object) -> object:
    """The cell that was written."""
    return cell[1:] if _is_formula(cell) and cell.startswith("'") else cell


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and bool(FORMULA.match(cell)) and not NUMBER.fullmatch(cell)


def _apply(table: pd.DataFrame, change) -> pd.DataFrame:
    texts = [name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]
    return table.assign(**{name: table[name].map(change).astype(table[name].dtype) for name in texts}).rename(
        columns=change
    )
