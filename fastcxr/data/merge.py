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
from fastcxr.data.patients import OWN_PATIENT_PREFIX, PATIENT_NAME_PATTERNS, match_known_names, match_names
from fastcxr.io.tables import TEXT_DTYPE, format_names, to_text

log = logging.getLogger("fastcxr")

INPUT_INDEX = (
    "fastcxr input"  # a column for as long as tables are merged: which --data a row came from; no header has it
)
NO_SPLIT_ORIGIN = "none"  # what `split_origin` says of images of a home without splits, merged with one that gives them
GLOBAL_ORIGINS = ("table", "dicom", "nih", "kermany", "im")  # origins whose names hold in every source


def make_unique_names(names: Iterable[str]) -> list[str]:
    """Every name once: clinic, clinic-2, clinic-3."""
    unique_names: list[str] = []
    for name in names:
        unique_names.append(_make_next_name(name, unique_names) if name in unique_names else name)
    return unique_names


def _make_next_name(name: str, taken: Iterable[str]) -> str:
    return next(other for k in count(2) if (other := f"{name}-{k}") not in taken)


def concat_tables(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """One table of text with a further column INPUT_INDEX."""
    indexed_tables = [table.assign(**{INPUT_INDEX: pd.Series(name, index=table.index, dtype=TEXT_DTYPE)})
             for table, name in zip(tables, names, strict=True)]  # fmt: skip
    return pd.concat([_to_text_columns(table) for table in indexed_tables], ignore_index=True)


def _to_text_columns(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: to_text(table[name]) for name in table.columns})


def disambiguate_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a number behind the source of a later home, where source and path stand for two images.

    Two tables may both speak of `ward`, and mean one; only where paths are equal too must they be told apart.
    """
    is_clash = rows.duplicated(["source", "path"], keep=False)
    conflicting = rows.loc[is_clash].groupby("source")[INPUT_INDEX].unique()
    sources = rows["source"]
    for source, inputs in conflicting.items():
        for input_name in inputs[1:]:
            name = _make_next_name(source, set(sources))
            sources = sources.mask((rows["source"] == source) & (rows[INPUT_INDEX] == input_name), name)
            log.info(
                "%s: images of the source %s are called %s, for both hold the same paths", input_name, source, name
            )
    return rows.assign(source=to_text(sources))


def assign_split_origins(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `split_origin`: given, NO_SPLIT_ORIGIN, or missing where nothing gives a split.

    This is known by home only: two homes may name one source, of which one gives splits and the other does not.
    """
    has_no_splits = rows["split"].isna().groupby(rows[INPUT_INDEX]).transform("all")
    if "split_origin" in rows:  # a packed cohort that was merged before
        has_no_splits |= rows["split_origin"] == NO_SPLIT_ORIGIN
    given = pd.Series("given", index=rows.index, dtype=TEXT_DTYPE).where(rows["split"].notna())
    return rows.assign(split_origin=given if has_no_splits.all() else given.mask(has_no_splits, NO_SPLIT_ORIGIN))


def scope_patient_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with patients of different sources told apart, after they were named."""
    patient, inputs = rows["patient"], rows[INPUT_INDEX]
    is_global, is_unknown = has_global_id(rows), rows["patient_origin"] == "image"
    is_global &= ~_find_doubtful(rows, inputs)
    _warn_shared_ids(patient[~is_global & ~is_unknown], inputs)
    scoped = (inputs + ":" + patient).mask(is_unknown, OWN_PATIENT_PREFIX + inputs + "/" + rows["path"])
    return rows.assign(patient=to_text(patient.where(is_global, scoped)))


def _find_doubtful(rows: pd.DataFrame, home: pd.Series) -> pd.Series:
    """The rows whose patient is read from a name such as IM-0001-0001, where the images of two sources contradict it.

    Kermany's children have such names, and so has every export of some viewers.
    """
    named = (rows["patient"] == match_names(rows["path"], PATIENT_NAME_PATTERNS["im"])) & (
        rows["patient_origin"] != "table"
    )
    if not named.any() or not are_counters(rows[named], home[named]):
        return pd.Series(False, index=rows.index)
    log.warning("file names such as IM-0001-0001 identify no patient across these sources: most of the images of one "
                "name differ")  # fmt: skip
    return named


def has_global_id(rows: pd.DataFrame) -> pd.Series:
    """Whether each row's patient has a name that means the same person in every source."""
    # a column that repeats the file name of a known collection says no less than that name
    return rows["patient_origin"].isin(GLOBAL_ORIGINS) | (rows["patient"] == match_known_names(rows["path"]))


def _warn_shared_ids(patients: pd.Series, inputs: pd.Series) -> None:
    counts = inputs[patients.index].groupby(patients).nunique()
    if len(shared := counts.index[counts > 1]):
        text = ("%s patient names stand in more than one source (such as %s) and are taken for different people; "
                "if they are the same, give one CSV of all images")  # fmt: skip
        log.warning(text, f"{len(shared):,}", format_names(shared, 3))


def describe_inputs(rows: pd.DataFrame) -> str:
    """`coronahack 4,522 images, cohen 130 images`."""
    counts = rows[INPUT_INDEX].value_counts(sort=False)
    return ", ".join(f"{home} {n:,} image{'s' * (n != 1)}" for home, n in counts.items())
