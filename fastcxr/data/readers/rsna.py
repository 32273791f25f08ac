"""Reader of the RSNA Pneumonia Detection Challenge of 2018: DICOM images, boxes and three classes.

Shih G, Wu CC, Halabi SS, et al. Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert
Annotations of Possible Pneumonia. Radiology: Artificial Intelligence, 2019.

Access: Kaggle, https://www.kaggle.com/c/rsna-pneumonia-detection-challenge

Traps:
- A row is a box, so an image with two boxes has two rows in both tables.
- `patientId` names one image. The patient, who may have several images, is published in NIH ChestX-ray14 only, so the
  reader gives no patient.
- Every image is one of NIH ChestX-ray14.
- "No Lung Opacity / Not Normal" is a separate class: `Target` 0 is not "Normal".
- The labels of stage_2_test_images are not published.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import DOCUMENTED_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import assign_images, find_location, find_table, log_unlabelled
from fastcxr.errors import InputMissingError
from fastcxr.io.tables import is_blank, read_table

log = logging.getLogger("fastcxr")
BOX_TABLE, CLASS_TABLE = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
TRAIN_FOLDER, TEST_FOLDER = "stage_2_train_images", "stage_2_test_images"
BOX_COLUMNS = ["x", "y", "width", "height"]
OPACITY = "Lung Opacity"  # the class of the images with boxes
LABEL_BY_TARGET = {"0": "No Pneumonia", "1": "Pneumonia"}
LABEL_VARIANTS = {
    "classes": f"Normal, No Lung Opacity / Not Normal, and Lung Opacity, of {CLASS_TABLE}",
    "boxes": f"Pneumonia and No Pneumonia, of the column Target of {BOX_TABLE}",
}


def read_rsna(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return one row per labelled image; see PublicDataset."""
    variant = DATASET.find_variant(options)
    path = _find_box_table(location) or location / BOX_TABLE
    targets = _read_labels(path, "Target")
    is_wrong = ~targets["label"].isin(list(LABEL_BY_TARGET))
    reject_rows(is_wrong, "have another Target than 0 or 1", "Download the table again", path, targets["label"])
    targets = targets.assign(label=targets["label"].map(LABEL_BY_TARGET))
    class_path = find_table(location, [CLASS_TABLE], ["patientId", "class"])
    if variant == "classes" and class_path is None:
        fix = f"Add {CLASS_TABLE} of the challenge, or choose two classes with `label_variant='boxes'`"
        raise InputMissingError("no such file, which gives the classes", fix, path=location / CLASS_TABLE, code="E001")
    classes = None if class_path is None else _read_labels(class_path, "class")
    if class_path is not None and classes is not None:
        _reject_contradictions(classes, targets, class_path)
    rows = targets if variant == "boxes" or classes is None else classes
    index = FileIndex(location)
    rows = assign_images(rows, rows["image"] + ".dcm", index)
    log_unlabelled(DATASET.title, index, TEST_FOLDER)
    text = "%s: patientId names one image, so images of a patient may be in both train and test. The patients are in %s"
    log.warning(text, DATASET.title, "NIH ChestX-ray14 only")
    return rows.drop(columns="image")


def read_rsna_boxes(location: Path) -> pd.DataFrame:
    """Return path, finding, x, y, width and height [pixels of the 1024 x 1024 DICOM image] of each box."""
    table = read_table(_find_box_table(location) or location / BOX_TABLE)
    boxes = table[~is_blank(table["x"])]
    rows = assign_images(boxes, boxes["patientId"].str.strip() + ".dcm", FileIndex(location))
    rows = rows.assign(finding=OPACITY, **{name: pd.to_numeric(rows[name]) for name in BOX_COLUMNS})
    return rows[["path", "finding", *BOX_COLUMNS]].reset_index(drop=True)


def _read_labels(path: Path, column: str) -> pd.DataFrame:
    """Return image and label, one row per image, from a table with one row per box."""
    table = read_table(path)
    rows = pd.DataFrame({"image": table["patientId"].str.strip(), "label": table[column].str.strip()})
    n_labels = rows.groupby("image")["label"].transform("nunique")
    reject_rows(n_labels > 1, f"give one image several values of {column}", "Download the table again", path)
    return rows.drop_duplicates("image")


def _reject_contradictions(classes: pd.DataFrame, targets: pd.DataFrame, path: Path) -> None:
    """Raise DataError if only one of the tables states that an image shows a lung opacity."""
    labels = classes["image"].map(targets.set_index("image")["label"])
    differs = labels.notna() & ((labels == LABEL_BY_TARGET["1"]) != (classes["label"] == OPACITY))
    reject_rows(differs, f"contradict Target of {BOX_TABLE}", "Download both tables again", path, classes["image"])


def _find_box_table(folder: Path) -> Path | None:
    return find_table(folder, [BOX_TABLE], ["patientId", *BOX_COLUMNS, "Target"])


def _is_rsna(folder: Path) -> bool:
    return _find_box_table(folder) is not None


def _detect(path: Path) -> Path | None:
    return find_location(path, _is_rsna, tables=(BOX_TABLE, CLASS_TABLE), inner=(TRAIN_FOLDER, TEST_FOLDER))


DATASET = PublicDataset(
    name="rsna",
    title="RSNA pneumonia challenge",
    required=f"{BOX_TABLE} with one row per box",
    detect=_detect,
    read=read_rsna,
    labels="3 classes, or 2 from the boxes",
    n_images=26_684,
    counts_from=DOCUMENTED_COUNTS,
    page="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
    access="Kaggle",
    citation="Shih et al., Radiology: Artificial Intelligence, 2019",
    files={
        BOX_TABLE: "one row per box",
        CLASS_TABLE: "class of each image, one row per box",
        f"{TRAIN_FOLDER}/*": "labelled images",
    },
    label_variants=LABEL_VARIANTS,
    overlaps={
        "nih": "every image is one of NIH ChestX-ray14",
        "siim": "both are taken from NIH ChestX-ray14",
        "covidx": "COVIDx contains images of the challenge",
        "covid_radiography": "the COVID-19 Radiography Database contains images of the challenge",
    },
    read_boxes=read_rsna_boxes,
)
