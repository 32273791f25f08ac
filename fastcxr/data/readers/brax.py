"""Reader of BRAX, the Brazilian labeled chest X-ray dataset.

Reis EP, de Paiva JPQ, da Silva MCB, et al. BRAX, Brazilian labeled chest x-ray dataset. Scientific Data 9, 487 (2022).
https://doi.org/10.1038/s41597-022-01608-8

Access: PhysioNet, credentialed. The table master_spreadsheet_update.csv names the PNG files below images/.

Known traps: the labels were extracted from Portuguese reports by a program; a blank cell is unknown, -1 is uncertain.
Ages are groups of five years, the oldest of them "85 or more" (read as 85). About a quarter of the images have no view.
12 files are thin strips with a ratio of the sides above 19 and no radiographs; the reader leaves them out. There is no
official split.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import clear_blank_cells
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import DOCUMENTED_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import (
    find_dataset_folder,
    find_table,
    make_path_columns,
    parse_chexpert_labels,
    parse_view,
    reject_repeated_rows,
)
from fastcxr.errors import InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, read_table

log = logging.getLogger("fastcxr")
TABLE_NAME = "master_spreadsheet_update.csv"
REQUIRED_COLUMNS = ("PngPath", "PatientID", "PatientSex", "PatientAge", "ViewPosition", "No Finding")
FILTER_COLUMNS = ("Manufacturer", "Rows", "Columns")
MAX_SIDE_RATIO = 10  # of torchxrayvision 1.5.7, which measured less than 9 in all radiographs and 19 to 213 in strips


def read_brax(location: Path, options: ReaderOptions) -> pd.DataFrame:  # noqa: ARG001
    """Return a row per radiograph of the table, with CheXpert's findings; `location`: the folder of the table.

    Raises:
        DataError: a label is not 1, 0, -1 or blank (E012), or two rows name an image (E014).
        InputMissingError: the folder has no table (E001).
    """
    path = find_table(location, [TABLE_NAME], REQUIRED_COLUMNS)
    if path is None:
        problem = f"no {TABLE_NAME} with the columns {format_names(REQUIRED_COLUMNS)}"
        raise InputMissingError(problem, "Copy BRAX's table to the folder", path=location, code="E001")
    table = _drop_strips(read_table(path))
    table = table.assign(PngPath=table["PngPath"].str.strip())
    reject_repeated_rows(table, "PngPath", path)
    index = FileIndex(location)
    rows = make_path_columns(
        table["PngPath"], index.find(table["PngPath"].str.removeprefix("images/")), index.root
    ).assign(
        split=pd.Series(index=table.index, dtype=TEXT_DTYPE),
        patient=table["PatientID"].str.strip(),
        sex=table["PatientSex"].str.strip(),
        age=table["PatientAge"].str.strip().str.replace(r"(\.0| or more)$", "", regex=True),
        view=parse_view(table["ViewPosition"]),
    )
    rows = rows.join(table[[name for name in FILTER_COLUMNS if name in table]])
    rows = clear_blank_cells(rows, [name for name in rows.columns if name not in ("path", "file", "split")])
    return rows.join(parse_chexpert_labels(table, path))


def _drop_strips(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the images of which one side is more than MAX_SIDE_RATIO times the other."""
    if not {"Rows", "Columns"} <= set(table):
        return table
    sides = table[["Rows", "Columns"]].apply(pd.to_numeric, errors="coerce")
    is_strip = sides.max(axis=1) > MAX_SIDE_RATIO * sides.min(axis=1)
    if is_strip.any():
        text = "BRAX: left out %s with a ratio of the sides above %d, which are no radiographs"
        log.info(text, pluralize(int(is_strip.sum()), "image"), MAX_SIDE_RATIO)
    return table[~is_strip]


def _detect(path: Path) -> Path | None:
    """Return the folder of the table, for itself, the table, the folder above or the folder images/."""
    if path.is_file():
        return path.parent if path.name.removesuffix(".gz") == TABLE_NAME and _has_table(path.parent) else None
    if path.absolute().name == "images" and _has_table(path.absolute().parent):
        return path.absolute().parent
    return find_dataset_folder(path, _has_table)


def _has_table(folder: Path) -> bool:
    return find_table(folder, [TABLE_NAME], REQUIRED_COLUMNS) is not None


DATASET = PublicDataset(
    name="brax",
    title="BRAX",
    required=f"{TABLE_NAME} and the folder images/",
    blank="negative",
    blank_reason="CheXpert's labeller leaves a finding blank that the report does not mention",
    detect=_detect,
    read=read_brax,
    labels="13 findings of CheXpert (several per image; 1, 0, -1 uncertain, blank)",
    n_images=40_967,
    counts_from=DOCUMENTED_COUNTS,
    page="https://physionet.org/content/brax/1.1.0/",
    access="PhysioNet credentialed",
    terms="its agreement with PhysioNet forbids to share access to the data; read whether it covers models",
    citation="Reis et al., BRAX, Scientific Data 2022",
    files={"master_spreadsheet_update.csv*": "labels and patients", "images/**/*.png": "images"},
)
