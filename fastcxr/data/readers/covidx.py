"""Reader of COVIDx: text files with lines of `patient filename label source`, and the folders train/ and test/."""

import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.folders import SPLIT_ALIASES, list_loose_files, list_split_files
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.errors import DataError
from fastcxr.io.tables import format_line_numbers, format_names, to_text

LIST_NAME_PATTERN = re.compile(r"(train|test|valid|val)(?![a-z]).*\.txt", re.IGNORECASE)
LIST_FOLDERS = ("", "labels")
IMAGE_FOLDERS = ("", "data")
IMAGE_NAME_PATTERN = re.compile(r"\S\.(png|jpe?g|tiff?|bmp|dcm)\s", re.IGNORECASE)


def find_label_lists(root: Path) -> dict[str, list[str]]:
    """Return the label lists of each split, as paths below the root, or {} for other data."""
    for folder in LIST_FOLDERS:
        lists: dict[str, list[str]] = {}
        for name in list_loose_files(str(root), folder) if (root / folder).is_dir() else ():
            match = LIST_NAME_PATTERN.fullmatch(name)
            if match and _is_label_list(root / folder / name):
                lists.setdefault(SPLIT_ALIASES[match[1].casefold()], []).append(f"{folder}/{name}".lstrip("/"))
        if lists:
            return lists
    return {}


def _is_label_list(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            first_line = file.readline(10_000)
    except (OSError, UnicodeDecodeError):
        return False
    return len(first_line.split()) >= 3 and IMAGE_NAME_PATTERN.search(first_line) is not None


def read_covidx(root: Path, options: ReaderOptions = ReaderOptions()) -> pd.DataFrame:  # noqa: B008  it is frozen
    """Return path, label, patient, source, split and file of each image in a label list."""
    lists = find_label_lists(root)
    if duplicate_lists := [name for names in lists.values() if len(names) > 1 for name in names]:
        problem = f"several label lists for one split: {format_names(duplicate_lists)}"
        raise DataError(problem, "Keep one version of the lists", path=root, code="E035")
    files = list_split_files(root, IMAGE_FOLDERS)
    tables = [_read_label_list(root, name, split, files.get(split, {})) for split, (name,) in sorted(lists.items())]
    return pd.concat(tables)


def _read_label_list(root: Path, name: str, split: str, files: dict[str, str]) -> pd.DataFrame:
    path = root / name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the label list cannot be read as text ({type(error).__name__})"
        raise DataError(problem, "Save the file as UTF-8", path=path, code="E010") from error
    numbered = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    _reject_lines(path, "have fewer than 3 fields", [number for number, words in numbered if len(words) < 3],
            "Write patient, file name and label on each line, separated by spaces", "E010")  # fmt: skip
    lines = pd.Index([number for number, _ in numbered], name="line")
    rows = [_parse_line(words, files) for _, words in numbered]
    table = pd.DataFrame(rows, index=lines, columns=["patient", "path", "label", "source"])
    is_known = table["path"].isin(set(files.values()))
    table = table.assign(file=(f"{root.absolute()}/" + table["path"]).where(is_known), split=split)
    return table.assign(**{name: to_text(table[name]) for name in table.columns})


def _parse_line(words: list[str], files: dict[str, str]) -> tuple[str, str, str, str | None]:
    """Return patient, path, label and source of a line; the patient and the name of an existing file may have spaces.

    The path of a missing file is its name.
    """
    for n_last_words in (2, 1):  # older lists have no source
        label, source = words[-n_last_words], words[-1] if n_last_words == 2 else None
        for first in range(1, len(words) - n_last_words):
            name = " ".join(words[first : len(words) - n_last_words])
            if name in files:
                return " ".join(words[:first]), files[name], label, source
    return words[0], words[1], words[2], words[3] if len(words) > 3 else None


def _reject_lines(path: Path, problem: str, lines: list[int], fix: str, code: str) -> None:
    if lines:
        raise DataError(f"{len(lines):,} lines {problem} ({format_line_numbers(lines)})", fix, path=path, code=code)


DATASET = PublicDataset(
    name="covidx",
    title="COVIDx",
    required="train*.txt or test*.txt with lines of patient, filename, label and source, in the folder or labels/",
    detect=lambda path: path if path.is_dir() and find_label_lists(path) else None,
    read=read_covidx,
    labels="positive and negative, or normal, pneumonia and COVID-19",
    page="https://github.com/lindawangg/COVID-Net",
    citation="L. Wang, Z. Q. Lin and A. Wong, COVID-Net, Scientific Reports 10, 19549, 2020",
    missing_fix="Create the images with the dataset's script",
    overlaps={"cohen": "its COVID-19 images", "rsna": "its images without COVID-19"},
)
