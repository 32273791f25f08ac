"""Images with their patients come in; each picture once, and the patients that copies prove to be one, go out.

A copy is a file with the same bytes. Files of one name in two sources with other bytes stay both, and count as one
patient, so that they share a split, if the name is unique in each source and both show the same image. Collections
crop and convert the images that they borrow, and keep the names: under a name that is no mere counter a crop counts as
the same image.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fastcxr.data.imaging.read import read_with_remarks
from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, may_be_dicom, open_file
from fastcxr.data.readers.folders import reject_image_pairs
from fastcxr.data.readers.hdf5 import parse_reference, read_packed_checksum
from fastcxr.data.same_image import is_same_image
from fastcxr.errors import DataError, ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import compute_sha256
from fastcxr.io.tables import TEXT_DTYPE, format_names, to_text

log = logging.getLogger("fastcxr")

END = 4096  # bytes at each end of a file that are compared first
SAMPLED = 20  # names of which the files are compared
SPLIT_PRIORITY = {
    "test": 0,
    "valid": 1,
    "train": 2,
}  # of copies in several splits the one in test stays: tests stay comparable


def drop_exact_duplicates(rows: pd.DataFrame, inputs: pd.Series) -> pd.DataFrame:
    """Each picture once: the copy in test, else in valid, else the first; its patient is that of all its copies.

    `homes` says which of the sources given each row is from. Raises DataError (E008) for copies under two labels.
    """
    groups = group_exact_duplicates(rows["file"])
    _reject_label_conflicts(rows, inputs, groups)
    rows = union_patients(rows, groups)
    priority = rows["split"].map(SPLIT_PRIORITY).fillna(len(SPLIT_PRIORITY))
    kept = [min(group, key=lambda i: (priority[i], i)) for group in groups]
    dropped = [i for group, first in zip(groups, kept, strict=True) for i in group if i != first]
    _log_dropped_duplicates(inputs, groups, kept)
    rows = rows.drop(index=dropped)
    is_single = (rows["patient_origin"] == "copy") & ~rows["patient"].duplicated(keep=False)
    return rows.assign(patient_origin=rows["patient_origin"].mask(is_single, "image"))


def union_exact_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with one patient for all patients whose images are exact copies, so that no split separates copies."""
    return union_patients(rows, group_exact_duplicates(rows["file"])) if "file" in rows else rows


def group_exact_duplicates(files: pd.Series) -> list[list[int]]:
    """The rows of each set of images with the same bytes; a row without a copy is in none.

    What is no image (an empty file, an error page that was saved in its place) is no copy of an image.
    """
    content = hash_files(files)
    copied = content.duplicated(keep=False) & content.notna()
    groups = files.index[copied].groupby(content[copied]).values()
    return [list(group) for group in groups if _is_image(files[group[0]])]


def _is_image(file: str) -> bool:
    if parse_reference(file):
        return True
    try:
        with open_file(file) as content:
            head = content.read(HEAD_BYTES)
    except (ImageError, OSError):  # the check of all images reports it
        return False
    return detect_format(head) is not None or may_be_dicom(file, head)


def link_same_filenames(rows: pd.DataFrame, inputs: pd.Series) -> pd.DataFrame:
    """The rows with one patient for files of one name in several sources that show the same image.

    A name that repeats within a source (`img1.png` in a folder for each patient) identifies no image there.
    """
    stems = rows["path"].map(lambda path: PurePosixPath(path).stem.casefold())
    groups, repeated = _group_names(stems, inputs)
    groups += _group_names(rows["label"][repeated] + "/" + stems[repeated], inputs[repeated])[0]
    with ThreadPoolExecutor(count_cpus()) as pool:
        same = pool.map(
            lambda group: _group_same_images(rows["file"][group], is_distinctive_name(stems[group[0]])), groups
        )
        same_image_pairs = [group for found in same for group in found]
    if same_image_pairs:
        counts = Counter(f"{inputs[i]} and {inputs[first]}" for first, *others in same_image_pairs for i in others)
        summary = format_names(f"{pair} ({n:,})" for pair, n in counts.items())
        text = ("the same file name and image, cropped, resized or saved anew, in %s: both stay, and count as one "
                "patient (such as %s)")  # fmt: skip
        log.warning(text, summary, rows["path"][same_image_pairs[0][1]])
    _warn_label_conflicts(rows, same_image_pairs)
    return union_patients(rows, same_image_pairs)


def _group_names(names: pd.Series, homes: pd.Series) -> tuple[list[list[int]], pd.Index]:
    """The rows that share a name that each source has once, a list for each name; and all rows of the other names."""
    twice = pd.DataFrame({"name": names, "home": homes}).duplicated(keep=False)
    repeated = names.isin(set(names[twice]))
    single = names[~repeated]
    groups = single.index.groupby(single).values()
    return [list(group) for group in groups if len(group) > 1], names.index[repeated]


def _group_same_images(files: pd.Series, cropped: bool) -> list[list[int]]:
    """The rows of one name in groups that show the same image; those of no group are left out."""
    groups: list[tuple[np.ndarray, list[int]]] = []
    for row, file in files.items():
        try:
            image = read_with_remarks(file)[0]  # warnings come when the image is read for good
        except ImageError:  # the check of all images reports it
            continue
        group = next((rows for other, rows in groups if is_same_image(other, image, cropped=cropped)), None)
        if group is None:
            groups.append((image, [row]))
        else:
            group.append(row)
    return [rows for _, rows in groups if len(rows) > 1]


def are_counters(rows: pd.DataFrame, homes: pd.Series) -> bool:
    """Whether file names that several sources share are mere counters: most of the files of one name differ."""
    stems = rows["path"].map(lambda path: PurePosixPath(path).stem.casefold())
    single = stems[~pd.DataFrame({"stem": stems, "home": homes}).duplicated()]
    groups = [list(group)[:2] for group in single.index.groupby(single).values() if len(group) > 1]
    chosen = groups[:: 1 + len(groups) // SAMPLED]
    same = sum(bool(_group_same_images(rows["file"][group], cropped=True)) for group in chosen)
    return 2 * same < len(chosen)


def is_distinctive_name(stem: str) -> bool:
    """Whether a name is more than a word with numbers: nejmc2001573_f1a is, COVID-19 (12) and image_0001 are not."""
    parts = re.findall(r"[^\W_]+", stem)
    non_numeric = [part for part in parts if not part.isdigit()]
    return len(non_numeric) > 1 or any(len(part) > 6 if part.isdigit() else not part.isalpha() for part in parts)


def union_patients(rows: pd.DataFrame, groups: Iterable[Iterable[int]]) -> pd.DataFrame:
    """The rows with one patient for all the patients that each group of rows names."""
    parent_of: dict[str, str] = {}
    rows = rows if "patient_origin" in rows else rows.assign(patient_origin="column")  # a table of a person's own

    def find(patient: str) -> str:
        while (parent := parent_of.get(patient, patient)) != patient:
            patient = parent
        return patient

    # names that somebody gave go before those of images without a patient
    is_named = dict(zip(rows["patient"], rows["patient_origin"] != "image", strict=True))
    for group in groups:
        first, *others = sorted({find(rows["patient"][i]) for i in group}, key=lambda name: (not is_named[name], name))
        parent_of |= dict.fromkeys(others, first)
    if not parent_of:
        return rows
    patient = rows["patient"].map(find)
    origins = dict(zip(rows["patient"], rows["patient_origin"], strict=True))
    is_linked = patient.isin([find(name) for name in parent_of])
    origin = rows["patient_origin"].mask(is_linked, patient.map(origins).replace("image", "copy"))
    return rows.assign(patient=to_text(patient), patient_origin=to_text(origin))


def hash_files(files: pd.Series) -> pd.Series:
    """The sha256 of every file that another could equal; missing where size or ends alone say that none does."""
    is_packed = files.map(lambda file: parse_reference(file) is not None).astype(bool)
    sizes = files.map(lambda file: Path(file).stat().st_size if Path(file).is_file() else -1)
    # the checksum of a packed image is that of its file, whose size nobody wrote down
    candidates = files[is_packed | (sizes.duplicated(keep=False) | is_packed.any()) & (sizes >= 0)]
    with ThreadPoolExecutor(count_cpus()) as pool:
        if not is_packed.any():  # uncompressed images all have one size: their ends are read before every byte is
            ends = pd.Series(list(pool.map(_read_ends, candidates)), index=candidates.index, dtype="object")
            candidates = candidates[ends.duplicated(keep=False)]
        checksums = list(pool.map(compute_file_checksum, candidates))
    return pd.Series(checksums, index=candidates.index, dtype="object").reindex(files.index).astype(TEXT_DTYPE)


def _read_ends(file: str) -> tuple[int, bytes, bytes]:
    """The size of a file, and its first and last bytes; nothing of a file that cannot be read."""
    try:
        with Path(file).open("rb") as content:
            first = content.read(END)
            size = content.seek(0, os.SEEK_END)
            content.seek(max(0, size - END))
            return size, first, content.read()
    except OSError:
        return -1, b"", b""


def compute_file_checksum(file: str) -> str | None:
    """The sha256 of a file, or of the one that a packed image was; None for a file that cannot be read."""
    try:
        return read_packed_checksum(file) if parse_reference(file) else compute_sha256(file)
    except (OSError, ImageError):  # whoever reads the image says what is wrong with it
        return None


def _reject_label_conflicts(rows: pd.DataFrame, inputs: pd.Series, groups: list[list[int]]) -> None:
    names = inputs + "/" + rows["path"] + " " + rows["label"].map(repr)
    conflicting = [group for group in groups if rows["label"][group].nunique() > 1]
    pairs = [
        (names[group[0]], names[i])
        for group in conflicting
        for i in group
        if rows["label"][i] != rows["label"][group[0]]
    ]
    if pairs:
        other = next(i for i in conflicting[0] if rows["label"][i] != rows["label"][conflicting[0][0]])
        hint = f"{rows['label'][other]}={rows['label'][conflicting[0][0]]}"
        try:
            reject_image_pairs("", pairs, "E008")
        except DataError as error:
            fix = f"Keep one of each pair, or if the two labels mean the same, say --relabel '{hint}'"
            raise DataError(error.problem, fix, code="E008") from None


def _log_dropped_duplicates(inputs: pd.Series, groups: list[list[int]], kept: list[int]) -> None:
    counts = Counter()
    for group, first in zip(groups, kept, strict=True):
        for i in group:
            if i != first:
                description = (
                    f"within {inputs[i]}"
                    if inputs[i] == inputs[first]
                    else f"of {inputs[i]} that stand in {inputs[first]}"
                )
                counts[description] += 1
    if counts:
        summary = format_names(f"{n:,} {place}" for place, n in counts.items())
        log.info("left out %s exact copies: %s", f"{counts.total():,}", summary)


def _warn_label_conflicts(rows: pd.DataFrame, groups: list[list[int]]) -> None:
    pairs = [(first, i) for first, *others in groups for i in others]
    conflicting = [(a, b) for a, b in pairs if rows["label"][a] != rows["label"][b]]
    if conflicting:
        examples = format_names(
            (f"{rows['path'][a]} {rows['label'][a]} and {rows['label'][b]}" for a, b in conflicting), 5
        )
        log.warning("%s of these have two labels: %s", f"{len(conflicting):,}", examples)
