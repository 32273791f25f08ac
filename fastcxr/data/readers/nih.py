"""Reader of NIH ChestX-ray14.

Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks on
Weakly-Supervised Classification and Localization of Common Thorax Diseases. CVPR 2017. https://arxiv.org/abs/1705.02315

Access: free, from the NIH Box folder or Kaggle. The images lie in images_001/images/ to images_012/images/, or in one
folder; Kaggle's copy of 224 px has them in images-224/ and names the lists train_val_list_NIH.txt and
test_list_NIH.txt.

Known traps: the labels were extracted from reports by a program. 20,796 of the 112,120 images have more than one
finding. A patient may have many images, so only the official lists or a split by patient are free of leakage. The table
of 2017 and that of 2020 have different names and different names for the column of the sex. The table of boxes calls
Infiltration "Infiltrate". The images of the RSNA challenge come from this dataset.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import LABEL_SEPARATOR, NO_FINDING, expand_label_lists, make_finding_labels
from fastcxr.data.readers.csv_table import clear_blank_cells, reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import TABLE_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import find_dataset_folder, find_table, make_path_columns
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import format_names, is_blank, read_header, read_lines, read_table, to_text

log = logging.getLogger("fastcxr")
TABLE_NAMES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
REQUIRED_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
BOX_TABLE_NAMES = ("BBox_List_2017.csv",)
# the header is `Bbox [x,y,w,h],,,`, so that a comma splits the name of one column into four
BOX_COLUMNS = {
    "Image Index": "path",
    "Finding Label": "finding",
    "Bbox [x": "x",
    "y": "y",
    "w": "width",
    "h]": "height",
}
LIST_NAMES = {
    "train": ("train_val_list.txt", "train_val_list_NIH.txt"),
    "test": ("test_list.txt", "test_list_NIH.txt"),
}
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip


PEOPLE_COLUMNS = {"Patient Age": "age", "Patient Gender": "sex", "Patient Sex": "sex", "View Position": "view"}


def read_nih(location: Path, options: ReaderOptions) -> pd.DataFrame:  # noqa: ARG001
    """Return a row per image of the table, with a column for each of the 14 findings; `location`: folder or table.

    Raises:
        DataError: a label is not one of NIH's (E012), or an image is in both official lists (E009).
        InputMissingError: the folder has no table (E002).
    """
    path = _find_table(location)
    table = read_table(path)
    names = table["Image Index"].str.strip()
    index = FileIndex(path.parent)
    labels = _parse_labels(table["Finding Labels"], path)
    is_normal = pd.Series([labels is not None and NO_FINDING in labels for labels in labels], index=table.index)
    findings = expand_label_lists(labels, table.index, FINDINGS)
    rows = make_path_columns(names, index.find(names), index.root).assign(
        label=make_finding_labels(findings, is_normal),
        split=_read_splits(names, path),
        # with the zeros of the file names, so that other datasets with these files have the same patients
        patient=table["Patient ID"].str.strip().str.zfill(8),
    )
    others = table.drop(columns=["Image Index", "Finding Labels", "Patient ID"]).rename(columns=PEOPLE_COLUMNS)
    return pd.concat([rows, clear_blank_cells(others, others.columns), findings], axis=1)


def read_boxes(location: Path) -> pd.DataFrame:
    """Return the boxes of BBox_List_2017.csv: path, finding, and x, y, width and height in pixels of the 1024 px image.

    Without this table there are no rows. The path of an image that is not there is its name in the table.

    Raises:
        DataError: a number cannot be read (E012).
    """
    folder = location if location.is_dir() else location.parent
    path = find_table(folder, BOX_TABLE_NAMES, BOX_COLUMNS)
    if path is None:
        return pd.DataFrame(columns=list(BOX_COLUMNS.values()))
    boxes = read_table(path)[list(BOX_COLUMNS)].rename(columns=BOX_COLUMNS)
    sizes = boxes[["x", "y", "width", "height"]].apply(pd.to_numeric, errors="coerce")
    reject_rows(sizes.isna().any(axis=1), "have a box that is not four numbers", "Restore the table", path)
    index = FileIndex(folder)
    names = boxes["path"].str.strip()
    findings = boxes["finding"].str.strip().replace("Infiltrate", "Infiltration")
    return sizes.assign(path=make_path_columns(names, index.find(names), index.root)["path"], finding=findings)[
        list(BOX_COLUMNS.values())
    ]


def _detect(path: Path) -> Path | None:
    if path.is_file():
        return path if path.name.removesuffix(".gz") in TABLE_NAMES and _is_label_table(path) else None
    return find_dataset_folder(path, lambda folder: find_table(folder, TABLE_NAMES, REQUIRED_COLUMNS) is not None)


def _is_label_table(path: Path) -> bool:
    return set(REQUIRED_COLUMNS) <= set(read_header(path))


def _find_table(location: Path) -> Path:
    """Return the table of a folder, that of 2020 if it has both."""
    if location.is_file():
        return location
    path = find_table(location, TABLE_NAMES, REQUIRED_COLUMNS)
    if path is None:
        problem = f"no {format_names(TABLE_NAMES)} with the columns {format_names(REQUIRED_COLUMNS)}"
        raise InputMissingError(problem, "Copy NIH's table to the folder", path=location, code="E002")
    if others := [name for name in TABLE_NAMES if name not in path.name and (location / name).is_file()]:
        log.info("%s is read, and %s is not", path.name, format_names(others))
    return path


def _parse_labels(cells: pd.Series, path: Path) -> list[list[str] | None]:
    """Return the labels in each cell, None for a blank cell."""
    is_unknown = is_blank(cells)
    labels = [[part.strip() for part in cell.split(LABEL_SEPARATOR)] for cell in cells.fillna("")]
    known = {*FINDINGS, NO_FINDING}
    is_other = pd.Series([not known.issuperset(parts) for parts in labels], index=cells.index) & ~is_unknown
    reject_rows(is_other, "have labels that are not NIH's 14 findings", "Restore the table", path, cells)
    return [None if blank else parts for blank, parts in zip(is_unknown, labels, strict=True)]


def _read_splits(names: pd.Series, table: Path) -> pd.Series:
    """Return train or test by the official lists, missing for images in neither list."""
    split_by_name: dict[str, str] = {}
    absent_lists = []
    for split, list_names in LIST_NAMES.items():
        path = next((path for name in list_names if (path := table.parent / name).is_file()), None)
        absent_lists += [] if path else [list_names[0]]
        listed = read_lines(path) if path else []
        if both := [name for name in listed if split_by_name.get(name, split) != split]:
            problem = f"{len(both):,} images are in both official lists: {format_names(both, 5)}"
            raise DataError(problem, "Restore the lists, or remove both", path=path, code="E009")
        split_by_name |= dict.fromkeys(listed, split)
    splits = to_text(names.map(split_by_name))
    if not split_by_name:
        log.info("%s: no official lists (%s)", table.parent.name, " and ".join(absent_lists))
    elif splits.isna().any():
        text = "%s: %s of the %s images are in neither official list%s"
        reason = f"; {absent_lists[0]} is missing" if absent_lists else ""
        log.warning(text, table.name, f"{splits.isna().sum():,}", f"{len(names):,}", reason)
    if absent := len(split_by_name.keys() - set(names)):
        log.info("%s: %s names of the official lists are not in the table", table.name, f"{absent:,}")
    return splits


DATASET = PublicDataset(
    name="nih",
    title="NIH ChestX-ray14",
    required="Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, and the images below the same folder",
    detect=_detect,
    read=read_nih,
    labels="14 findings (several per image)",
    n_images=112_120,
    n_patients=30_805,
    counts_from=TABLE_COUNTS,
    page="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    access="free",
    citation="Wang et al., ChestX-ray8, CVPR 2017",
    files={
        "Data_Entry_2017*.csv": "labels and patients",
        "train_val_list*.txt": "official training and validation images",
        "test_list*.txt": "official test images",
        "BBox_List_2017.csv": "boxes of 984 findings",
        "images*/**/*.png": "images",
    },
    missing_fix="Unpack the missing parts, images_001 to images_012",
    overlaps={"rsna": "all of its images are NIH's", "siim": "its images are NIH's"},
    read_boxes=read_boxes,
)
