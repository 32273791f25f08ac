"""Read CSV files as tables of text, with line numbers in errors, and write tables as CSV text.

Supported are commas, semicolons, tabs, CRLF, UTF-8 with and without a byte-order mark, UTF-16 with one, files
compressed with gzip, bzip2 or xz, a zip archive with one table, and JSON Lines (one object per line).
The index of a table is the line on which each row starts. Every cell is text: 00000013 is no number.
"""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pandas as pd

from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.formulas import escape_formulas, unescape_formulas

log = logging.getLogger("fastcxr")
TEXT_DTYPE = pd.Series(["text"]).dtype  # str in pandas 3, object before; both allow missing values
FRAME_INDEX = "row"  # name of the index of a table that was a DataFrame
MAX_LISTED = 20  # names and line numbers that one message lists
SEPARATORS = (",", ";", "\t")
BLANK_VALUES = {"", "nan", "<na>"}  # written by programs for a missing value
MISSING_VALUES = BLANK_VALUES | {"na", "n/a", "none", "null", "-"}  # and by people, if these are no labels
DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}  # by the first bytes of a file
# of damaged and truncated files, and of zip archives with a password or another compression
COMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAX_HEADER_BYTES = 1_000_000
ROWS_PER_PART = 10_000  # of a table, which are converted to columns at a time
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zip")
WORKBOOK_MEMBERS = {"[Content_Types].xml", "xl/workbook.xml"}  # of an Excel workbook, which is a zip archive


def is_table_name(path: str | Path) -> bool:
    """Return whether a file name is that of a table, also of a compressed one such as labels.csv.gz."""
    return find_table_stem(path) is not None


def find_table_stem(path: str | Path) -> str | None:
    """Return the name of a table without its suffixes (`train` of train.csv.gz), or None for another file."""
    name = _strip_compression(Path(path).name)
    return name[: -len(Path(name).suffix)] if name.casefold().endswith(TABLE_SUFFIXES) else None


def _strip_compression(name: str) -> str:
    return name[: -len(Path(name).suffix)] if name.casefold().endswith(COMPRESSION_SUFFIXES) else name


def read_table(path: str | Path, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Read a CSV file as text, indexed by line number. Raises DataError with the numbers of all invalid lines.

    A file of JSON Lines becomes a table of its keys; lists in it stay JSON texts.

    Args:
        path: a file.
        columns: columns to return, if the file has them; default: all.
    """
    path = Path(path)
    content = _read_bytes(path)
    if _is_json_lines(path):
        return _parse_json_lines(_decode(content, path), path)
    rows = _iterate_rows(content, path)
    _, first = next(rows, (0, None))
    if first is None:
        raise DataError("an empty table", "Write a header line and a row for each image", path=path, code="E010")
    header = [name.strip() for name in first]
    _reject_duplicate_columns(header, path)
    wanted = set(header if columns is None else columns) - {""}
    table = _join_rows(rows, header, [i for i, name in enumerate(header) if name in wanted], path)
    if columns is None and "" in header:
        log.info("columns without a name are left out of %s: %d", path.name, header.count(""))
    return unescape_formulas(table) if "patient_origin" in table else table  # a manifest.csv of fastcxr is escaped


def _join_rows(
    rows: Iterator[tuple[int, list[str]]], header: list[str], numbers: list[int], path: Path
) -> pd.DataFrame:
    """Return the columns with these numbers as text, indexed by line. Raises DataError for ragged rows.

    A list of a million rows with all of their cells would take ten times the memory of the table.
    """
    lines, ragged_lines = [], []
    parts: dict[int, list[pd.Series]] = {number: [pd.Series(dtype=TEXT_DTYPE)] for number in numbers}
    while some := list(islice(rows, ROWS_PER_PART)):
        records = [_drop_trailing_blanks(cells, len(header)) for _, cells in some]
        lines += [line for line, _ in some]
        ragged_lines += _find_ragged_lines(some, records, header)
        if not ragged_lines:
            columns = list(zip(*records, strict=False))  # the last columns have no name, and may be left out
            for number in numbers:
                parts[number].append(pd.Series(columns[number], dtype=TEXT_DTYPE))
    _reject_ragged_lines(ragged_lines, len(header), path)
    index = pd.Index(lines, name="line", dtype="int64")
    series = {header[i]: pd.concat(parts.pop(i), ignore_index=True).set_axis(index) for i in numbers}
    return pd.DataFrame(series, index=index)


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file without blanks around them and without blank lines. Raises as read_table does."""
    path = Path(path)
    return list(filter(None, map(str.strip, _decode(_read_bytes(path), path).splitlines())))


def make_text_table(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return a DataFrame as read_table does, indexed by row number from 0; blank cells are empty.

    Whole numbers stay whole in a column with blank cells: 12.0 becomes 12. `path`: name in errors.
    """
    header = [str(name).strip() for name in frame.columns]
    _reject_duplicate_columns(header, path)
    rows = pd.RangeIndex(len(frame), name=FRAME_INDEX)
    cells = frame.set_axis(header, axis="columns").set_axis(rows, axis="index").convert_dtypes()
    return cells.apply(lambda column: to_text(column.astype("object").map(str, na_action="ignore")).fillna(""))


def read_header(path: str | Path) -> list[str]:
    """Return the column names of a table, the keys of the first object of JSON Lines; empty if it cannot be read."""
    try:
        with _open_binary(Path(path)) as file:
            line = _read_first_line(file)
        if _is_json_lines(Path(path)):
            return list(map(str, _parse_json_lines(_decode(line, Path(path)), Path(path))))
        _, header = next(_iterate_rows(line, Path(path)), (0, []))
    except (DataError, *COMPRESSION_ERRORS):
        return []
    return [name.strip() for name in header]


def _read_first_line(file: BinaryIO) -> bytes:
    """Return the first line; in UTF-16, the byte of a line feed is half a character."""
    line = file.readline(MAX_HEADER_BYTES)
    if not line.startswith(UTF_16_MARKS):
        return line
    line += file.read(MAX_HEADER_BYTES)
    text = line[: len(line) // 2 * 2].decode("utf-16", errors="ignore")
    return text.partition("\n")[0].encode("utf-8")


def detect_separator(text: str) -> str:
    """Return comma, semicolon or tab: the one that splits the first line into the most cells."""
    lines = (match[0] for match in re.finditer(r"[^\r\n]+", text))
    first = next((line for line in lines if line.strip()), "")
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the column with the first of these names that exists, ignoring case, spaces and punctuation."""
    column_by_name: dict[str, str] = {}
    for column in columns:
        column_by_name.setdefault(normalize_name(column), column)
    return next(filter(None, (column_by_name.get(normalize_name(name)) for name in names)), None)


def suggest_name(name: str, names: Iterable[str], aliases: Sequence[str] = ()) -> str:
    """Return ` (did you mean 'x'?)` for an alias or a similar name among `names`, else an empty text."""
    name_by_normalized = {normalize_name(column): column for column in names}
    candidates = [alias for alias in map(normalize_name, aliases) if alias in name_by_normalized]
    candidates += get_close_matches(normalize_name(name), list(name_by_normalized), 1, 0.7)
    return f" (did you mean {name_by_normalized[candidates[0]]!r}?)" if candidates else ""


def to_text(values: pd.Series) -> pd.Series:
    """Convert a column to text; missing values are kept."""
    return values.astype("object").where(values.notna(), None).astype(TEXT_DTYPE)


def is_blank(cells: pd.Series, blanks: set[str] = BLANK_VALUES) -> pd.Series:
    """Return which cells are missing or one of `blanks`."""
    return cells.isna() | cells.fillna("").str.strip().str.casefold().isin(blanks)


def format_line_numbers(lines: Iterable[int]) -> str:
    """Return `line 3` or `lines 3, 7, 9 and 4 more`; rows for the index of a DataFrame."""
    unit = getattr(lines, "name", None) or "line"
    lines = sorted(lines)
    return f"{unit}{'s' * (len(lines) > 1)} {format_names(map(str, lines))}"


def format_names(names: Iterable[str], max_listed: int = MAX_LISTED) -> str:
    """Return `a, b, c and 4 more`, with control characters escaped."""
    names = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names]
    remainder = f" and {len(names) - max_listed:,} more" if len(names) > max_listed else ""
    return ", ".join(names[:max_listed]) + remainder


def normalize_name(name: str) -> str:
    """Return a column name in lower case, letters and digits only: names that differ otherwise have one meaning."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _read_bytes(path: Path) -> bytes:
    try:
        with _open_binary(path) as file:
            return file.read()
    except FileNotFoundError as error:
        suggestion = suggest_path(path)
        raise InputMissingError(f"no such file{suggestion}", "Check the name", path=path, code="E001") from error
    except COMPRESSION_ERRORS as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(problem, "Check the permissions and the disk", path=path, code="E026") from error


def _open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, through a decompressor if its first bytes are those of a compressed file."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block
        raise DataError("not a regular file", "Give a CSV file, or a folder of images", path=path, code="E010")
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip_member(path)
    open_file = next((opener for magic, opener in DECOMPRESSORS.items() if head.startswith(magic)), open)
    return cast("BinaryIO", open_file(path, "rb"))


def _open_zip_member(path: Path) -> BinaryIO:
    """Open the only table of a zip archive."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    if WORKBOOK_MEMBERS & set(names):
        raise DataError("an Excel workbook, not a CSV", "Save it as 'CSV UTF-8' first", path=path, code="E010")
    tables = [name for name in names if is_table_name(name)]
    if len(tables) != 1:
        problem = f"a zip archive with {pluralize(len(tables), 'table')}, expected one"
        raise DataError(problem, "Unpack it, and pass the table or the folder", path=path, code="E010")
    return cast("BinaryIO", archive.open(tables[0]))


def suggest_path(path: Path) -> str:
    """Return ` (did you mean 'x'?)` for a similar name in the same folder, else an empty text."""
    try:
        siblings = [entry.name for entry in path.absolute().parent.iterdir()]
    except OSError:
        return ""
    similar = get_close_matches(path.name, siblings, 1, 0.6)
    return f" (did you mean {str(path.parent / similar[0])!r}?)" if similar else ""


def _decode(content: bytes, path: Path) -> str:
    if content.startswith(b"\xd0\xcf\x11\xe0"):  # before 2007; later workbooks are zip archives
        raise DataError("an Excel workbook, not a CSV", "Save it as 'CSV UTF-8' first", path=path, code="E010")
    try:
        return content.decode(_find_encoding(content))
    except UnicodeDecodeError as error:
        lines = [number for number, line in enumerate(content.split(b"\n"), 1) if not _is_utf8(line)]
        line_text = f" ({format_line_numbers(lines)})" if lines else ""
        fix = "Save it as UTF-8 (in Excel: 'CSV UTF-8')"
        raise DataError(f"characters that are not UTF-8{line_text}", fix, path=path, code="E010") from error


def _find_encoding(content: bytes) -> str:
    return "utf-16" if content.startswith(UTF_16_MARKS) else "utf-8-sig"


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _iterate_rows(content: bytes, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the line on which it starts; quoted cells may span lines."""
    separator = detect_separator(_decode(content, path))  # reports every line that cannot be decoded
    text = io.TextIOWrapper(io.BytesIO(content), _find_encoding(content), newline="")  # half the memory of StringIO
    reader, line = csv.reader(text, delimiter=separator, strict=True), 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        problem = f"the quotes or cells that start on line {line} cannot be read ({error})"
        fix = 'Quote a cell as "..." and a quote within it as ""'
        raise DataError(problem, fix, path=path, code="E010") from error


def _is_json_lines(path: Path) -> bool:
    return _strip_compression(path.name).casefold().endswith(".jsonl")


def _parse_json_lines(text: str, path: Path) -> pd.DataFrame:
    """Return a table of text with a column for each key of the objects; a missing or null value is a blank cell."""
    objects: dict[int, dict[str, Any]] = {}
    invalid = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                objects[number] = dict(json.loads(line).items())
            except (ValueError, AttributeError, RecursionError):
                invalid.append(number)
    if invalid:
        problem = f"{len(invalid):,} lines are not JSON objects ({format_line_numbers(invalid)})"
        raise DataError(problem, 'Write one object per line, such as {"file_name": "1.png"}', path=path, code="E010")
    header = list(dict.fromkeys(key for values in objects.values() for key in values))
    _reject_duplicate_columns(header, path)
    lines = pd.Index(list(objects), name="line", dtype="int64")
    cells = {name: [_format_json(values.get(name)) for values in objects.values()] for name in header}
    return pd.DataFrame(cells, index=lines, dtype=TEXT_DTYPE)


def _format_json(value: object) -> str:
    """Return the text of a JSON value; lists and objects stay JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _drop_trailing_blanks(cells: list[str], width: int) -> list[str]:
    """Remove the blank cells that spreadsheets write after the last column."""
    return cells[:width] if not any(cell.strip() for cell in cells[width:]) else cells


def _find_ragged_lines(rows: list[tuple[int, list[str]]], records: list[list[str]], header: list[str]) -> list[int]:
    """Return the lines of rows of another length than the header; columns without a name at its end may be left out."""
    width = len(header)
    n_needed = max((i + 1 for i, name in enumerate(header) if name), default=width)
    return [line for (line, _), cells in zip(rows, records, strict=True) if not n_needed <= len(cells) <= width]


def _reject_ragged_lines(ragged_lines: list[int], width: int, path: Path) -> None:
    if ragged_lines:
        lines = format_line_numbers(ragged_lines)
        problem = f"{len(ragged_lines):,} rows do not have {width} cells, as the header has ({lines})"
        fix = "Give every row as many cells as the header, and quote a cell that holds the separator"
        raise DataError(problem, fix, path=path, code="E010")


def _reject_duplicate_columns(header: list[str], path: Path) -> None:
    duplicates = [name for name, count in Counter(filter(None, map(str.casefold, header))).items() if count > 1]
    if duplicates:
        problem = f"several columns are called {format_names(map(repr, duplicates))}"
        raise DataError(problem, "Give each column a different name", path=path, code="E029")


def to_json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows with plain Python values, None for a missing one."""
    columns = {str(name): _list_plain(column) for name, column in table.items()}
    return [{name: cells[row] for name, cells in columns.items()} for row in range(len(table))]


def _list_plain(column: pd.Series) -> list[Any]:
    """Return the values of a column; faster for a few rows than DataFrame.to_dict."""
    values = [value.item() if isinstance(value, np.generic) else value for value in column.tolist()]
    return [None if is_missing else value for value, is_missing in zip(values, column.isna().tolist(), strict=True)]


def format_csv(table: pd.DataFrame, *, header: bool = True, quote_text: bool = False) -> str:
    """Return the table as CSV text with escaped formulas, numbers in full precision.

    Every text is quoted with `quote_text`, or if a cell has a carriage return: pandas does not quote a single one, and
    reads it as the end of a row.
    """
    escaped = escape_formulas(table)
    if not quote_text:
        text = escaped.to_csv(index=False, header=header, lineterminator="\n")
        if "\r" not in text:
            return text
    return escaped.to_csv(index=False, header=header, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
