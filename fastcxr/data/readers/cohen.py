"""Cohen's metadata.csv comes in; its radiographs with their finding, view, modality and patient go out."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import assign_files, reject_duplicate_rows, rename_reserved_columns
from fastcxr.errors import InputMissingError
from fastcxr.io.tables import BLANK_VALUES, TEXT_DTYPE, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")

REQUIRED_COLUMNS = ("patientid", "finding", "filename", "folder", "view", "modality")
NO_LABEL_VALUES = BLANK_VALUES | {"todo", "unknown"}  # what later versions write until somebody has looked
VOLUME_SUFFIXES = (".nii", ".nii.gz")


def read_cohen(path: Path) -> pd.DataFrame:
    """Columns path, label, patient, split, file, then view, modality and all others, by which rows may be chosen."""
    table = read_table(path)
    table = rename_reserved_columns(table.rename(columns={"patientid": "patient", "finding": "label"}))
    table = _shorten_findings(table)
    folder, name = (table[column].fillna("").str.strip() for column in ("folder", "filename"))
    table = table.assign(path=(folder + "/" + name).str.lstrip("/"))
    table = _drop_unusable_rows(table.drop(columns=["folder", "filename"]))
    if table.empty:
        raise InputMissingError("0 images with a finding", "Give the collection's own table", path=path, code="E002")
    root = path.absolute().parent
    paths = to_text(table["path"].map(lambda cell: cell if (root / cell).is_file() else None))
    fix = "Images are looked up by the columns folder and filename: fetch the folder, or remove the rows"
    table = assign_files(table, paths, path, fix)
    reject_duplicate_rows(table.assign(split=pd.Series(index=table.index, dtype=TEXT_DTYPE)), path)
    cleaned = {column: to_text(table[column].where(~is_blank(table[column]))) for column in table.columns}
    return table.assign(**cleaned, split=pd.Series(index=table.index, dtype=TEXT_DTYPE)).reset_index(drop=True)


def _shorten_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Later versions write a finding as a path, Pneumonia/Viral/COVID-19: its last part is the label."""
    findings = table["label"].str.strip().str.strip("/")
    labels = findings.str.rsplit("/", n=1).str[-1].str.strip()
    paths = findings[findings.str.contains("/", na=False)]
    if len(paths):
        renamings = (f"{path} as {path.rpartition('/')[2].strip()}" for path in sorted(set(paths)))
        log.info("Cohen: findings go by the last part of their path: %s", format_names(renamings, 5))
    return table.assign(label=labels)


def _drop_unusable_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Without rows that nothing can be learned of: no finding, or a volume of slices."""
    is_volume = table["path"].str.casefold().str.endswith(VOLUME_SUFFIXES)
    is_unlabelled = is_blank(table["label"], NO_LABEL_VALUES) & ~is_volume
    if is_volume.any():
        log.info("Cohen: %s CT volumes are no radiographs and are left out", f"{is_volume.sum():,}")
    if is_unlabelled.any():
        log.warning("Cohen: %s rows have no finding and are left out: %s",
                    f"{is_unlabelled.sum():,}", format_names(table.loc[is_unlabelled, "path"], 5))  # fmt: skip
    return table[~is_volume & ~is_unlabelled]
