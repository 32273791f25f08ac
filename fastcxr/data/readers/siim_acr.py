"""Reader of the SIIM-ACR Pneumothorax Segmentation challenge of 2019: DICOM images and run-length encoded masks.

Access: Kaggle, https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation

Traps:
- A row is a mask, so an image with two masks has two rows: 12,954 rows are 12,047 images.
- The header is `ImageId, EncodedPixels`, with a blank before the second name. The mask "-1" is an image without
  pneumothorax.
- Each DICOM file lies in two folders named by identifiers.
- The images are from NIH ChestX-ray14. The patients are not published here.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import TABLE_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import assign_images, find_location, find_table, log_unlabelled
from fastcxr.io.tables import read_table

log = logging.getLogger("fastcxr")
TABLE = "train-rle.csv"
TRAIN_FOLDER, TEST_FOLDER = "dicom-images-train", "dicom-images-test"
COLUMNS = ("ImageId", "EncodedPixels")
NO_MASK = ("-1", "")
LABELS = {True: "Pneumothorax", False: "No Pneumothorax"}


def read_siim_acr(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return one row per image of the table; see PublicDataset."""
    path = find_table(location, [TABLE], COLUMNS) or location / TABLE
    table = read_table(path)
    masks, images = table["EncodedPixels"].str.strip(), table["ImageId"].str.strip()
    is_known = masks.isin(NO_MASK) | masks.str.fullmatch(r"[\d\s]+")
    reject_rows(~is_known, "have no run-length encoded mask and no -1", "Download the table again", path)
    rows = pd.DataFrame({"image": images, "has_mask": ~masks.isin(NO_MASK)})
    is_contradictory = rows.groupby("image")["has_mask"].transform("nunique") > 1
    reject_rows(is_contradictory, "give one image both a mask and -1", "Download the table again", path)
    rows = rows.drop_duplicates("image")
    index = FileIndex(location)
    rows = assign_images(rows.assign(label=rows["has_mask"].map(LABELS)), rows["image"] + ".dcm", index)
    log_unlabelled(DATASET.title, index, TEST_FOLDER)
    log.warning("%s: no patient is published, so images of a patient may be in both train and test", DATASET.title)
    return rows.drop(columns=["image", "has_mask"])


def _detect(path: Path) -> Path | None:
    return find_location(
        path,
        lambda folder: find_table(folder, [TABLE], COLUMNS) is not None,
        tables=(TABLE,),
        inner=(TRAIN_FOLDER, TEST_FOLDER),
    )


DATASET = PublicDataset(
    name="siim",
    title="SIIM-ACR pneumothorax challenge",
    required=f"{TABLE} with the columns {' and '.join(COLUMNS)}",
    detect=_detect,
    read=read_siim_acr,
    labels="Pneumothorax, No Pneumothorax",
    n_images=12_047,
    counts_from=TABLE_COUNTS,
    page="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    access="Kaggle",
    citation="SIIM-ACR Pneumothorax Segmentation challenge, Kaggle, 2019",
    files={TABLE: "one row per mask", f"{TRAIN_FOLDER}/**/*": "labelled images"},
    overlaps={
        "nih": "the images are from NIH ChestX-ray14",
        "rsna": "both are taken from NIH ChestX-ray14",
    },
)
