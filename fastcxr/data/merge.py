"""Rows of several sources come in; one table, in which every image and every patient is one, goes out.

Patients of different sources are different people, whatever their numbers: "13" becomes "clinic:13". Four kinds of
name hold everywhere: file names of public collections, hashed DICOM tags, a joined table, and what pictures prove: if
one picture stands in two sources, the patients that they name for it are one.
"""

import logging
from collections.abc import Iterable
from itertools import count

import pandas as pd

from fastcxr.data.duplicates import are_counters
from fastcxr.data.patients import KNOWN_NAMES, OWN, match_names, name_known
from fastcxr.io.tables import TEXT, name_some, texts

log = logging.getLogger("fastcxr")

HOME = "fastcxr home"  # a column for as long as tables are merged: which --data a row came from; no header has it
NO_SPLITS = "none"  # what `split_from` says of images of a home without splits, merged with one that gives them
EVERYWHERE = ("table", "dicom", "nih", "kermany", "im")  # origins whose names hold in every source


def number_names(names: Iterable[str]) -> list[str]:
    """Every name once: clinic, clinic-2, clinic-3."""
    numbered: list[str] = []
    for name in names:
        numbered.append(_number(name, numbered) if name in numbered else name)
    return numbered


def _number(name: str, taken: Iterable[str]) -> str:
    return next(other for k in count(2) if (other := f"{name}-{k}") not in taken)


def join_tables(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """One table of text with a further column HOME."""
    homed = [table.assign(**{HOME: pd.Series(name, index=table.index, dtype=TEXT)})
             for table, name in zip(tables, names, strict=True)]  # fmt: skip
    return pd.concat([_all_text(table) for table in homed], ignore_index=True)


def _all_text(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: texts(table[name]) for name in table.columns})


def number_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a number behind the source of a later home, where source and path stand for two images.

    Two tables may both speak of `ward`, and mean one; only where paths are equal too must they be told apart.
    """
    clash = rows.duplicated(["source", "path"], keep=False)
    torn = rows.loc[clash].groupby("source")[HOME].unique()
    sources = rows["source"]
    for source, homes in torn.items():
        for home in homes[1:]:
            name = _number(source, set(sources))
            sources = sources.mask((rows["source"] == source) & (rows[HOME] == home), name)
            log.info("%s: images of the source %s are called %s, for both hold the same paths", home, source, name)
    return rows.assign(source=texts(sources))


def name_split_origins(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `split_from`: given, NO_SPLITS, or missing where nothing gives a split.

    This is known by home only: two homes may name one source, of which one gives splits and the other does not.
    """
    bare = rows["split"].isna().groupby(rows[HOME]).transform("all")
    if "split_from" in rows:  # a packed cohort that was merged before
        bare |= rows["split_from"] == NO_SPLITS
    given = pd.Series("given", index=rows.index, dtype=TEXT).where(rows["split"].notna())
    return rows.assign(split_from=given if bare.all() else given.mask(bare, NO_SPLITS))


def part_patients(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with patients of different sources told apart, after they were named."""
    patient, home = rows["patient"], rows[HOME]
    holds, own = hold_everywhere(rows), rows["patient_from"] == "own"
    holds &= ~_find_doubtful(rows, home)
    _say_shared(patient[~holds & ~own], home)
    parted = (home + ":" + patient).mask(own, OWN + home + "/" + rows["path"])
    return rows.assign(patient=texts(patient.where(holds, parted)))


def _find_doubtful(rows: pd.DataFrame, home: pd.Series) -> pd.Series:
    """The rows whose patient is read from a name such as IM-0001-0001, where the images of two sources contradict it.

    Kermany's children have such names, and so has every export of some viewers.
    """
    named = (rows["patient"] == match_names(rows["path"], KNOWN_NAMES["im"])) & (rows["patient_from"] != "table")
    if not named.any() or not are_counters(rows[named], home[named]):
        return pd.Series(False, index=rows.index)
    log.warning("file names such as IM-0001-0001 identify no patient across these sources: most of the images of one "
                "name differ")  # fmt: skip
    return named


def hold_everywhere(rows: pd.DataFrame) -> pd.Series:
    """Whether each row's patient has a name that means the same person in every source."""
    # a column that repeats the file name of a known collection says no less than that name
    return rows["patient_from"].isin(EVERYWHERE) | (rows["patient"] == name_known(rows["path"]))


def _say_shared(patients: pd.Series, homes: pd.Series) -> None:
    counts = homes[patients.index].groupby(patients).nunique()
    if len(shared := counts.index[counts > 1]):
        text = ("%s patient names stand in more than one source (such as %s) and are taken for different people; "
                "if they are the same, give one CSV of all images")  # fmt: skip
        log.warning(text, f"{len(shared):,}", name_some(shared, 3))


def describe_homes(rows: pd.DataFrame) -> str:
    """`coronahack 4,522 images, cohen 130 images`."""
    counts = rows[HOME].value_counts(sort=False)
    return ", ".join(f"{home} {n:,} image{'s' * (n != 1)}" for home, n in counts.items())
