"""Find duplicate images: drop exact duplicates, and link the patients of images that occur under several names.

An exact duplicate is a file with the same bytes. Files with one name and different bytes in two sources are both kept,
but count as one patient (and so share a split) if the name is unique in each source and both show the same image.
Public collections crop and convert the images that they take from others, but keep the file names. Therefore a crop
counts as the same image if the name is more than a counter.
"""

import hashlib
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import numpy as np
import pandas as pd

from fastcxr.data.findings import have_contrary_findings, is_multi_label, join_findings
from fastcxr.data.imaging.read import read_with_remarks
from fastcxr.data.imaging.sniff import HEAD_BYTES, detect_format, may_be_dicom, open_file
from fastcxr.data.readers.folders import reject_image_pairs
from fastcxr.data.readers.hdf5 import parse_reference, read_packed_checksum
from fastcxr.data.same_image import is_same_image
from fastcxr.errors import DataError, ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import compute_sha256
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, to_text

log = logging.getLogger("fastcxr")

Result = TypeVar("Result")
END_BYTES = 4096  # compared at both ends of a file before the whole file is read
FILES_PER_TASK = 64  # a task for one small file takes longer than reading it
MAX_SAMPLED_NAMES = 20  # compared to decide whether file names are counters
SPLIT_PRIORITY = ("test", "valid", "train")  # of duplicates, that in test is kept: test sets stay comparable


def drop_exact_duplicates(rows: pd.DataFrame, inputs: pd.Series) -> pd.DataFrame:
    """Return the rows with one of each set of exact duplicates: that in test, else valid, else train, else the first.

    The patients of duplicates become one. `inputs`: the dataset of each row, for messages. Raises DataError (E008) for
    duplicates with different labels.
    """
    groups = group_exact_duplicates(rows["file"])
    _reject_label_conflicts(rows, inputs, groups)
    rows = union_patients(join_findings(rows, groups), groups)
    priority = rows["split"].map({split: i for i, split in enumerate(SPLIT_PRIORITY)}).fillna(len(SPLIT_PRIORITY))
    dropped = {}  # the kept row of each dropped one
    for group in groups:
        kept = min(group, key=lambda i: (priority[i], i))
        dropped |= {i: kept for i in group if i != kept}
    _log_dropped_duplicates(inputs, dropped)
    rows = rows.drop(index=list(dropped))
    is_single = (rows["patient_origin"] == "copy") & ~rows["patient"].duplicated(keep=False)
    return rows.assign(patient_origin=rows["patient_origin"].mask(is_single, "image"))


def union_exact_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with one patient for all patients of exact duplicates, because these must share a split."""
    return union_patients(rows, find_exact_duplicates(rows))


def find_exact_duplicates(rows: pd.DataFrame) -> list[list[int]]:
    """Return the rows of each set of images with the same bytes; none for a table without files."""
    return group_exact_duplicates(rows["file"]) if "file" in rows else []


def group_exact_duplicates(files: pd.Series) -> list[list[int]]:
    """Return the rows of each set of images with the same bytes; files that are not images are ignored."""
    return [group for group in _group_equal(hash_files(files)) if _is_image(files[group[0]])]


def _group_equal(values: pd.Series) -> list[list[int]]:
    """Return the rows of each value that several rows share."""
    repeated = values[values.notna() & values.duplicated(keep=False)]  # a group for each value is slow
    return [list(rows) for rows in repeated.groupby(repeated).groups.values()]


def _is_image(file: str) -> bool:
    if parse_reference(file):
        return True
    try:
        with open_file(file) as content:
            head = content.read(HEAD_BYTES)
    except (ImageError, OSError):  # reported when all images are checked
        return False
    return detect_format(head) is not None or may_be_dicom(file, head)


def link_same_filenames(rows: pd.DataFrame, inputs: pd.Series) -> pd.DataFrame:
    """Return the rows with one patient for files with one name in several sources that show the same image.

    A name that occurs twice in a source (`img1.png` in a folder for each patient) does not identify an image there.
    """
    stems = rows["path"].map(get_stem)
    groups, repeated = _group_names(stems, inputs)
    groups += _group_names(rows["label"][repeated] + "/" + stems[repeated], inputs[repeated])[0]

    def group_same_images(group: list[int]) -> list[list[int]]:
        return _group_same_images(rows["file"][group], is_distinctive_name(stems[group[0]]))

    with ThreadPoolExecutor(count_cpus()) as pool:
        linked = [same for found in pool.map(group_same_images, groups) for same in found]
    pairs = [(first, i) for first, *others in linked for i in others]
    if pairs:
        counts = Counter(f"{inputs[i]} and {inputs[first]}" for first, i in pairs)
        text = ("the same file name and image (cropped, resized or re-encoded) in %s: both images are kept, and are "
                "treated as images of one patient (such as %s)")  # fmt: skip
        log.warning(text, format_names(f"{names} ({n:,})" for names, n in counts.items()), rows["path"][pairs[0][1]])
    label, path = rows["label"], rows["path"]
    conflicts = [f"{path[a]} {label[a]} and {label[b]}" for a, b in pairs if label[a] != label[b]]
    if conflicts:
        log.warning("%s of these images have two labels: %s", f"{len(conflicts):,}", format_names(conflicts, 5))
    return union_patients(rows, linked)


def get_stem(path: str) -> str:
    """Return the file name without suffix, in lower case."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return (name[:dot] if 0 < dot < len(name) - 1 else name).casefold()  # pathlib takes 10 times as long


def _group_names(names: pd.Series, inputs: pd.Series) -> tuple[list[list[int]], pd.Index]:
    """Return the rows of each name that several datasets contain exactly once, and all rows of repeated names."""
    is_repeated = names.isin(set(names[pd.DataFrame({"name": names, "input": inputs}).duplicated(keep=False)]))
    return _group_equal(names[~is_repeated]), names.index[is_repeated]


def _group_same_images(files: pd.Series, cropped: bool) -> list[list[int]]:
    """Return the groups of at least two of these rows that show the same image."""
    groups: list[tuple[np.ndarray, list[int]]] = []
    for row, file in zip(files.index.tolist(), files, strict=True):
        try:
            image = read_with_remarks(file)[0]  # remarks are logged when the dataset is read
        except ImageError:  # reported when all images are checked
            continue
        group = next((rows for other, rows in groups if is_same_image(other, image, cropped=cropped)), None)
        if group is None:
            groups.append((image, [row]))
        else:
            group.append(row)
    return [rows for _, rows in groups if len(rows) > 1]


def are_counters(rows: pd.DataFrame, inputs: pd.Series) -> bool:
    """Return whether file names shared by datasets are counters: most files with one name show different images."""
    stems = rows["path"].map(get_stem)
    groups = _group_equal(stems[~pd.DataFrame({"stem": stems, "input": inputs}).duplicated()])
    sample = groups[:: 1 + len(groups) // MAX_SAMPLED_NAMES]
    n_same = sum(bool(_group_same_images(rows["file"][group[:2]], cropped=True)) for group in sample)
    return 2 * n_same < len(sample)


def is_distinctive_name(stem: str) -> bool:
    """Return whether a name is more than a word with numbers: nejmc2001573_f1a is, COVID-19 (12) is not."""
    parts = re.findall(r"[^\W_]+", stem)
    non_numeric = [part for part in parts if not part.isdigit()]
    return len(non_numeric) > 1 or any(len(part) > 6 if part.isdigit() else not part.isalpha() for part in parts)


def union_patients(rows: pd.DataFrame, groups: Iterable[Iterable[int]]) -> pd.DataFrame:
    """Return the rows with one patient for all patients of each group of rows."""
    parent_of: dict[str, str] = {}
    rows = rows if "patient_origin" in rows else rows.assign(patient_origin="column")  # a table made by the user

    def find(patient: str) -> str:
        while (parent := parent_of.get(patient, patient)) != patient:
            patient = parent
        return patient

    # identifiers from the data take precedence over generated names of single images
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
    """Return the SHA-256 of every file that may have a duplicate; missing if size or both ends of a file are unique."""
    names = files.tolist()  # iterating over a column of text takes six times as long
    is_packed = pd.Series([parse_reference(name) is not None for name in names], index=files.index, dtype="bool")
    sizes = pd.Series(list(map(_read_size, names)), index=files.index, dtype="int64")
    has_packed = bool(is_packed.any())
    # a packed image has the checksum of its original file, whose size is unknown
    candidates = files[is_packed | (sizes.duplicated(keep=False) | has_packed) & (sizes >= 0)]
    if not has_packed:  # uncompressed images often have one size: compare their ends before reading whole files
        ends = pd.Series(_map_files(_read_ends, candidates), index=candidates.index, dtype="object")
        candidates = candidates[ends.duplicated(keep=False)]
    checksums = pd.Series(_map_files(compute_file_checksum, candidates), index=candidates.index, dtype="object")
    return checksums.reindex(files.index).astype(TEXT_DTYPE)


def _map_files(function: Callable[[str], Result], files: pd.Series) -> list[Result]:
    """Return function(file) of each file, computed by all cores."""
    names = files.tolist()
    batches = [names[start : start + FILES_PER_TASK] for start in range(0, len(names), FILES_PER_TASK)]
    with ThreadPoolExecutor(count_cpus()) as pool:
        return list(chain.from_iterable(pool.map(lambda batch: [function(file) for file in batch], batches)))


def _read_size(file: str) -> int:
    """Return the size of a regular file in bytes, -1 for anything else."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _read_ends(file: str) -> tuple[int, bytes]:
    """Return the size of a file and a hash of its first and last bytes; -1 and no hash for an unreadable file."""
    try:
        with open(file, "rb", buffering=0) as content:
            ends = content.read(END_BYTES)
            if len(ends) < END_BYTES:
                return len(ends), hashlib.sha256(ends).digest()
            size = content.seek(0, os.SEEK_END)
            content.seek(max(END_BYTES, size - END_BYTES))
            ends += content.read()
            # the bytes themselves would take 1 GB for 100,000 files
            return size, hashlib.sha256(ends).digest()
    except OSError:
        return -1, b""


def compute_file_checksum(file: str) -> str | None:
    """Return the SHA-256 of a file, or of the original file of a packed image; None for an unreadable file."""
    try:
        return read_packed_checksum(file) if parse_reference(file) else compute_sha256(file)
    except (OSError, ImageError):  # reported when the image is read
        return None


def _reject_label_conflicts(rows: pd.DataFrame, inputs: pd.Series, groups: list[list[int]]) -> None:
    names, labels = inputs + "/" + rows["path"] + " " + rows["label"].map(repr), rows["label"]
    differ = have_contrary_findings if is_multi_label(rows) else (lambda rows, i, first: labels[i] != labels[first])
    pairs = [(first, i) for first, *others in groups for i in others if differ(rows, i, first)]
    try:
        reject_image_pairs("", [(names[first], names[i]) for first, i in pairs], "E008")
    except DataError as error:
        first, other = pairs[0]
        relabel = [f"{labels[other]}={labels[first]}"]
        fix = f"Keep one of each pair, or pass `relabel={relabel}` if both labels mean the same"
        raise DataError(error.problem, fix, code="E008") from None


def _log_dropped_duplicates(inputs: pd.Series, dropped: dict[int, int]) -> None:
    counts = Counter(
        f"within {inputs[i]}" if inputs[i] == inputs[kept] else f"of {inputs[i]} that are also in {inputs[kept]}"
        for i, kept in dropped.items()
    )
    if counts:
        summary = format_names(f"{n:,} {description}" for description, n in counts.items())
        log.info("left out %s: %s", pluralize(counts.total(), "exact duplicate"), summary)
