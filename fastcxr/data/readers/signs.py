"""Find signs that folders are not classes: parts of a download, kinds of files, patients, images with other labels.

A model trained on such folders predicts the part or the patient. Therefore detection stops and states what it found.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    is_hidden,
    is_mask_folder,
    list_folders,
)
from fastcxr.data.readers.label_tables import describe_other_label, find_tables
from fastcxr.errors import DataError, ImageError
from fastcxr.io.tables import format_names

# words of folder names in the singular
KIND_WORDS = {
    *SPLIT_ALIASES, "annotation", "archive", "bbox", "bmp", "box", "boxes", "code", "csv", "cxr", "data", "dataset",
    "dcm", "dicom", "doc", "document", "file", "image", "img", "jpeg", "jpg", "json", "label", "mask", "metadata",
    "original", "pdf", "photo", "png", "raw", "ray", "report", "script", "seg", "segmentation", "text", "thumbnail",
    "tif", "tiff", "txt", "xlsx", "xml", "xray", "zip",
}  # fmt: skip
PART_WORDS = {  # followed by a number
    "batch", "case", "cd", "chunk", "disk", "exam", "fold", "folder", "id", "p", "part", "pat", "patient", "person",
    "pid", "pt", "s", "series", "session", "set", "shard", "study", "sub", "subj", "subject", "visit", "volume",
}  # fmt: skip
FILLER_WORDS = {"chest", "stage", "x"}  # words without a meaning for the content of a folder: stage_2_train_images
CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # between two words: JPEGImages
IDENTIFIER = re.compile(r"(?=.*\d)[0-9a-f.-]{12,}", re.IGNORECASE)  # UUID, UID or hash
MAX_CLASSES = 200  # PadChest, the dataset with the most findings, has 174
MAX_FILES, MAX_IMAGES, MAX_DECODED = 1000, 20, 3  # of a class
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
    fix = f"{make_table_fix(tables)}, or `data_format={layout!r}` if the folders are the classes"
    raise DataError(problem, fix, path=root, code="E041")


def make_table_fix(tables: Sequence[Path]) -> str:
    """Return which table to pass as data."""
    return f"Pass `data={str(tables[0])!r}`" if tables else "Pass a CSV with the columns path and label"


def describe_tables(tables: Sequence[Path]) -> str:
    """Return `; the table x.csv names these images`, or an empty text without tables."""
    if not tables:
        return ""
    names = format_names((table.name for table in tables), 3)
    return f"; the table {names} names these images" if len(tables) == 1 else f"; the tables {names} name these images"


def find_name_sign(labels: Iterable[str]) -> str | None:
    """Return why names are not those of classes, or None."""
    labels = sorted(labels)
    if len(labels) > 1 and _differ_in_number(labels):
        return f"{_quote(labels)} differ only in a number"
    if kinds := [label for label in labels if _is_kind(label)]:
        return f"{_quote(kinds)} {'are names' if len(kinds) > 1 else 'is a name'} of files, parts or patients"
    if labels and all(map(IDENTIFIER.fullmatch, labels)):
        return f"{_quote(labels)} are identifiers"
    return f"there are {len(labels):,} folders" if len(labels) > MAX_CLASSES else None


def _differ_in_number(names: Iterable[str]) -> bool:
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1


def _is_kind(label: str) -> bool:
    """Return whether a name consists of words for kinds of files, or with a number of those for parts and patients."""
    words = set(re.findall(r"[^\W\d_]+", CAMEL_CASE.sub(" ", label).casefold())) - FILLER_WORDS
    known = KIND_WORDS | PART_WORDS if re.search(r"\d", label) else KIND_WORDS
    return bool(words) and all(word in known or word.removesuffix("s") in known for word in words)


def _find_folder_sign(root: Path, folders: Sequence[ClassFolder]) -> str | None:
    subfolders = [
        {name for name in list_folders(str(root), folder.path) if not is_mask_folder(name)} for folder in folders
    ]
    for folder, names in zip(folders, subfolders, strict=True):
        if len(set(find_split_folders(names).values())) > 1:
            return f"{folder.path!r} contains the splits {_quote(sorted(find_split_folders(names)))}"
    common = set.intersection(*subfolders) if len(folders) > 1 else set()
    if len(common) > 1 and not _differ_in_number(common):  # patients may be numbered in each class
        return f"every folder has the subfolders {_quote(sorted(common))}"
    classes: dict[str, set[str]] = {}
    for folder in folders:
        parent, _, label = folder.path.rpartition("/")
        if parent and parent.casefold() not in SPLIT_ALIASES:  # train_images
            classes.setdefault(parent, set()).add(label)
    if any(labels != next(iter(classes.values())) for labels in classes.values()):
        return f"the folders below {_quote(classes)} differ"
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
    masks = (label for label, found in images.items() if _are_masks(found[:MAX_DECODED]))
    if label := next(masks, None):
        return f"the images of {label!r} have two gray levels, as masks have"
    return None


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


def iterate_files(folder: Path) -> Iterator[str]:
    """Yield the paths of the visible files below a folder in a fixed order, without those of mask folders."""
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not is_hidden(name) and not is_mask_folder(name))
        yield from (f"{parent}/{name}" for name in sorted(files) if not is_hidden(name))


def _quote(names: Iterable[str]) -> str:
    return format_names(map(repr, names), 5)
