"""Reader of Cohen's COVID-19 image data collection (metadata.csv)."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import (
    assign_files,
    clear_blank_cells,
    rename_reserved_columns,
)
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import find_table_by_columns
from fastcxr.errors import InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import BLANK_VALUES, TEXT_DTYPE, format_names, is_blank, read_table

log = logging.getLogger("fastcxr")

REQUIRED_COLUMNS = ("patientid", "finding", "filename", "folder", "view", "modality")
NO_LABEL_VALUES = BLANK_VALUES | {"todo", "unknown"}  # later versions mark unlabelled images with these
VOLUME_SUFFIXES = (".nii", ".nii.gz")


def read_cohen(path: Path, options: ReaderOptions = ReaderOptions()) -> pd.DataFrame:  # noqa: B008  it is frozen
    """Return path, label, patient, split and file of each radiograph, and all other columns for filters."""
    table = read_table(path)
    table = rename_reserved_columns(table.rename(columns={"patientid": "patient", "finding": "label"}))
    table = _shorten_findings(table)
    folder, name = (table[column].fillna("").str.strip() for column in ("folder", "filename"))
    table = table.assign(path=(folder + "/" + name).str.lstrip("/"))
    table = _drop_unusable_rows(table.drop(columns=["folder", "filename"]))
    if table.empty:
        raise InputMissingError(
            "0 images with a finding", "Pass the metadata.csv of the collection", path=path, code="E002"
        )
    root = path.absolute().parent
    paths = [name if (root / name).is_file() else None for name in table["path"]]
    table = assign_files(table, paths, path).assign(split=pd.Series(index=table.index, dtype=TEXT_DTYPE))
    return clear_blank_cells(table, table.columns)


def _shorten_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Reduce findings of later versions, e.g. Pneumonia/Viral/COVID-19, to their last part."""
    findings = table["label"].str.strip().str.strip("/")
    labels = findings.str.rsplit("/", n=1).str[-1].str.strip()
    paths = findings[findings.str.contains("/", na=False)]
    if len(paths):
        renamings = (f"{path} as {path.rpartition('/')[2].strip()}" for path in sorted(set(paths)))
        log.info("Cohen: the label is the last part of each finding: %s", format_names(renamings, 5))
    return table.assign(label=labels)


def _drop_unusable_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Drop CT volumes and rows without a finding."""
    is_volume = table["path"].str.casefold().str.endswith(VOLUME_SUFFIXES)
    is_unlabelled = is_blank(table["label"], NO_LABEL_VALUES) & ~is_volume
    if is_volume.any():
        log.info("Cohen: skipped %s", pluralize(int(is_volume.sum()), "CT volume"))
    if is_unlabelled.any():
        names = format_names(table.loc[is_unlabelled, "path"], 5)
        log.warning("Cohen: skipped %s without a finding: %s", pluralize(int(is_unlabelled.sum()), "row"), names)
    return table[~is_volume & ~is_unlabelled]


DATASET = PublicDataset(
    name="cohen",
    title="Cohen's collection",
    required=f"a metadata.csv with the columns {', '.join(REQUIRED_COLUMNS)}",
    detect=lambda path: find_table_by_columns(path, REQUIRED_COLUMNS),
    read=read_cohen,
    labels="COVID-19 and other findings",
    missing_fix="Copy the missing images to the folder given in the table",
    page="https://github.com/ieee8023/covid-chestxray-dataset",
    citation="J. P. Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future, MELBA, 2020",
)
