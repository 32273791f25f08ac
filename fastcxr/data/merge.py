"""Merge the tables of several datasets into one with unique images and unambiguous patient identifiers.

Equal identifiers in different sources are different people: "13" becomes "clinic:13". Four types of identifiers are
valid in all sources: paths of public collections, hashed DICOM tags, a joined table, and identical images: if one
image is in two sources, the patients of both are one.
"""

import logging
from collections.abc import Iterable
from itertools import count

import pandas as pd

from fastcxr.data.duplicates import are_counters
from fastcxr.data.findings import FINDING_PREFIX
from fastcxr.data.patients import OWN_PATIENT_PREFIX, PATIENT_NAME_PATTERNS, match_known_names, match_names
from fastcxr.io.tables import TEXT_DTYPE, format_names, to_text

log = logging.getLogger("fastcxr")

INPUT_INDEX = "fastcxr input"  # column with the dataset of a row while tables are merged; no header has this name
NO_SPLIT_ORIGIN = "none"  # `split_origin` of images of a dataset without splits, merged with one that has splits
GLOBAL_ORIGINS = ("table", "dicom", *PATIENT_NAME_PATTERNS)  # origins of identifiers that are valid in all sources


def make_unique_names(names: Iterable[str]) -> list[str]:
    """Return the names, repeated ones with a number: clinic, clinic-2, clinic-3."""
    unique_names: list[str] = []
    for name in names:
        unique_names.append(_make_next_name(name, unique_names) if name in unique_names else name)
    return unique_names


def _make_next_name(name: str, taken: Iterable[str]) -> str:
    return next(other for k in count(2) if (other := f"{name}-{k}") not in taken)


def concat_tables(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """Return one table of text and findings with the additional column INPUT_INDEX.

    A finding that only some of the datasets label is unknown in the others.
    """
    tables = [table.assign(**{INPUT_INDEX: name}) for table, name in zip(tables, names, strict=True)]
    text_tables = [
        table.assign(**{name: to_text(table[name]) for name in table.columns if not name.startswith(FINDING_PREFIX)})
        for table in tables
    ]
    return pd.concat(text_tables, ignore_index=True)


def disambiguate_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a numbered source for later datasets whose source and path occur in an earlier one.

    Two tables may name the same source `ward`; only equal paths show that these are different sources.
    """
    is_clash = rows.duplicated(["source", "path"], keep=False)
    conflicts = rows.loc[is_clash, ["source", INPUT_INDEX]].drop_duplicates().sort_values("source", kind="stable")
    sources = rows["source"]
    is_later = conflicts["source"].duplicated()
    for source, input_name in conflicts[is_later].itertuples(index=False, name=None):
        name = _make_next_name(source, set(sources))
        sources = sources.mask((rows["source"] == source) & (rows[INPUT_INDEX] == input_name), name)
        log.info("%s: the source %s is renamed to %s: another dataset has the same paths", input_name, source, name)
    return rows.assign(source=to_text(sources))


def assign_split_origins(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `split_origin`: given, NO_SPLIT_ORIGIN, or missing if no dataset gives splits.

    The decision is made for each dataset: two datasets may name the same source, and only one of them may give splits.
    """
    has_no_splits = rows["split"].isna().groupby(rows[INPUT_INDEX]).transform("all")
    if "split_origin" in rows:  # a packed dataset that was merged before
        has_no_splits |= rows["split_origin"] == NO_SPLIT_ORIGIN
    given = pd.Series("given", index=rows.index, dtype=TEXT_DTYPE).where(rows["split"].notna())
    return rows.assign(split_origin=given if has_no_splits.all() else given.mask(has_no_splits, NO_SPLIT_ORIGIN))


def scope_patient_ids(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with patient identifiers that differ between datasets, unless they are valid in all sources."""
    patient, inputs = rows["patient"], rows[INPUT_INDEX]
    is_unknown = rows["patient_origin"] == "image"
    is_global = has_global_id(rows) & ~_find_doubtful(rows, inputs)
    is_local = ~is_global & ~is_unknown
    n_inputs = inputs[is_local].groupby(patient[is_local]).nunique()
    if len(shared := n_inputs.index[n_inputs > 1]):
        text = ("%s patient identifiers are in more than one dataset (such as %s) and are treated as different "
                "patients. If they are the same patients, pass one CSV of all images")  # fmt: skip
        log.warning(text, f"{len(shared):,}", format_names(shared, 3))
    scoped = (inputs + ":" + patient).mask(is_unknown, OWN_PATIENT_PREFIX + inputs + "/" + rows["path"])
    return rows.assign(patient=to_text(patient.where(is_global, scoped)))


def _find_doubtful(rows: pd.DataFrame, inputs: pd.Series) -> pd.Series:
    """Return which patients come from names such as IM-0001-0001 that denote different images in two datasets.

    The pediatric images of Kermany have such names, but so do the exports of some DICOM viewers.
    """
    has_im_name = rows["patient"] == match_names(rows["path"], PATIENT_NAME_PATTERNS["im"])
    has_im_name &= rows["patient_origin"] != "table"
    if not has_im_name.any() or not are_counters(rows[has_im_name], inputs[has_im_name]):
        return pd.Series(False, index=rows.index)
    log.warning("file names such as IM-0001-0001 do not identify patients across these datasets: most images with "
                "equal names differ")  # fmt: skip
    return has_im_name


def has_global_id(rows: pd.DataFrame) -> pd.Series:
    """Return whether each row has a patient identifier that denotes the same person in every source."""
    # a patient column may repeat the patient part of the file name of a known collection
    return rows["patient_origin"].isin(GLOBAL_ORIGINS) | (rows["patient"] == match_known_names(rows["path"]))
