"""Reader of CheXpert, in full size (CheXpert-v1.0) and in small (CheXpert-v1.0-small).

Irvin J, Rajpurkar P, Ko M, et al. CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert
Comparison. AAAI 2019. https://arxiv.org/abs/1901.07031

Access: form of Stanford AIMI. train.csv has 223,414 images of 64,540 patients with labels that a program extracted from
reports: 1, 0, -1 (uncertain) or blank (not mentioned). valid.csv was read by radiologists: 1 or 0.

Known traps: a blank is not a negative, and how it is counted decides the prevalence (Atelectasis: 96 % or 18 %). The
paths in the tables begin with the name of the dataset's folder, which may have been renamed. One sex is "Unknown". 17
frontal images have LL or RL in the column AP/PA. The files of different patients have the same names. The download has
no test labels; those of CheXlocalize are read as the test split if they are there.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from fastcxr.data.imaging.sniff import IMAGE_SUFFIXES
from fastcxr.data.readers.csv_table import clear_blank_cells, reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import TABLE_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import (
    CHEXPERT_LABELS,
    find_dataset_folder,
    find_table,
    make_path_columns,
    parse_chexpert_labels,
)
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import BLANK_VALUES, format_names, is_blank, read_header, read_table

log = logging.getLogger("fastcxr")
FINDINGS = CHEXPERT_LABELS[1:]  # without No Finding
REQUIRED_COLUMNS = ("Path", *FINDINGS)
SPLIT_BY_TABLE = {"train.csv": "train", "valid.csv": "valid", "test.csv": "test", "test_labels.csv": "test"}
PEOPLE_COLUMNS = {"Sex": "sex", "Age": "age"}
LATERAL = "lateral"


def read_chexpert(location: Path, options: ReaderOptions) -> pd.DataFrame:  # noqa: ARG001
    """Return a row per image of train.csv and valid.csv, and of a test table; `location`: folder, or one of the tables.

    Raises:
        DataError: a finding is not 1, 0, -1 or blank (E012), two files may be an image (E013), or an image is in two
            tables (E009).
        InputMissingError: the folder has no table (E002).
    """
    return read_split_tables(location, SPLIT_BY_TABLE)


def read_split_tables(location: Path, split_by_table: Mapping[str, str]) -> pd.DataFrame:
    """Return a row per image of the tables with CheXpert's columns, which give a split each.

    Of two tables of the same split, the first is read. `location`: folder, or one of the tables.
    """
    folder = location if location.is_dir() else location.parent
    names = split_by_table if location.is_dir() else [location.name.removesuffix(".gz")]
    tables: dict[str, Path] = {}
    for name in names:
        if path := find_table(folder, [name], REQUIRED_COLUMNS):
            tables.setdefault(split_by_table[name], path)
    if not tables:
        problem = f"no {format_names(names)} with the columns {format_names(REQUIRED_COLUMNS, 4)}"
        raise InputMissingError(problem, "Copy the tables of the dataset to the folder", path=location, code="E002")
    index = FileIndex(folder)
    parts = [_read_rows(path, index).assign(split=split) for split, path in tables.items()]
    if len(parts) == 1:
        return parts[0]
    rows = pd.concat(parts, ignore_index=True).rename_axis("row")
    _reject_shared_images(rows, folder)
    return rows


def _read_rows(path: Path, index: FileIndex) -> pd.DataFrame:
    table = read_table(path)
    reject_rows(is_blank(table["Path"]), "have no path", "Restore the table", path)
    names = table["Path"].str.strip().str.replace(r"^.*?(?=(?:train|val|valid|test)/patient\d)", "", regex=True)
    rows = make_path_columns(names, _find_images(names, index), index.root).assign(
        patient=names.str.extract(r"(?:^|/)(patient\d+)/", expand=False),
        patient_origin="chexpert",
        view=_read_views(table),
    )
    others = table.drop(columns=["Path", *CHEXPERT_LABELS], errors="ignore").rename(columns=PEOPLE_COLUMNS)
    others = clear_blank_cells(others, others.columns, BLANK_VALUES | {"unknown"})
    return pd.concat([rows, others, parse_chexpert_labels(table, path)], axis=1)


def _read_views(table: pd.DataFrame) -> pd.Series:
    """Return AP, PA or lateral, missing for frontal images with another or no position."""
    is_lateral = table["Path"].str.contains("_lateral")
    if "Frontal/Lateral" in table:
        is_lateral = table["Frontal/Lateral"].str.strip().str.casefold() == LATERAL
    positions = table["AP/PA"].str.strip() if "AP/PA" in table else pd.Series("", index=table.index)
    return positions.where(positions.isin(["AP", "PA"])).mask(is_lateral, LATERAL)


def _find_images(names: Iterable[str], index: FileIndex) -> list[str | None]:
    """Return the path of each image, found by patient, study and view: the folders above are often renamed.

    Raises:
        DataError: several files have the same patient, study and view (E013).
    """
    keys = [_make_key(name) for name in names]
    wanted, path_by_key = set(keys), {}
    for path in index.paths:
        key = _make_key(path)
        if key not in wanted or os.path.splitext(path)[1].casefold() not in IMAGE_SUFFIXES:
            continue
        if key in path_by_key:
            problem = f"two files may be the same image: {path_by_key[key]} and {path}"
            raise DataError(
                problem, "Keep one of the two, or name the folder of one copy", path=index.root, code="E013"
            )
        path_by_key[key] = path
    return [path_by_key.get(key) for key in keys]


def _make_key(path: str) -> tuple[str, ...]:
    return tuple(path.rpartition(".")[0].rsplit("/", 3)[-3:])


def _reject_shared_images(rows: pd.DataFrame, folder: Path) -> None:
    is_shared = rows["path"].duplicated()
    if is_shared.any():
        problem = f"{is_shared.sum():,} images are in two tables: {format_names(rows.loc[is_shared, 'path'], 5)}"
        raise DataError(problem, "Restore the tables", path=folder, code="E009")


def _detect(path: Path) -> Path | None:
    return detect_split_tables(path, ("train.csv", "valid.csv"))


def detect_split_tables(path: Path, names: Iterable[str]) -> Path | None:
    """Return the table if it is one of the names, or the folder that has one of them, with CheXpert's columns."""
    if path.is_file():
        is_table = path.name.removesuffix(".gz") in names and set(REQUIRED_COLUMNS) <= set(read_header(path))
        return path if is_table else None
    return find_dataset_folder(path, lambda folder: find_table(folder, names, REQUIRED_COLUMNS) is not None)


DATASET = PublicDataset(
    name="chexpert",
    title="CheXpert",
    required="train.csv or valid.csv with the columns Path and those of the findings, and the images",
    blank="negative",
    blank_reason="its labeller leaves a finding blank that the report does not mention (Irvin 2019)",
    detect=_detect,
    read=read_chexpert,
    labels="13 findings (several per image; 1, 0, -1 uncertain, blank not mentioned)",
    n_images=223_414,  # in train.csv
    n_patients=64_540,
    counts_from=TABLE_COUNTS,
    page="https://stanfordmlgroup.github.io/competitions/chexpert/",
    access="form",
    citation="Irvin et al., CheXpert, AAAI 2019",
    files={
        "train.csv": "labels of the training images",
        "valid.csv": "labels of the validation images",
        "train/patient*/study*/*.jpg": "training images",
        "valid/patient*/study*/*.jpg": "validation images",
    },
    overlaps={"chexlocalize": "its validation images are those of CheXpert"},
)
