"""COVIDx' label lists come in, lines of `patient filename label source`; a row an image that is there goes out."""

import logging
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import refuse_repeats
from fastcxr.data.readers.folders import SPLIT_NAMES, list_folders, list_loose
from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT, name_lines, name_some

log = logging.getLogger("fastcxr")

LIST = re.compile(r"(train|test|valid|val)(?![a-z]).*\.txt", re.IGNORECASE)
LISTS_IN = ("", "labels")
IMAGES_IN = ("", "data")
IMAGE = re.compile(r"\S\.(png|jpe?g|tiff?|bmp|dcm)\s", re.IGNORECASE)


def find_lists(root: Path) -> dict[str, list[str]]:
    """The label lists of each split, as paths below the root; none where this is no COVIDx."""
    for folder in LISTS_IN:
        if not (root / folder).is_dir():
            continue
        names = [f"{folder}/{name}".lstrip("/") for name in list_loose(str(root), folder) if LIST.fullmatch(name)]
        lists: dict[str, list[str]] = {}
        for name in (name for name in names if _is_list(root / name)):
            lists.setdefault(_split_of(name), []).append(name)
        if lists:
            return lists
    return {}


def read_covidx(root: Path) -> pd.DataFrame:
    """Columns path, label, patient, source, split, file; images lie in train/ and test/, or in data/train/ ..."""
    lists = find_lists(root)
    if several := [name for names in lists.values() if len(names) > 1 for name in names]:
        what = f"several label lists of one split: {name_some(several)}"
        raise DataError(what, "Keep one version of the lists there", path=root, code="E019")
    tables = [_read_list(root, name, split) for split, (name,) in sorted(lists.items())]
    table = pd.concat(tables).reset_index(drop=True)
    refuse_repeats(table, root)
    return table


def _is_list(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline(10_000)
    except (OSError, UnicodeDecodeError):
        return False
    return len(first.split()) >= 3 and IMAGE.search(first) is not None


def _split_of(name: str) -> str:
    return SPLIT_NAMES[LIST.fullmatch(Path(name).name)[1].casefold()]


def _read_list(root: Path, name: str, split: str) -> pd.DataFrame:
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot be read as text ({type(error).__name__})"
        raise DataError(what, "Save it as UTF-8", path=path, code="E010") from error
    files = _list_files(root, split)
    numbered = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    rows = {number: _read_line(words, files) for number, words in numbered}
    _refuse(path, "do not read `patient filename label source`", [n for n, w in numbered if len(w) < 3],
            "Give patient, file name and label on each line, separated by spaces", "E010")  # fmt: skip
    missing = [number for number, row in rows.items() if row is None]
    _refuse(path, f"name files that are not in {split}/", missing,
            "Make the images with the collection's own script, or remove the lines", "E013")  # fmt: skip
    table = pd.DataFrame(rows.values(), index=pd.Index(rows), columns=["patient", "name", "label", "source"])
    paths = table["name"].map(files).astype(TEXT)
    table = table.assign(path=paths, file=[f"{root.absolute()}/{path}" for path in paths], split=split)
    return table.drop(columns="name").astype(TEXT)


def _read_line(words: list[str], files: dict[str, str]) -> tuple[str, str, str, str | None] | None:
    """Patient, file name, label and source of a line whose patient and file name may hold spaces."""
    for last in (2, 1):  # older lists have no source
        label, source = words[-last], words[-1] if last == 2 else None
        for first in range(1, len(words) - last):
            name = " ".join(words[first : len(words) - last])
            if name in files:
                return " ".join(words[:first]), name, label, source
    return None


def _list_files(root: Path, split: str) -> dict[str, str]:
    """Each file name of a split with its path below the root."""
    for place in IMAGES_IN:
        if not (root / place).is_dir():
            continue
        for name in list_folders(str(root), place):
            if SPLIT_NAMES.get(name.casefold()) == split:
                folder = f"{place}/{name}".lstrip("/")
                return {file: f"{folder}/{file}" for file in list_loose(str(root), folder)}
    return {}


def _refuse(path: Path, what: str, lines: list[int], fix: str, code: str) -> None:
    if lines:
        raise DataError(f"{len(lines):,} lines {what} ({name_lines(lines)})", fix, path=path, code=code)
