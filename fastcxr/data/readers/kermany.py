"""Reader of the chest X-rays of Kermany et al.: train, val and test with the folders NORMAL and PNEUMONIA.

Kermany et al., "Identifying medical diagnoses and treatable diseases by image-based deep learning", Cell 2018. It is
obtained from Mendeley Data or Kaggle.

Known traps: the patients are children of 1 to 5 years. The archive of Kaggle holds a second copy of all files in a
folder chest_xray inside chest_xray, and files of macOS. train, val and test have 5,216, 16 and 624 images. The file
name gives the patient (person123_virus_456, IM-0123-0001), which `fastcxr.data.patients` reads.
"""

import logging
from itertools import islice
from pathlib import Path

import pandas as pd

from fastcxr.data.patients import PATIENT_NAME_PATTERNS
from fastcxr.data.readers.copies import find_copies, reject_difference
from fastcxr.data.readers.folders import (
    ClassFolder,
    enter_only_folder,
    find_split_folders,
    list_class_images,
    list_folders,
)
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.data.readers.visible_files import iterate_files
from fastcxr.io.formatting import pluralize

log = logging.getLogger("fastcxr")
LABELS = ("NORMAL", "PNEUMONIA")
FOLDER = "chest_xray"  # name of the folder, and of the copy inside it
MAX_NAMES = 20  # file names in which the detector searches a patient of this dataset


def read_kermany(location: Path, _options: ReaderOptions) -> pd.DataFrame:
    """Return path, label, split and file of each image; the inner copy of the files is left out and counted.

    Raises:
        DataError: The inner folder does not contain the same files (E019).
    """
    splits = find_split_folders(list_folders(str(location)))
    folders = [ClassFolder(f"{name}/{label}", label, split) for name, split in splits.items() for label in LABELS]
    rows = list_class_images(location, folders)
    for copy in _find_copies(location):
        _compare_copy(location, copy, rows)
    return rows.rename_axis(index="row")


def _compare_copy(location: Path, copy: Path, rows: pd.DataFrame) -> None:
    """Log the number of files in a copy; raise DataError if their names or sizes differ from the rows."""
    copied = {Path(file).relative_to(copy).as_posix() for file in iterate_files(copy)}
    if not copied:
        return
    different = copied ^ set(rows["path"])
    different |= {path for path in copied - different if _get_size(copy / path) != _get_size(location / path)}
    reject_difference(location, copy, different)
    name = copy.relative_to(location).as_posix()
    log.info("left out %s of the inner folder %s, a copy of the others", pluralize(len(copied), "file"), name)


def _find_copies(location: Path) -> list[Path]:
    copies = find_copies(location, list_folders(str(location)))
    return list((copies | ({FOLDER: location / FOLDER} if (location / FOLDER).is_dir() else {})).values())


def _get_size(path: Path) -> int:
    return path.stat().st_size


def _detect(path: Path) -> Path | None:
    folder = enter_only_folder(path, FOLDER)
    return folder if folder.is_dir() and _has_layout(folder) else None


def _has_layout(folder: Path) -> bool:
    """Return whether a folder has train and test with exactly both classes, and patients of this dataset."""
    if not all((folder / split).is_dir() for split in ("train", "test")):
        return False
    names = set(list_folders(str(folder))) - {copy.relative_to(folder).parts[0] for copy in _find_copies(folder)}
    if names != set(find_split_folders(names)):
        return False
    if any(set(list_folders(str(folder), name)) != set(LABELS) for name in names):
        return False
    files = islice((folder / "train" / LABELS[1]).iterdir(), MAX_NAMES)
    return any(PATIENT_NAME_PATTERNS["kermany"].match(file.stem) for file in files)


DATASET = PublicDataset(
    name="kermany",
    title="Chest X-rays of Kermany et al.",
    required="the folders train and test, each with NORMAL and PNEUMONIA, and file names such as person1_virus_6.jpeg",
    detect=_detect,
    read=read_kermany,
    labels="2 classes: NORMAL, PNEUMONIA",
    n_images=5856,  # train 5,216, val 16, test 624
    counts_from="https://huggingface.co/datasets/hf-vision/chest-xray-pneumonia, read in November 2026",
    page="https://data.mendeley.com/datasets/rscbjbr9sj",
    citation="Kermany et al., Cell 2018",
    files={f"{split}/{label}/*.jpeg": f"images of {split}" for split in ("train", "test") for label in LABELS},
    overlaps={
        "coronahack": "CoronaHack contains its images",
        "covid_radiography": "the COVID-19 Radiography Database includes some of its images",
    },
)
