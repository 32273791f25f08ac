"""A CSV that a person made comes in; a table of text, or an error with line numbers, goes out.

Commas, semicolons and tabs, a byte-order mark, CRLF, UTF-8 and marked UTF-16 are taken as they come.
The index of the table is the line on which each row begins.
Every cell stays the text that was typed: 00000013 is no number.
"""

import csv
import io
import logging
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from fastcxr.errors import DataError, InputMissingError

log = logging.getLogger("fastcxr")
TEXT = pd.Series(["text"]).dtype  # str in pandas 3, object before; missing stays missing in both
SHOWN = 20  # names and line numbers that one message lists
SEPARATORS = (",", ";", "\t")
NOTHING = {"", "nan", "<na>"}  # what programs write for a cell without a value
NOBODY = NOTHING | {"na", "n/a", "none", "null", "-"}  # and people too, where a word could be no label
FORMULA = re.compile(r"'*[=+\-@\t\r]")
NUMBER = re.compile(r"'*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_table(path: str | Path) -> pd.DataFrame:
    """Every row as text, with the line on which it begins as its index. Raises DataError with all the bad lines."""
    path = Path(path)
    text = _decode(_read_bytes(path), path)
    rows = _parse(text, find_separator(text), path)
    if not rows:
        raise DataError("an empty table", "Give it a header line and a row for each image", path=path, code="E010")
    (_, header), *body = rows
    header = [name.strip() for name in header]
    _refuse_twins(header, path)
    body = [(line, _fit(cells, len(header))) for line, cells in body]
    _refuse_ragged(body, len(header), path)
    kept = [i for i, name in enumerate(header) if name]
    if len(kept) < len(header):
        log.info("columns without a name are left out of %s: %d", path.name, len(header) - len(kept))
    lines = pd.Index([line for line, _ in body], name="line", dtype="int64")
    columns = {header[i]: pd.Series([cells[i] for _, cells in body], index=lines, dtype=TEXT) for i in kept}
    table = pd.DataFrame(columns, index=lines)
    return unguard(table) if "patient_from" in table else table  # a manifest of ours, which guards what it writes


def read_header(path: str | Path) -> list[str]:
    """The column names of a table, or none when it cannot be read as one."""
    try:
        with Path(path).open("rb") as file:
            text = _decode(file.readline(1_000_000), Path(path))
        rows = _parse(text, find_separator(text), Path(path))
    except (DataError, OSError):
        return []
    return [name.strip() for name in rows[0][1]] if rows else []


def find_separator(text: str) -> str:
    """Comma, semicolon or tab: the one that cuts the first line into the most cells."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column called as the first of `names` that there is, whatever its case, spaces and underscores."""
    spelled = {}
    for column in columns:
        spelled.setdefault(_bare(column), column)
    return next((spelled[_bare(name)] for name in names if _bare(name) in spelled), None)


def suggest(name: str, names: Iterable[str], aliases: Sequence[str] = ()) -> str:
    """` (did you mean 'x'?)` or nothing."""
    names = list(names)
    spelled = {_bare(column): column for column in names}
    found = [spelled[_bare(alias)] for alias in aliases if _bare(alias) in spelled]
    found += [spelled[close] for close in get_close_matches(_bare(name), list(spelled), 1, 0.7)]
    return f" (did you mean {found[0]!r}?)" if found else ""


def texts(values: pd.Series) -> pd.Series:
    """The same as text; None is missing."""
    return values.astype("object").where(values.notna(), None).astype(TEXT)


def is_blank(cells: pd.Series, blanks: set[str] = NOTHING) -> pd.Series:
    """Which cells say nothing."""
    return cells.isna() | cells.fillna("").str.strip().str.casefold().isin(blanks)


def name_lines(lines: Iterable[int]) -> str:
    """`line 3` or `lines 3, 7, 9 and 4 more`."""
    lines = sorted(lines)
    return f"line{'s' * (len(lines) > 1)} {name_some(map(str, lines))}"


def name_some(names: Iterable[str], shown: int = SHOWN) -> str:
    """`a, b, c and 4 more`, on one line whatever the names hold."""
    names = [_printable(name) for name in names]
    rest = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def _bare(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _read_bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would wait for ever
            raise DataError("no file", "Give a CSV file, or a folder of images", path=path, code="E010")
        return path.read_bytes()
    except FileNotFoundError as error:
        near = suggest_sibling(path)
        raise InputMissingError(f"no such file{near}", "Check the name", path=path, code="E001") from error
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise DataError(what, "Give a CSV file that you may read", path=path, code="E010") from error


def suggest_sibling(path: Path) -> str:
    """` (did you mean 'x'?)` for a name beside the one that is not there."""
    try:
        siblings = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        return ""
    found = get_close_matches(path.name, siblings, 1, 0.6)
    return f" (did you mean {str(path.parent / found[0])!r}?)" if found else ""


def _decode(content: bytes, path: Path) -> str:
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError("an Excel workbook, not a CSV", "Save it as 'CSV UTF-8' first", path=path, code="E010")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        lines = [number for number, line in enumerate(content.split(b"\n"), 1) if not _is_utf8(line)]
        where = f" ({name_lines(lines)})" if lines else ""
        fix = "Save it as UTF-8 (in Excel: 'CSV UTF-8')"
        raise DataError(f"letters that are not UTF-8{where}", fix, path=path, code="E010") from error


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parse(text: str, separator: str, path: Path) -> list[tuple[int, list[str]]]:
    """Rows that hold anything, each with the line it begins on; a quoted cell may span several."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, line = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        what = f"the quotes or cells beginning on line {line} cannot be read ({error})"
        fix = 'Quote a cell as "..." and a quote within it as ""'
        raise DataError(what, fix, path=path, code="E010") from error
    return rows


def _fit(cells: list[str], width: int) -> list[str]:
    """Without the blank cells that spreadsheets leave behind the last column."""
    return cells[:width] if not any(cell.strip() for cell in cells[width:]) else cells


def _refuse_ragged(body: list[tuple[int, list[str]]], width: int, path: Path) -> None:
    if ragged := [line for line, cells in body if len(cells) != width]:
        what = f"{len(ragged):,} rows have another number of cells than the header's {width} ({name_lines(ragged)})"
        fix = "Give every row as many cells as the header, and quote a cell that holds the separator"
        raise DataError(what, fix, path=path, code="E010")


def _refuse_twins(header: list[str], path: Path) -> None:
    twins = [name for name, count in Counter(filter(None, map(str.casefold, header))).items() if count > 1]
    if twins:
        what = f"several columns are called {name_some(map(repr, twins))}"
        raise DataError(what, "Give every column a name of its own", path=path, code="E011")


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
