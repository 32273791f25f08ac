"""CoronaHack's table and its train/ and test/ come in; a row an image, under its finest certain label, goes out.

The table gives three labels an image: `Label` (Normal or Pnemonia), the kind of pathogen, and for a few its name.
COVID-19 is a class of its own; every other named pathogen counts as its kind, as the table itself does.
"""

import logging
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import (
    assign_files,
    find_patient_column,
    reject_duplicate_rows,
    rename_reserved_columns,
)
from fastcxr.data.readers.folders import SPLIT_ALIASES, list_folders, list_loose_files
from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT_DTYPE, format_line_numbers, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")

NAME_COLUMN, LABEL_COLUMN, SPLIT_COLUMN, KIND_COLUMN, VIRUS_COLUMN = REQUIRED_COLUMNS = (
    "X_ray_image_name",
    "Label",
    "Dataset_type",
    "Label_1_Virus_category",
    "Label_2_Virus_category",
)
KAGGLE_FOLDER = "Coronahack-Chest-XRay-Dataset"
ROOT_FOLDERS = (
    "",
    f"{KAGGLE_FOLDER}/{KAGGLE_FOLDER}",
    KAGGLE_FOLDER,
)  # Kaggle's archive unpacks into a folder inside a folder of the same name
LABEL_VALUES = {"normal": "Normal", "pnemonia": "Pneumonia", "pneumonia": "Pneumonia"}
PATHOGEN_KINDS = {"bacteria": "Bacteria", "virus": "Virus"}
KERMANY_PATTERN = re.compile(
    r"person\d+_|(NORMAL\d*-)?IM-\d+"
)  # the Guangzhou children; all others were added from elsewhere


def read_coronahack(path: Path) -> pd.DataFrame:
    """Columns path, label, split, source, file, patient where the table has it, and its two virus categories."""
    table = read_table(path)
    table = table.rename(columns={column: name for name, column in find_patient_column(table, path).items()})
    table = table.assign(
        path=table[NAME_COLUMN].str.strip(), label=_parse_labels(table, path), split=_parse_splits(table, path)
    )
    image_paths = _list_image_paths(path.absolute().parent)
    _log_unlisted_files(image_paths, set(table["path"]))
    table = rename_reserved_columns(
        table[table["label"].notna()].drop(columns=[NAME_COLUMN, LABEL_COLUMN, SPLIT_COLUMN])
    )
    source = table["path"].map(lambda name: "kermany" if KERMANY_PATTERN.match(name) else "other").astype(TEXT_DTYPE)
    paths = [_find_image(name, split, image_paths) for name, split in zip(table["path"], table["split"], strict=True)]
    paths = to_text(pd.Series(paths, index=table.index, dtype="object"))
    fix = "The table names images in train/ and test/ beside it: unpack the whole archive, or remove the rows"
    table = assign_files(table.assign(source=source), paths, path, fix)
    reject_duplicate_rows(table, path)
    categories = {name: to_text(table[name].where(~is_blank(table[name]))) for name in (KIND_COLUMN, VIRUS_COLUMN)}
    return table.assign(**categories).reset_index(drop=True)


def _parse_labels(table: pd.DataFrame, path: Path) -> pd.Series:
    """Normal, Bacteria, Virus or COVID-19; missing where the table says none of them."""
    coarse, kind, virus = (
        table[name].where(~is_blank(table[name])).str.strip() for name in (LABEL_COLUMN, KIND_COLUMN, VIRUS_COLUMN)
    )
    label, pathogen = coarse.str.casefold().map(LABEL_VALUES), kind.str.casefold().map(PATHOGEN_KINDS)
    if (is_unknown := coarse.notna() & label.isna()).any():
        unknown_labels = format_names(map(repr, sorted(set(coarse[is_unknown]))), 5)
        problem = f"{is_unknown.sum():,} rows have a Label that CoronaHack does not know: {unknown_labels}"
        fix = "Write Normal or Pnemonia, or leave the cell empty"
        raise DataError(f"{problem} ({format_line_numbers(table.index[is_unknown])})", fix, path=path, code="E012")
    is_normal, is_covid = label == "Normal", virus.str.casefold() == "covid-19"
    if (is_conflicting := is_normal & (kind.notna() | virus.notna())).any():
        problem = (
            f"{is_conflicting.sum():,} rows are Normal and name a pathogen "
            f"({format_line_numbers(table.index[is_conflicting])})"
        )
        raise DataError(problem, "Correct the Label, or empty the virus categories", path=path, code="E012")
    labels = to_text(pathogen.mask(is_covid, "COVID-19").mask(is_normal, "Normal"))
    _log_label_choices(labels, pd.DataFrame({"label": coarse, "kind": kind, "virus": virus}))
    return labels


def _log_label_choices(labels: pd.Series, given: pd.DataFrame) -> None:
    other_pathogens = given["virus"][labels.isin(list(PATHOGEN_KINDS.values()))].dropna()
    if len(other_pathogens):
        pairs = (other_pathogens + " as " + labels[other_pathogens.index]).value_counts()
        log.info("CoronaHack: other pathogens that are named count as their kind: %s",
                 format_names(f"{n:,} {pair}" for pair, n in pairs.items()))  # fmt: skip
    unlabelled = given[labels.isna()]
    if len(unlabelled):
        label_texts = unlabelled.apply(lambda row: " ".join(row.dropna()) or "nothing at all", axis=1).value_counts()
        counts = format_names(f"{n:,} say {text}" for text, n in label_texts.items())
        text = "CoronaHack: %s rows have no label of Normal, Bacteria, Virus or COVID-19 and are left out: %s"
        log.warning(text, f"{len(unlabelled):,}", counts)


def _parse_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    splits = table[SPLIT_COLUMN].str.strip().str.casefold().map(SPLIT_ALIASES)
    if (is_unknown := splits.isna()).any():
        problem = (
            f"{is_unknown.sum():,} rows have a {SPLIT_COLUMN} that is neither TRAIN nor TEST "
            f"({format_line_numbers(table.index[is_unknown])})"
        )
        raise DataError(problem, "Write TRAIN or TEST", path=path, code="E012")
    return to_text(splits)


def _list_image_paths(root: Path) -> dict[str, dict[str, str]]:
    """Of train and test, each file name with its path below the root."""
    for subfolder in ROOT_FOLDERS:
        if not (root / subfolder).is_dir():
            continue
        names = [name for name in list_folders(str(root), subfolder) if name.casefold() in SPLIT_ALIASES]
        folders = {SPLIT_ALIASES[name.casefold()]: f"{subfolder}/{name}".lstrip("/") for name in names}
        if folders:
            return {split: {name: f"{folder}/{name}" for name in list_loose_files(str(root), folder)}
                    for split, folder in folders.items()}  # fmt: skip
    return {}


def _find_image(name: str, split: str, image_paths: dict[str, dict[str, str]]) -> str | None:
    """Where the table says, and nowhere else: of an image in the other folder nobody knows which is right."""
    return image_paths.get(split, {}).get(name)


def _log_unlisted_files(image_paths: dict[str, dict[str, str]], listed: set[str]) -> None:
    names = sorted(path for files in image_paths.values() for name, path in files.items() if name not in listed)
    if names:
        log.info("CoronaHack: %s files are not in the table, so they have no label and are left out: %s",
                 f"{len(names):,}", format_names(names, 5))  # fmt: skip
