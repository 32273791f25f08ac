"""Reader of CheXlocalize: the validation and test images of CheXpert with labels of radiologists.

Saporta A, Gui X, Agrawal A, et al. Benchmarking saliency methods for chest X-ray interpretation. Nature Machine
Intelligence 2022. https://doi.org/10.1038/s42256-022-00536-x

Access: form of Stanford AIMI. val_labels.csv has 234 images and test_labels.csv 668. The files gt_*.json with contours
and masks of ten findings are not read.

Known traps: the paths in val_labels.csv contain valid/, but the folder is called val/. test_labels.csv has no sex, age
and view. The validation images are those of CheXpert: they are not an external test set of a model that was selected
with them.
"""

from pathlib import Path

import pandas as pd

from fastcxr.data.readers.chexpert import detect_split_tables, read_split_tables
from fastcxr.data.readers.public import DOCUMENTED_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import find_table

SPLIT_BY_TABLE = {"val_labels.csv": "valid", "test_labels.csv": "test"}


def read_chexlocalize(location: Path, options: ReaderOptions) -> pd.DataFrame:  # noqa: ARG001
    """Return a row per image of val_labels.csv and test_labels.csv; `location`: their folder, or one of them.

    Raises:
        DataError: a finding is not 1, 0, -1 or blank (E012), two files may be an image (E013), or an image is in two
            tables (E009).
        InputMissingError: the folder has no table (E002).
    """
    return read_split_tables(location, SPLIT_BY_TABLE)


def _detect(path: Path) -> Path | None:
    """Return the location unless it is a folder of CheXpert to which the test labels were copied."""
    location = detect_split_tables(path, SPLIT_BY_TABLE)
    is_chexpert = location and location.is_dir() and find_table(location, ("train.csv", "valid.csv"), ("Path",))
    return None if is_chexpert else location


DATASET = PublicDataset(
    name="chexlocalize",
    title="CheXlocalize",
    required="val_labels.csv or test_labels.csv with the columns Path and those of the findings, and the images",
    detect=_detect,
    read=read_chexlocalize,
    labels="13 findings (several per image)",
    n_images=902,  # 234 and 668
    n_patients=700,
    counts_from=DOCUMENTED_COUNTS,
    page="https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c",
    access="form",
    citation="Saporta et al., Benchmarking saliency methods, Nature Machine Intelligence 2022",
    files={
        "val_labels.csv": "labels of the validation images",
        "test_labels.csv": "labels of the test images",
        "**/patient*/study*/*.jpg": "images",
    },
    overlaps={"chexpert": "the validation images are those of CheXpert"},
)
