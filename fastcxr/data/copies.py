"""Images with their patients come in; each picture once, and the patients that copies prove to be one, go out.

A copy is a file with the same bytes. Files of one name in two sources with other bytes stay both, and count as one
patient so that no split tears them apart, if the name is no mere counter (collections crop and convert the pictures
that they borrow, and keep the names), or if both show the same picture.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fastcxr.data.cohort.folders import refuse_pairs
from fastcxr.data.cohort.tables import TEXT, name_some, texts
from fastcxr.data.hdf5 import read_packed_checksum, read_reference
from fastcxr.data.images import fit_square, read_with_remarks
from fastcxr.errors import DataError, ImageError
from fastcxr.storage import sha256_of

log = logging.getLogger("fastcxr")

ALIKE, GLANCE = 0.98, 64  # correlation of two pictures at 64 px: saved anew stays above .995, two visits below .95
RANKS = {"test": 0, "valid": 1, "train": 2}  # of copies in several splits the one in test stays: tests stay comparable


def leave_out_copies(rows: pd.DataFrame, homes: pd.Series) -> pd.DataFrame:
    """Each picture once: the copy in test, else in valid, else the first; its patient is that of all its copies.

    `homes` says which of the sources given each row is from. Raises DataError (E008) for copies under two labels.
    """
    content = name_contents(rows["file"])
    copied = content.duplicated(keep=False) & content.notna()
    groups = [list(group) for group in rows.index[copied].groupby(content[copied]).values()]
    _refuse_labels(rows, homes, groups)
    rows = link_patients(rows, groups)
    order = rows["split"].map(RANKS).fillna(len(RANKS))
    kept = [min(group, key=lambda i: (order[i], i)) for group in groups]
    lost = [i for group, first in zip(groups, kept, strict=True) for i in group if i != first]
    _say_copies(homes, groups, kept)
    rows = rows.drop(index=lost)
    alone = (rows["patient_from"] == "copy") & ~rows["patient"].duplicated(keep=False)
    return rows.assign(patient_from=rows["patient_from"].mask(alone, "own"))


def link_namesakes(rows: pd.DataFrame, homes: pd.Series) -> pd.DataFrame:
    """The rows with one patient for files of one name in two sources, unless only a counter is the same."""
    stems = rows["path"].map(lambda path: PurePosixPath(path).stem.casefold())
    groups = [group for group in rows.index.groupby(stems).values() if len(set(homes[group])) > 1]
    pairs = [(a, b) for group in groups for a, b in combinations(group, 2) if homes[a] != homes[b]]
    telling = [pair for pair in pairs if is_telling(stems[pair[0]])]
    alike = telling + _keep_alike(rows["file"], [pair for pair in pairs if not is_telling(stems[pair[0]])])
    if alike:
        words = Counter(f"{homes[b]} and {homes[a]}" for a, b in alike)
        places = name_some(f"{pair} ({n:,})" for pair, n in words.items())
        text = ("the same file name with other bytes in %s: perhaps one picture, cropped or saved anew; both stay, "
                "and count as one patient (such as %s)")  # fmt: skip
        log.warning(text, places, rows["path"][alike[0][1]])
    _warn_labels(rows, alike)
    return link_patients(rows, alike)


def is_telling(stem: str) -> bool:
    """Whether a name is more than a word with numbers: nejmc2001573_f1a is, COVID-19 (12) and image_0001 are not."""
    parts = re.findall(r"[^\W_]+", stem)
    words = [part for part in parts if not part.isdigit()]
    return len(words) > 1 or any(len(part) > 6 if part.isdigit() else not part.isalpha() for part in parts)


def link_patients(rows: pd.DataFrame, groups: Iterable[Iterable[int]]) -> pd.DataFrame:
    """The rows with one patient for all the patients that each group of rows names."""
    leader: dict[str, str] = {}

    def find(patient: str) -> str:
        while (above := leader.get(patient, patient)) != patient:
            patient = above
        return patient

    # names that somebody gave go before those of images without a patient
    strong = dict(zip(rows["patient"], rows["patient_from"] != "own", strict=True))
    for group in groups:
        first, *others = sorted({find(rows["patient"][i]) for i in group}, key=lambda name: (not strong[name], name))
        leader |= dict.fromkeys(others, first)
    if not leader:
        return rows
    patient = rows["patient"].map(find)
    origins = dict(zip(rows["patient"], rows["patient_from"], strict=True))
    together = patient.isin([find(name) for name in leader])
    origin = rows["patient_from"].mask(together, patient.map(origins).replace("own", "copy"))
    return rows.assign(patient=texts(patient), patient_from=texts(origin))


def name_contents(files: pd.Series) -> pd.Series:
    """The sha256 of every file that another could equal; missing where the size alone says that none does."""
    packed = files.map(lambda file: read_reference(file) is not None)
    sizes = files.map(lambda file: Path(file).stat().st_size if Path(file).is_file() else -1)
    # the checksum of a packed image is that of its file, whose size nobody wrote down
    asked = files[packed | (sizes.duplicated(keep=False) | packed.any()) & (sizes >= 0)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        sums = list(pool.map(find_checksum, asked))
    return pd.Series(sums, index=asked.index, dtype="object").reindex(files.index).astype(TEXT)


def find_checksum(file: str) -> str | None:
    """The sha256 of a file, or of the one that a packed image was; None for a file that cannot be read."""
    try:
        return read_packed_checksum(file) if read_reference(file) else sha256_of(file)
    except (OSError, ImageError):  # whoever reads the image says what is wrong with it
        return None


def _refuse_labels(rows: pd.DataFrame, homes: pd.Series, groups: list[list[int]]) -> None:
    names = homes + "/" + rows["path"] + " " + rows["label"].map(repr)
    torn = [group for group in groups if rows["label"][group].nunique() > 1]
    pairs = [
        (names[group[0]], names[i]) for group in torn for i in group if rows["label"][i] != rows["label"][group[0]]
    ]
    if pairs:
        other = next(i for i in torn[0] if rows["label"][i] != rows["label"][torn[0][0]])
        hint = f"{rows['label'][other]}={rows['label'][torn[0][0]]}"
        try:
            refuse_pairs("", pairs, "E008")
        except DataError as error:
            fix = f"Keep one of each pair, or if the two labels mean the same, say --relabel '{hint}'"
            raise DataError(error.what, fix, code="E008") from None


def _say_copies(homes: pd.Series, groups: list[list[int]], kept: list[int]) -> None:
    words = Counter()
    for group, first in zip(groups, kept, strict=True):
        for i in group:
            if i != first:
                place = (
                    f"within {homes[i]}" if homes[i] == homes[first] else f"of {homes[i]} that stand in {homes[first]}"
                )
                words[place] += 1
    if words:
        named = name_some(f"{n:,} {place}" for place, n in words.items())
        log.info("left out %s exact copies: %s", f"{words.total():,}", named)


def _keep_alike(files: pd.Series, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of rows that show the same picture."""
    places = sorted({i for pair in pairs for i in pair})
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        glances = dict(zip(places, pool.map(_glance, files[places]), strict=True))
    return [(a, b) for a, b in pairs if _is_alike(glances[a], glances[b])]


def _glance(file: str) -> np.ndarray | None:
    try:
        # correlation needs no bit depth, and the warnings come when the image is read for good
        return fit_square(read_with_remarks(file)[0], GLANCE).astype(float).ravel()
    except ImageError:  # whoever checks the images says what is wrong with it
        return None


def _is_alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and np.corrcoef(one, other)[0, 1] > ALIKE


def _warn_labels(rows: pd.DataFrame, alike: list[tuple[int, int]]) -> None:
    torn = [(a, b) for a, b in alike if rows["label"][a] != rows["label"][b]]
    if torn:
        named = name_some((f"{rows['path'][a]} {rows['label'][a]} and {rows['label'][b]}" for a, b in torn), 5)
        log.warning("%s of these have two labels: %s", f"{len(torn):,}", named)
