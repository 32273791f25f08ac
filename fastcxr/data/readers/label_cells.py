"""Read cells with one label or several: `A|B`, a list of Python or JSON, or labels with another separator.

A comma or semicolon may be a part of a name ("Pneumonia, viral") or separate two findings. It separates if each part is
the only label of another cell. Otherwise the user decides by `label_separator`.
"""

import logging
import re
from ast import literal_eval
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import (
    FINDING_PREFIX,
    LABEL_SEPARATOR,
    expand_label_lists,
    list_findings,
    make_finding_labels,
)
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_line_numbers, normalize_name

log = logging.getLogger("fastcxr")
NO_SEPARATOR = "none"  # value of `label_separator`: every cell is one label
NO_FINDING_NAMES = {"nofinding", "nofindings", "normal", "healthy", "noabnormality", "noabnormalities"}
DEVICE_NAMES = {"supportdevice", "supportdevices"}  # which a normal chest may have
AMBIGUOUS_SEPARATORS = re.compile("[,;]")
ALL_SEPARATORS = re.compile("[,;/+&]")  # the last three are frequent in names, and never a reason to stop
LIST = re.compile(r"\[(.*)\]|\((.*,.*)\)|\{(.*)\}", re.DOTALL)
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
VECTOR = re.compile(r"[\[(]?\s*[01](\.0*)?([\s,;|]+[01](\.0*)?)+\s*,?\s*[\])]?")  # 0 and 1 for findings without names
NUMBER = re.compile(r"[+-]?\d+(?P<fraction>\.\d*)?")


def is_no_finding(name: str) -> bool:
    """Return whether a label or column states that there is no finding, and is no finding itself."""
    return normalize_name(name) in NO_FINDING_NAMES


def parse_label_cells(cells: pd.Series, path: Path, separator: str | None = None) -> pd.DataFrame:
    """Return `label`, and a finding column for each label if a cell has several labels.

    Args:
        cells: text, empty for an unknown label.
        path: name of the table in errors.
        separator: text between the labels of a cell, "none" for one label per cell; default: see the module.

    Raises:
        DataError: a comma or semicolon has two readings, or the cells are vectors of 0 and 1 (E015).
        RecipeError: the separator is empty (E022).
    """
    if separator is not None and not separator:
        fix = "Pass a character such as `label_separator=','`, or `label_separator='none'`"
        raise RecipeError("label_separator is empty", fix, code="E022")
    if separator is None:
        _reject_vectors(cells, path)
    labels_by_cell = _join_equal_numbers(_split_cells(cells, path, separator))
    if all(len(labels) < 2 for labels in labels_by_cell.values()):
        labels = ["".join(labels_by_cell[cell]) for cell in cells]
        return pd.DataFrame({"label": labels}, cells.index, dtype=TEXT_DTYPE)
    lists = [labels_by_cell[cell] if cell else None for cell in cells]
    names = sorted({name for labels in labels_by_cell.values() for name in labels if not is_no_finding(name)})
    findings = expand_label_lists(lists, cells.index, names)
    states_none = pd.Series([any(map(is_no_finding, labels or ())) for labels in lists], cells.index)
    warn_contradictions(findings, states_none, path)
    return findings.assign(label=make_finding_labels(findings, states_none))


def warn_contradictions(findings: pd.DataFrame, states_none: pd.Series, path: Path) -> None:
    """Log the number of rows that state both a finding and that there is none; a support device is no finding."""
    names = [name for name in list_findings(findings) if normalize_name(name) not in DEVICE_NAMES]
    has_finding = (findings[[FINDING_PREFIX + name for name in names]] == 1).fillna(False).any(axis=1)
    if (is_both := has_finding & states_none).any():
        lines = format_line_numbers(findings.index[is_both])
        n_rows = pluralize(int(is_both.sum()), "row")
        log.warning("%s: %s with a finding and a label such as No Finding or Normal (%s)", path.name, n_rows, lines)


def _reject_vectors(cells: pd.Series, path: Path) -> None:
    """Raise DataError if all cells are lists of 0 and 1, of which the findings are not known."""
    given = cells[cells != ""]
    if len(given) and given.map(VECTOR.fullmatch).notna().all():
        problem = (
            f"the labels are vectors of 0 and 1 without names: {given.iloc[0]!r} ({format_line_numbers(given.index)})"
        )
        fix = "Write one column of 0 and 1 per finding, with its name"
        raise DataError(problem, fix, path=path, code="E015")


def _join_equal_numbers(labels_by_cell: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the labels of each cell with 1 for 1.0, unless a number of the table has another fraction."""
    labels = {label for labels in labels_by_cell.values() for label in labels}
    numbers = {label: match["fraction"] for label in labels if (match := NUMBER.fullmatch(label))}
    if any((fraction or "").strip(".0") for fraction in numbers.values()):
        return labels_by_cell
    names = {label: label.removesuffix(fraction) for label, fraction in numbers.items() if fraction}
    return {
        cell: list(dict.fromkeys(names.get(label, label) for label in labels))
        for cell, labels in labels_by_cell.items()
    }


def _split_cells(cells: pd.Series, path: Path, separator: str | None) -> dict[str, list[str]]:
    """Return the labels in each different cell."""
    unique = list(dict.fromkeys(cells))
    if separator == NO_SEPARATOR:
        return {cell: [cell] if cell else [] for cell in unique}
    lists = {cell: _parse_list(cell) for cell in unique}
    parts = {cell: _split_text(cell, re.escape(separator or LABEL_SEPARATOR)) for cell in unique}
    labels_by_cell = {cell: parts[cell] if labels is None else labels for cell, labels in lists.items()}
    if separator is None:
        alone = {labels[0] for labels in labels_by_cell.values() if len(labels) == 1}
        for cell in (cell for cell, labels in lists.items() if labels is None):
            split = [_split_label(label, alone) for label in labels_by_cell[cell]]
            if None in split:
                raise _make_reading_error(labels_by_cell[cell][split.index(None)], cells.index[cells == cell], path)
            labels_by_cell[cell] = [name for names in split for name in names or ()]
    return {cell: list(dict.fromkeys(labels)) for cell, labels in labels_by_cell.items()}


def _parse_list(cell: str) -> list[str] | None:
    """Return the elements of a list of Python, NumPy or JSON, with or without quotes, or None for other text."""
    match = LIST.fullmatch(cell)
    if not match:
        return None
    content = next(group for group in match.groups() if group is not None)
    if not QUOTED.search(content):  # without quotes, the parts end at a comma
        return _split_text(content, ",") if match[1] is not None else None
    if QUOTED.sub("", content).replace(",", "").strip():
        return None
    return [text for item in QUOTED.findall(content) if (text := _unquote(item).strip())]


def _unquote(item: str) -> str:
    try:
        return str(literal_eval(item))
    except (SyntaxError, ValueError):  # a backslash that begins no escape sequence
        return item[1:-1]


def _split_text(text: str, pattern: str | re.Pattern) -> list[str]:
    return [part for piece in re.split(pattern, text) if (part := piece.strip())]


def _split_label(label: str, alone: set[str]) -> list[str] | None:
    """Return the labels in a text, which are the only labels of other cells, or None if it has two readings."""
    for pattern in (AMBIGUOUS_SEPARATORS, ALL_SEPARATORS):
        parts = _split_text(label, pattern)
        if len(parts) > 1 and alone.issuperset(parts):
            return parts
    return None if len(_split_text(label, AMBIGUOUS_SEPARATORS)) > 1 else [label]


def _make_reading_error(label: str, lines: pd.Index, path: Path) -> DataError:
    *first, last = _split_text(label, AMBIGUOUS_SEPARATORS)
    mark = re.findall(AMBIGUOUS_SEPARATORS, label)[0]
    problem = (
        f'a label has two readings: one class called "{label}" or the findings {", ".join(first)} and {last} '
        f"({format_line_numbers(lines)})"
    )
    fix = f"Pass `label_separator={mark!r}` for findings, or `label_separator='none'` for one class per cell"
    return DataError(problem, fix, path=path, code="E015")
