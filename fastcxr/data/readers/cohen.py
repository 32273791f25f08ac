"""Cohen's metadata.csv comes in; its radiographs with their finding, view, modality and patient go out."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import place_files, refuse_repeats, rename_reserved
from fastcxr.errors import InputMissingError
from fastcxr.io.tables import NOTHING, TEXT, is_blank, name_some, read_table, texts

log = logging.getLogger("fastcxr")

COLUMNS = ("patientid", "finding", "filename", "folder", "view", "modality")
NO_LABEL = NOTHING | {"todo", "unknown"}  # what later versions write until somebody has looked
VOLUMES = (".nii", ".nii.gz")


def read_cohen(path: Path) -> pd.DataFrame:
    """Columns path, label, patient, split, file, then view, modality and all others, by which rows may be chosen."""
    table = read_table(path)
    table = rename_reserved(table.rename(columns={"patientid": "patient", "finding": "label"}))
    table = _name_findings(table)
    folder, name = (table[column].fillna("").str.strip() for column in ("folder", "filename"))
    table = table.assign(path=(folder + "/" + name).str.lstrip("/"))
    table = _leave_out(table.drop(columns=["folder", "filename"]))
    if table.empty:
        raise InputMissingError("0 images with a finding", "Give the collection's own table", path=path, code="E002")
    root = path.absolute().parent
    found = texts(table["path"].map(lambda cell: cell if (root / cell).is_file() else None))
    fix = "Images are looked up by the columns folder and filename: fetch the folder, or remove the rows"
    table = place_files(table, found, path, fix)
    refuse_repeats(table.assign(split=pd.Series(index=table.index, dtype=TEXT)), path)
    kept = {column: texts(table[column].where(~is_blank(table[column]))) for column in table.columns}
    return table.assign(**kept, split=pd.Series(index=table.index, dtype=TEXT)).reset_index(drop=True)


def _name_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Later versions write a finding as a path, Pneumonia/Viral/COVID-19: its last part is the label."""
    findings = table["label"].str.strip().str.strip("/")
    labels = findings.str.rsplit("/", n=1).str[-1].str.strip()
    paths = findings[findings.str.contains("/", na=False)]
    if len(paths):
        told = (f"{path} as {path.rpartition('/')[2].strip()}" for path in sorted(set(paths)))
        log.info("Cohen: findings go by the last part of their path: %s", name_some(told, 5))
    return table.assign(label=labels)


def _leave_out(table: pd.DataFrame) -> pd.DataFrame:
    """Without rows that nothing can be learned of: no finding, or a volume of slices."""
    is_volume = table["path"].str.casefold().str.endswith(VOLUMES)
    is_unsaid = is_blank(table["label"], NO_LABEL) & ~is_volume
    if is_volume.any():
        log.info("Cohen: %s CT volumes are no radiographs and are left out", f"{is_volume.sum():,}")
    if is_unsaid.any():
        log.warning("Cohen: %s rows have no finding and are left out: %s",
                    f"{is_unsaid.sum():,}", name_some(table.loc[is_unsaid, "path"], 5))  # fmt: skip
    return table[~is_volume & ~is_unsaid]
