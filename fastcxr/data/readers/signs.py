"""Find signs that folders are not classes: parts of a download, kinds of files, patients, images with other labels.

A model trained on such folders predicts the part or the patient. Therefore detection stops and states what it found.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.data.imaging.read import read_with_remarks
from fastcxr.data.imaging.sniff import looks_like_image
from fastcxr.data.patients import match_known_names
from fastcxr.data.readers.folders import (
    SPLIT_ALIASES,
    ClassFolder,
    find_split_folders,
    list_folders,
)
from fastcxr.data.readers.label_tables import N_PARENTS, describe_other_label, find_tables, has_labels
from fastcxr.data.readers.masks import is_mask_folder
from fastcxr.data.readers.name_signs import are_visits, differ_in_number, find_name_sign, has_label_word, quote_names
from fastcxr.data.readers.registry import PUBLIC_DATASETS, describe_missing_file, detect_public_datasets
from fastcxr.data.readers.visible_files import MAX_FIRST, enter_only_folders, iterate_files, iterate_first_files
from fastcxr.errors import DataError, ImageError
from fastcxr.io.tables import format_names

TABLE_FIX = "Pass a CSV with the columns path and label"
MAX_FILES, MAX_IMAGES = 1000, 20  # of a class
MAX_FOLDERS = 10  # of a class, that are searched for masks
MAX_DATASETS = 20  # more folders are not searched for a public dataset
MIN_PATIENTS, MAX_PATIENT_IMAGES = 5, 10  # folders, and images of each, that may be those of patients
MASK_TOLERANCE, MIN_MASK_FRACTION = 8, 0.99  # gray levels, fraction of pixels: JPEG blurs the edges of a mask


def reject_doubtful_classes(root: Path, folders: Sequence[ClassFolder], layout: str) -> None:
    """Raise DataError (E041) if something suggests that the folders are not classes.

    The names are judged first, then up to 1,000 file names and three decoded images of each class.

    Args:
        root: folder to which the paths of `folders` are relative.
        folders: class folders, several for a label if there are splits.
        layout: the data format with which the user confirms that the folders are classes.
    """
    groups = _group_by_label(root, folders)
    sign = find_name_sign(groups) or _find_folder_sign(root, folders) or _find_content_sign(root, groups)
    if sign is None:
        return
    files = chain.from_iterable(iterate_files(root / folder.path) for folder in folders)
    tables = find_tables(root, list(islice(filter(looks_like_image, files), MAX_IMAGES)))
    problem = f"the folders may not be classes: {sign}{describe_tables(tables)}"
    fix = f"{make_table_fix(root, tables)}, or `data_format={layout!r}` if the folders are the classes"
    raise DataError(problem, fix, path=root, code="E041")


def make_table_fix(root: Path, tables: Sequence[Path], default: str = TABLE_FIX) -> str:
    """Return which public dataset or table to pass as data, which file of a dataset is missing, or the default."""
    for folder in dict.fromkeys(table.parent for table in tables):
        if found := detect_public_datasets(folder):
            return f"Pass `data={str(folder)!r}`, which is {PUBLIC_DATASETS[next(iter(found))].title}"
    for folder in (root, *root.absolute().parents[:N_PARENTS]):
        if missing := describe_missing_file(folder):
            return f"Add {missing}"
    return f"Pass `data={str(tables[0])!r}`" if tables and has_labels(tables[0]) else default


def describe_tables(tables: Sequence[Path]) -> str:
    """Return `; the table x.csv names these images`, or an empty text without tables."""
    if not tables:
        return ""
    names = format_names((table.name for table in tables), 3)
    return f"; the table {names} names these images" if len(tables) == 1 else f"; the tables {names} name these images"


def _find_folder_sign(root: Path, folders: Sequence[ClassFolder]) -> str | None:
    inner = [enter_only_folders(root / folder.path) for folder in folders]
    subfolders = [[name for name in list_folders(str(path)) if not is_mask_folder(name)] for path in inner]
    for folder, names in zip(folders, subfolders, strict=True):
        if len(set(find_split_folders(names).values())) > 1:
            return f"{folder.path!r} contains the splits {quote_names(sorted(find_split_folders(names)))}"
    common = set.intersection(*({name.casefold() for name in names} for names in subfolders))
    if len(folders) > 1 and len(common) > 1 and not differ_in_number(common):  # numbered patients of each class
        return f"every folder has the subfolders {quote_names(sorted(set(subfolders[0])))}"
    return _find_dataset_sign(root, folders, subfolders) or _find_split_sign(folders)


def _find_dataset_sign(root: Path, folders: Sequence[ClassFolder], subfolders: Sequence[list[str]]) -> str | None:
    """Return that the folders contain datasets, class folders, or the dates and studies of patients, or None."""
    for folder, names in zip(folders, subfolders, strict=True):
        if names and len(folders) <= MAX_DATASETS and (found := detect_public_datasets(root / folder.path)):
            return f"{folder.path!r} contains {PUBLIC_DATASETS[next(iter(found))].title}"
    if not all(subfolders) or any(has_label_word(folder.label) for folder in folders):
        return None
    if all(has_label_word(name) for names in subfolders for name in names):
        return f"the folders contain class folders: {quote_names(sorted({n for names in subfolders for n in names}))}"
    if len(folders) > 1 and all(map(are_visits, subfolders)):
        return f"the folders contain those of dates or studies, such as {subfolders[0][0]!r}"
    return None


def _find_split_sign(folders: Sequence[ClassFolder]) -> str | None:
    classes: dict[str, set[str]] = {}
    for folder in folders:
        parent, _, label = folder.path.rpartition("/")
        if parent and parent.casefold() not in SPLIT_ALIASES:  # train_images
            classes.setdefault(parent, set()).add(label)
    if any(labels != next(iter(classes.values())) for labels in classes.values()):
        return f"the folders below {quote_names(classes)} differ"
    return None


def _find_content_sign(root: Path, folders_by_label: Mapping[str, Sequence[Path]]) -> str | None:
    images: dict[str, list[str]] = {}
    for label, folders in folders_by_label.items():
        files = list(islice(chain.from_iterable(map(iterate_files, folders)), MAX_FILES))
        images[label] = list(islice(filter(looks_like_image, files), MAX_IMAGES))
        if files and not images[label]:
            return f"{label!r} contains no image, but e.g. {Path(files[0]).name!r}"
    if len(images) > 2 and all(len(found) == 1 for found in images.values()):
        return "every folder contains one image"
    if _are_patients(images):
        return "every folder contains the images of one patient"
    if other_label := describe_other_label(root, images):
        return other_label
    masks = (name for path in chain.from_iterable(folders_by_label.values()) if (name := _find_masks(root, path)))
    if name := next(masks, None):
        return f"the images of {name!r} have two gray levels, as masks have"
    n_images = max(map(len, images.values()), default=0)
    if len(images) >= MIN_PATIENTS and n_images <= MAX_PATIENT_IMAGES and not any(map(has_label_word, images)):
        return f"none of the {len(images)} folders has more than {n_images} images, as folders of patients"
    return None


def _find_masks(root: Path, class_folder: Path) -> str | None:
    """Return the first folder of a class whose images are masks, relative to the root; folders of a name once."""
    folders: dict[str, list[str]] = {}
    for file in islice(iterate_first_files(class_folder), MAX_FOLDERS * MAX_FIRST):
        folders.setdefault(os.path.dirname(file), []).append(file)
    masks = (Path(folder) for folder, files in folders.items() if _are_masks(files))
    return next((path.relative_to(root).as_posix() for path in masks), None)


def _are_patients(images: Mapping[str, list[str]]) -> bool:
    """Return whether the file names of each class name one patient, and those of several classes several."""
    patients = [set(match_known_names(pd.Series(found, dtype="object"))) for found in images.values() if found]
    known = {patient for found in patients for patient in found if isinstance(patient, str)}
    return len(known) == len(patients) > 1 and all(len(found) == 1 for found in patients)


def _are_masks(files: Sequence[str]) -> bool:
    """Return whether all images that can be read, at least one, have two gray levels."""
    n_masks = 0
    for file in files:
        try:
            image, _ = read_with_remarks(file)
        except ImageError:  # reported when the dataset is read; some masks are blank
            continue
        if not _has_two_levels(image):
            return False
        n_masks += 1
    return n_masks > 0


def _has_two_levels(image: np.ndarray) -> bool:
    distance = np.minimum(image - image.min(), image.max() - image)
    return float(np.mean(distance <= MASK_TOLERANCE)) >= MIN_MASK_FRACTION


def _group_by_label(root: Path, folders: Iterable[ClassFolder]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(folder.label, []).append(root / folder.path)
    return groups
