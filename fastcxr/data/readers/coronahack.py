"""Reader of the CoronaHack dataset: Chest_xray_Corona_Metadata.csv with the folders train/ and test/.

The table has three labels per image: `Label` (Normal or Pnemonia), the type of pathogen, and for some images its name.
COVID-19 is a separate class. Every other named pathogen is labelled by its type, as in the table itself.
"""

import logging
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import (
    assign_files,
    clear_blank_cells,
    find_patient_column,
    reject_rows,
    rename_reserved_columns,
)
from fastcxr.data.readers.folders import SPLIT_ALIASES, list_split_files
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import find_table_by_columns
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")

NAME_COLUMN, LABEL_COLUMN, SPLIT_COLUMN, KIND_COLUMN, VIRUS_COLUMN = REQUIRED_COLUMNS = (
    "X_ray_image_name",
    "Label",
    "Dataset_type",
    "Label_1_Virus_category",
    "Label_2_Virus_category",
)
KAGGLE_FOLDER = "Coronahack-Chest-XRay-Dataset"  # Kaggle's archive contains this folder twice, nested
ROOT_FOLDERS = ("", f"{KAGGLE_FOLDER}/{KAGGLE_FOLDER}", KAGGLE_FOLDER)
LABEL_VALUES = {"normal": "Normal", "pnemonia": "Pneumonia", "pneumonia": "Pneumonia"}
PATHOGEN_KINDS = {"bacteria": "Bacteria", "virus": "Virus"}
KERMANY_PATTERN = re.compile(r"person\d+_|(NORMAL\d*-)?IM-\d+")  # children from Guangzhou (Kermany et al. 2018)


def read_coronahack(path: Path, options: ReaderOptions = ReaderOptions()) -> pd.DataFrame:  # noqa: B008  it is frozen
    """Return path, label, split, source, file, both virus categories, and the patient if the table has it."""
    table = read_table(path)
    table = table.rename(columns={column: name for name, column in find_patient_column(table, path).items()})
    table = table.assign(
        path=table[NAME_COLUMN].str.strip(), label=_parse_labels(table, path), split=_parse_splits(table, path)
    )
    image_paths = list_split_files(path.absolute().parent, ROOT_FOLDERS)
    _log_unlisted_files(image_paths, set(table["path"]))
    table = rename_reserved_columns(
        table[table["label"].notna()].drop(columns=[NAME_COLUMN, LABEL_COLUMN, SPLIT_COLUMN])
    )
    source = ["kermany" if KERMANY_PATTERN.match(name) else "other" for name in table["path"]]
    table = table.assign(source=pd.Series(source, table.index, dtype=TEXT_DTYPE))
    # a file in the folder of the other split is not used: the correct split is unknown
    paths = [image_paths.get(split, {}).get(name) for name, split in zip(table["path"], table["split"], strict=True)]
    return clear_blank_cells(assign_files(table, paths, path), [KIND_COLUMN, VIRUS_COLUMN])


def _parse_labels(table: pd.DataFrame, path: Path) -> pd.Series:
    """Return Normal, Bacteria, Virus or COVID-19 for each row, missing if the table has none of them."""
    coarse, kind, virus = (
        table[name].where(~is_blank(table[name])).str.strip() for name in (LABEL_COLUMN, KIND_COLUMN, VIRUS_COLUMN)
    )
    label, pathogen = coarse.str.casefold().map(LABEL_VALUES), kind.str.casefold().map(PATHOGEN_KINDS)
    is_unknown, fix = coarse.notna() & label.isna(), "Write Normal or Pnemonia, or leave the cell empty"
    reject_rows(is_unknown, "have an unknown Label", fix, path, coarse)
    is_normal, is_covid = label == "Normal", virus.str.casefold() == "covid-19"
    is_conflicting, fix = is_normal & (kind.notna() | virus.notna()), "Correct the Label, or clear the virus categories"
    reject_rows(is_conflicting, "are Normal and name a pathogen", fix, path)
    labels = to_text(pathogen.mask(is_covid, "COVID-19").mask(is_normal, "Normal"))
    _log_label_choices(labels, pd.DataFrame({"label": coarse, "kind": kind, "virus": virus}))
    return labels


def _log_label_choices(labels: pd.Series, given: pd.DataFrame) -> None:
    other_pathogens = given["virus"][labels.isin(list(PATHOGEN_KINDS.values()))].dropna()
    if len(other_pathogens):
        counts = (other_pathogens + " as " + labels[other_pathogens.index]).value_counts()
        log.info("CoronaHack: named pathogens are labelled by their type: %s", _format_value_counts(counts))
    unlabelled = given[labels.isna()]
    if len(unlabelled):
        counts = unlabelled.apply(lambda row: " ".join(row.dropna()) or "empty", axis=1).value_counts()
        text = "CoronaHack: skipped %s without a label Normal, Bacteria, Virus or COVID-19: %s"
        log.warning(text, pluralize(len(unlabelled), "row"), _format_value_counts(counts))


def _format_value_counts(counts: pd.Series) -> str:
    return format_names(f"{value} ({n:,})" for value, n in counts.items())


def _parse_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    splits = table[SPLIT_COLUMN].str.strip().str.casefold().map(SPLIT_ALIASES)
    reject_rows(splits.isna(), f"have a {SPLIT_COLUMN} that is neither TRAIN nor TEST", "Write TRAIN or TEST", path)
    return to_text(splits)


def _log_unlisted_files(image_paths: dict[str, dict[str, str]], listed: set[str]) -> None:
    names = sorted(path for files in image_paths.values() for name, path in files.items() if name not in listed)
    if names:
        text = "CoronaHack: skipped %s that the table does not list: %s"
        log.info(text, pluralize(len(names), "file"), format_names(names, 5))


DATASET = PublicDataset(
    name="coronahack",
    title="CoronaHack",
    required=f"a table with the columns {', '.join(REQUIRED_COLUMNS)}",
    detect=lambda path: find_table_by_columns(path, REQUIRED_COLUMNS),
    read=read_coronahack,
    labels="Normal, Bacteria, Virus, COVID-19",
    page="https://www.kaggle.com/datasets/praveengovi/coronahack-chest-xraydataset",
    citation="P. Govi, CoronaHack: Chest X-Ray-Dataset, Kaggle, 2020",
    missing_fix="Unpack the whole archive next to the table",
    overlaps={"kermany": "its pediatric images", "cohen": "its COVID-19 images"},
)
