"""Reader of the COVID-19 Radiography Database: <class>/images, <class>/masks and a workbook for each class.

Chowdhury et al., "Can AI help in screening viral and COVID-19 pneumonia?", IEEE Access 2020, and Rahman et al.,
"Exploring the effect of image enhancement techniques on COVID-19 detection using chest X-ray images", Computers in
Biology and Medicine 2021. It is obtained from Kaggle.

Known traps: each class has its own sources, so that a model can learn the source. The images are those of other public
datasets under new names, without patients. The lung masks have the file names of the images.
"""

from pathlib import Path

import pandas as pd

from fastcxr.data.readers.copies import find_copies, leave_out_copies
from fastcxr.data.readers.folders import ClassFolder, enter_only_folder, list_class_images, list_folders
from fastcxr.data.readers.public import PublicDataset, ReaderOptions

LABELS = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
FOLDER = "COVID-19_Radiography_Dataset"


def read_covid_radiography(location: Path, _options: ReaderOptions) -> pd.DataFrame:
    """Return path, label, split (missing) and file of each image; masks and a copy inside are left out and counted.

    Raises:
        DataError: a copy of the dataset inside it contains other files (E019).
    """
    leave_out_copies(location, list_folders(str(location)))
    rows = list_class_images(location, [ClassFolder(label, label) for label in LABELS])
    return rows.rename_axis(index="row")


def _detect(path: Path) -> Path | None:
    folder = enter_only_folder(path, FOLDER)
    return folder if folder.is_dir() and _has_layout(folder) else None


def _has_layout(folder: Path) -> bool:
    """Return whether a folder has exactly the four classes, each with a folder of images, besides a copy of them."""
    if not all((folder / label / "images").is_dir() for label in LABELS):
        return False
    names = list_folders(str(folder))
    return set(names) - find_copies(folder, names).keys() == set(LABELS)


DATASET = PublicDataset(
    name="covid_radiography",
    title="COVID-19 Radiography Database",
    required=f"the folders {', '.join(LABELS)}, each with a folder called images",
    detect=_detect,
    read=read_covid_radiography,
    labels=f"4 classes: {', '.join(LABELS)}",
    page="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    citation="Chowdhury et al., IEEE Access 2020; Rahman et al., Computers in Biology and Medicine 2021",
    files={f"{label}/images/*.png": f"images of the class {label}" for label in LABELS},
    overlaps={
        "cohen": "its COVID-19 images include images of Cohen's collection",
        "kermany": "its Normal and Viral Pneumonia images include images of Kermany et al.",
        "rsna": "its Normal and Lung_Opacity images include images of the RSNA challenge, which are those of NIH",
        "nih": "its images of the RSNA challenge are those of NIH ChestX-ray14",
        "covidx": "both contain images of Cohen's collection and of the RSNA challenge",
        "coronahack": "both contain images of Kermany et al. and of Cohen's collection",
    },
)
