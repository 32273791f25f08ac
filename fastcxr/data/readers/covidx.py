"""COVIDx' label lists come in, lines of `patient filename label source`; a row an image that is there goes out."""

import logging
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import reject_duplicate_rows
from fastcxr.data.readers.folders import SPLIT_ALIASES, list_folders, list_loose_files
from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT_DTYPE, format_line_numbers, format_names

log = logging.getLogger("fastcxr")

LIST_NAME_PATTERN = re.compile(r"(train|test|valid|val)(?![a-z]).*\.txt", re.IGNORECASE)
LIST_FOLDERS = ("", "labels")
IMAGE_FOLDERS = ("", "data")
IMAGE_NAME_PATTERN = re.compile(r"\S\.(png|jpe?g|tiff?|bmp|dcm)\s", re.IGNORECASE)


def find_label_lists(root: Path) -> dict[str, list[str]]:
    """The label lists of each split, as paths below the root; none where this is no COVIDx."""
    for folder in LIST_FOLDERS:
        if not (root / folder).is_dir():
            continue
        names = [
            f"{folder}/{name}".lstrip("/")
            for name in list_loose_files(str(root), folder)
            if LIST_NAME_PATTERN.fullmatch(name)
        ]
        lists: dict[str, list[str]] = {}
        for name in (name for name in names if _is_label_list(root / name)):
            lists.setdefault(_find_split(name), []).append(name)
        if lists:
            return lists
    return {}


def read_covidx(root: Path) -> pd.DataFrame:
    """Columns path, label, patient, source, split, file; images lie in train/ and test/, or in data/train/ ..."""
    lists = find_label_lists(root)
    if duplicate_lists := [name for names in lists.values() if len(names) > 1 for name in names]:
        problem = f"several label lists of one split: {format_names(duplicate_lists)}"
        raise DataError(problem, "Keep one version of the lists there", path=root, code="E035")
    tables = [_read_label_list(root, name, split) for split, (name,) in sorted(lists.items())]
    table = pd.concat(tables).reset_index(drop=True)
    reject_duplicate_rows(table, root)
    return table


def _is_label_list(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            first_line = file.readline(10_000)
    except (OSError, UnicodeDecodeError):
        return False
    return len(first_line.split()) >= 3 and IMAGE_NAME_PATTERN.search(first_line) is not None


def _find_split(name: str) -> str:
    return SPLIT_ALIASES[LIST_NAME_PATTERN.fullmatch(Path(name).name)[1].casefold()]


def _read_label_list(root: Path, name: str, split: str) -> pd.DataFrame:
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read as text ({type(error).__name__})"
        raise DataError(problem, "Save it as UTF-8", path=path, code="E010") from error
    files = _list_split_files(root, split)
    numbered = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    rows = {number: _parse_line(words, files) for number, words in numbered}
    _reject_lines(path, "do not read `patient filename label source`", [n for n, w in numbered if len(w) < 3],
            "Give patient, file name and label on each line, separated by spaces", "E010")  # fmt: skip
    missing = [number for number, row in rows.items() if row is None]
    _reject_lines(path, f"name files that are not in {split}/", missing,
            "Make the images with the collection's own script, or remove the lines", "E013")  # fmt: skip
    table = pd.DataFrame(rows.values(), index=pd.Index(rows), columns=["patient", "name", "label", "source"])
    paths = table["name"].map(files).astype(TEXT_DTYPE)
    table = table.assign(path=paths, file=[f"{root.absolute()}/{path}" for path in paths], split=split)
    return table.drop(columns="name").astype(TEXT_DTYPE)


def _parse_line(words: list[str], files: dict[str, str]) -> tuple[str, str, str, str | None] | None:
    """Patient, file name, label and source of a line whose patient and file name may hold spaces."""
    for n_last_words in (2, 1):  # older lists have no source
        label, source = words[-n_last_words], words[-1] if n_last_words == 2 else None
        for first in range(1, len(words) - n_last_words):
            name = " ".join(words[first : len(words) - n_last_words])
            if name in files:
                return " ".join(words[:first]), name, label, source
    return None


def _list_split_files(root: Path, split: str) -> dict[str, str]:
    """Each file name of a split with its path below the root."""
    for parent in IMAGE_FOLDERS:
        if not (root / parent).is_dir():
            continue
        for name in list_folders(str(root), parent):
            if SPLIT_ALIASES.get(name.casefold()) == split:
                folder = f"{parent}/{name}".lstrip("/")
                return {file: f"{folder}/{file}" for file in list_loose_files(str(root), folder)}
    return {}


def _reject_lines(path: Path, problem: str, lines: list[int], fix: str, code: str) -> None:
    if lines:
        raise DataError(f"{len(lines):,} lines {problem} ({format_line_numbers(lines)})", fix, path=path, code=code)
