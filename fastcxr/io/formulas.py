"""Escape cells of tables against formula injection: a spreadsheet runs a text that begins with = as a formula."""

import re
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import pandas as pd

FORMULA_PATTERN = re.compile(r"'*[=+\-@\t\r]")
FORMULA_STARTS = ("'", "=", "+", "-", "@", "\t", "\r")  # of the cells that match
NUMBER_PATTERN = re.compile(r"'*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Escape column names and text cells that a spreadsheet would run as formulas."""
    return _map_text_cells(table, escape_cell)


def unescape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Undo escape_formulas."""
    return _map_text_cells(table, unescape_cell)


def escape_cell(cell: object) -> object:
    """Prefix a cell with an apostrophe if a spreadsheet would run it as a formula."""
    return f"'{cell}" if _is_formula(cell) else cell


def unescape_cell(cell: object) -> object:
    """Undo escape_cell."""
    return cell[1:] if _is_formula(cell) and cell.startswith("'") else cell


def _is_formula(cell: object) -> TypeGuard[str]:
    return isinstance(cell, str) and bool(FORMULA_PATTERN.match(cell)) and not NUMBER_PATTERN.fullmatch(cell)


def _map_text_cells(table: pd.DataFrame, convert: Callable[[object], Any]) -> pd.DataFrame:
    converted = {}
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) or not len(column):
            continue
        is_candidate = _may_be_formula(column)
        if is_candidate.any():
            cells = np.array(column, dtype=object)
            converted_cells = {cell: convert(cell) for cell in set(cells[is_candidate])}  # -1 may be in every row
            cells[is_candidate] = [converted_cells[cell] for cell in cells[is_candidate]]
            converted[name] = pd.Series(cells, column.index, column.dtype)
    return table.assign(**converted).rename(columns=convert)


def _may_be_formula(column: pd.Series) -> np.ndarray:
    """Return which cells begin as a formula or an escaped one, booleans of shape (n,); False for other values."""
    if isinstance(column.dtype, pd.StringDtype):
        return column.str.startswith(FORMULA_STARTS).fillna(False).to_numpy(bool)
    return np.array([isinstance(cell, str) and cell.startswith(FORMULA_STARTS) for cell in column], bool)
