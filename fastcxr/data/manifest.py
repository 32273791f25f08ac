"""Class folders, a CSV or a known collection come in; the manifest, a plain table with one row an image, goes out.

Columns: source, path, label, patient, patient_from, split, split_from, then sex, age and view where they are known,
then those that a person asked for, then `file`, the absolute path on this machine, which is never written to disk.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import pandas as pd

from fastcxr.data.columns import check_kept, choose_columns
from fastcxr.data.demographics import is_choice_of_traits, read_traits
from fastcxr.data.duplicates import leave_out_copies, link_namesakes
from fastcxr.data.filters import select
from fastcxr.data.merge import (
    HOME,
    describe_homes,
    join_tables,
    name_split_origins,
    number_names,
    number_sources,
    part_patients,
)
from fastcxr.data.patients import name_patients
from fastcxr.data.readers.csv_table import read_labelled
from fastcxr.data.readers.detect import SHELF, Cohort, find_layout
from fastcxr.data.readers.folders import identify, list_below, list_images
from fastcxr.data.readers.hdf5 import is_hdf5, read_packed
from fastcxr.data.relative_paths import hide_roots
from fastcxr.data.stratify import check_classes
from fastcxr.errors import DataError, ImageError, InputMissingError, RecipeError
from fastcxr.io.files import write_whole
from fastcxr.io.html import escape, html_table
from fastcxr.io.tables import NOBODY, TEXT, guard, is_blank, name_some, read_table, texts

log = logging.getLogger("fastcxr")
COLUMNS = ("source", "path", "label", "patient", "patient_from", "split", "split_from")
ORIGINS = {
    "column": "the patient column",
    "table": "the joined table",
    "regex": "the pattern in the path",
    "dicom": "DICOM headers",
    "nih": "NIH file names",
    "kermany": "Kermany file names",
    "im": "IM file names",
    "copy": "copies of images",
}
NOBODYS = (
    "no image says whose it is: each is taken as a patient of its own. If patients have several images, some of them "
    "will be both trained and tested on: name them with --patients, --patient-regex or a patient column"
)
UNSPLIT = "not split"


def read_manifest(
    data: str | Path | Sequence[str | Path],
    *,
    layout: str = "auto",
    patients: str | Path | None = None,
    patient_regex: str | None = None,
    patient_tag: str | None = None,
    relabel: Sequence[str] = (),
    classes: Sequence[str] = (),
    where: Sequence[str] = (),
    keep_columns: Sequence[str] = (),
    drop_copies: bool = False,
    only_test: bool = False,
) -> pd.DataFrame:
    """The manifest of class folders, with train/ valid/ test/ above them or without, a CSV, or a known collection.

    `data`: one of these, or several that become one manifest, in which no image stands twice. `layout`: auto, folders,
    split_folders, csv, coronahack, cohen, covidx or hdf5. `patients`: a table of filename and patient. `patient_regex`:
    its first group, searched in the path, is the patient. `patient_tag`: a DICOM tag, kept as a salted hash only.
    `relabel`: "theirs=ours". `classes`: the labels to keep. `where`: "column=value,value", the rows to keep, also by
    sex, age and view of DICOM headers.
    `keep_columns`: further columns to keep, by name; of all others only those of a manifest, sex, age and view stay.
    `only_test`: the images are to be scored and nothing else, so that one class will do.
    Raises DataError or InputMissingError for whatever could not be trained on, before any image is trained on.
    """
    cohorts = find_cohorts(data, layout)
    names = number_names(cohort.source for cohort in cohorts)
    tables = [_read_rows(cohort, name) for cohort, name in zip(cohorts, names, strict=True)]
    check_kept(tables, keep_columns)
    tables = select(tables, relabel=relabel, classes=classes)
    if by_traits := is_choice_of_traits(where):  # otherwise only headers of the rows that are left are read, below
        tables = [read_traits(table) for table in tables]
    rows = join_tables(select(tables, where=where), names)
    rows = choose_columns(rows, [*keep_columns, HOME])
    place = cohorts[0].path if len(cohorts) == 1 else None
    check_classes(rows.assign(patient=rows["path"]), place, only_test=only_test)
    rows = name_patients(rows, table=patients, regex=patient_regex, tag=patient_tag)
    rows = rows if by_traits else read_traits(rows)
    for cohort, name in zip(cohorts, names, strict=True):
        _warn_own(rows[rows[HOME] == name], cohort, f"{name}: " if len(cohorts) > 1 else "")
    if len(cohorts) > 1:
        rows = _merge(rows)
        _warn_absent(rows, names)
    elif drop_copies:
        rows = leave_out_copies(rows, rows[HOME])
    check_classes(rows, place, only_test=only_test)
    return _arrange(rows)


def find_cohorts(data: str | Path | Sequence[str | Path], layout: str = "auto") -> list[Cohort]:
    """What lies at each of these places, before any of it is read. Raises InputMissingError or DataError."""
    return [find_layout(place, layout) for place in _list_places(data)]


def _list_places(data: str | Path | Sequence[str | Path]) -> list[Path]:
    named = [data] if isinstance(data, str | Path) else data
    places = [Path(place) for place in named if str(place).strip()]
    if not places or len(places) < len(named):  # an empty name would be the current folder
        raise RecipeError("no data was named", "Give a folder, a CSV or a packed cohort", code="E001")
    there = [identify(place.expanduser()) for place in places if place.expanduser().exists()]
    if len(set(there)) < len(there):
        raise RecipeError(f"the same data twice among {name_some(map(str, places))}", "Name each once", code="E019")
    return places


def _merge(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of several sources as those of one: patients told apart, pictures together."""
    rows = part_patients(rows)
    log.info("merged: %s; looking for copies", describe_homes(rows))
    rows = leave_out_copies(rows, rows[HOME])
    return number_sources(link_namesakes(rows, rows[HOME]))


def _warn_absent(rows: pd.DataFrame, names: Iterable[str]) -> None:
    if absent := sorted(set(names) - set(rows[HOME])):
        text = "no image comes from %s: all of its rows are left out, by their label, by a column or as copies"
        log.warning(text, name_some(absent))


def _warn_own(rows: pd.DataFrame, cohort: Cohort, name: str) -> None:
    if len(rows) and (rows["patient_from"] == "own").all():
        log.warning(name + NOBODYS + _suggest_regex(rows["path"], cohort.layout))


def _suggest_regex(paths: pd.Series, layout: str) -> str:
    """Folders inside class folders are often patients: whoever knows may say so."""
    above = {"folders": 1, "split_folders": 2}.get(layout)
    inner = {path.split("/")[above] for path in paths if above and path.count("/") > above}
    pattern = "^" + "[^/]+/" * (above or 0) + "([^/]+)/"
    return f". If folders such as {min(inner)!r} are patients, say --patient-regex '{pattern}'" if inner else ""


def read_unlabelled(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Files, and all files of folders and packed cohorts, as a manifest without labels: columns source, path, file.

    A name that leads to no file stays a row: whoever reads the image says what is wrong with it.
    """
    rows = []
    for path in map(Path, paths):
        if path.is_dir():
            source = path.resolve().name
            rows += [(source, below, f"{path.absolute()}/{below}") for below in list_below(path)]
        elif is_hdf5(path):
            packed = hide_roots(read_packed(path)[["source", "path", "file"]])
            rows += packed.itertuples(index=False, name=None)
        else:
            rows.append((path.absolute().parent.name, path.name, str(path.absolute())))
    if not rows:
        named = name_some(map(str, paths))
        raise InputMissingError(f"0 files in {named}", "Name images, or folders that hold some", code="E002")
    return pd.DataFrame(rows, columns=["source", "path", "file"], dtype="str")


def _read_rows(cohort: Cohort, name: str) -> pd.DataFrame:
    """Rows with a source: their own, else `name`."""
    if cohort.layout in SHELF:
        rows = SHELF[cohort.layout].read(cohort.path)
    elif cohort.layout == "csv":
        rows = read_labelled(cohort.path)
    else:
        rows = list_images(cohort.path.absolute(), list(cohort.folders))
    folder = cohort.path.absolute().parent
    rows = hide_roots(rows, folder, folder.resolve())
    given = rows["source"].str.strip() if "source" in rows else pd.Series(index=rows.index, dtype=TEXT)
    return rows.assign(source=texts(given.where(~is_blank(given, NOBODY), name)))


def _arrange(rows: pd.DataFrame) -> pd.DataFrame:
    rows = name_split_origins(rows)
    further = [name for name in rows.columns if name not in {*COLUMNS, "file", HOME}]
    return rows[[*COLUMNS, *further, "file"]].reset_index(drop=True)


class Summary(str):
    """Text like any other; `counts` has a row a class, and a column of images for each split, all and patients."""

    counts: pd.DataFrame

    def __new__(cls, line: str, counts: pd.DataFrame | None = None) -> Self:
        summary = super().__new__(cls, line)
        summary.counts = pd.DataFrame() if counts is None else counts
        return summary

    def _repr_html_(self) -> str:
        rows = [[label, *map(int, numbers)] for label, *numbers in self.counts.itertuples()]
        return f"<p>{escape(self)}</p>" + html_table(["class", *self.counts.columns], rows)


def describe_manifest(manifest: pd.DataFrame) -> Summary:
    """`2 classes, 124 images, 68 patients from NIH file names, 12 images without a patient, each taken as its own`.

    A notebook shows the classes and splits in a table below it.
    """
    parts = [_count(manifest["label"].nunique(), "class", "classes"), _count(len(manifest), "image")]
    for origin, words in ORIGINS.items():
        patients = manifest.loc[manifest["patient_from"] == origin, "patient"].nunique()
        parts += [f"{_count(patients, 'patient')} from {words}"] if patients else []
    own = int((manifest["patient_from"] == "own").sum())
    if 0 < own < len(manifest):
        parts.append(f"{_count(own, 'image')} without a patient, {'each ' * (own > 1)}taken as its own")
    return Summary(", ".join(parts), count_classes(manifest))


def name_in_data(errors: Iterable[ImageError], manifest: pd.DataFrame) -> list[ImageError]:
    """The same errors, each naming its file as the data folder does; of several sources with the source before it."""
    several = manifest["source"].nunique() > 1
    names = manifest["source"] + "/" + manifest["path"] if several else manifest["path"]
    shown = dict(zip(manifest["file"], names, strict=True))
    return [ImageError(e.what, e.fix, path=shown.get(e.path, e.path), code=e.code) for e in errors]


def leave_out(manifest: pd.DataFrame, errors: Iterable[ImageError], *, only_test: bool = False) -> pd.DataFrame:
    """The manifest without the files that the errors name; raises if too little is left to train on."""
    bad = {error.path for error in errors}
    out = manifest["file"].isin(bad)
    kept = manifest[~out].reset_index(drop=True)
    if lost := sorted(set(manifest["label"]) - set(kept["label"])):
        what = f"no image that can be read is left of {name_some(map(repr, lost))}"
        raise DataError(what, "Repair some of its images, or leave the class out", code="E005")
    check_classes(kept, only_test=only_test)
    log.info("left out %s of %s images", f"{out.sum():,}", f"{len(manifest):,}")
    return kept


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """The manifest as CSV without `file`, in one step: a crash leaves the old file or the new one."""
    table = guard(manifest.drop(columns="file", errors="ignore"))
    # a lone carriage return in a file name is quoted only when it is a part of the line end
    text = table.to_csv(index=False, lineterminator="\r\n")
    write_whole(path, text)


def read_written_manifest(path: str | Path) -> pd.DataFrame:
    """A manifest.csv of an earlier run: every column as text, blank cells missing, no `file`."""
    table = read_table(path).reset_index(drop=True)
    if missing := [name for name in COLUMNS if name not in table]:
        what = f"no manifest of fastcxr: the columns {name_some(map(repr, missing))} are missing"
        raise DataError(what, "Give the manifest.csv of a run folder", path=path, code="E011")
    return table.assign(**{name: texts(table[name].where(table[name] != "")) for name in table.columns})


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def count_classes(manifest: pd.DataFrame) -> pd.DataFrame:
    """Images of each class in each split and altogether, and its patients; the last row is the whole cohort."""
    split = manifest["split"].fillna(UNSPLIT)
    here = [name for name in ("train", "valid", "test", UNSPLIT) if (split == name).any()]
    counts = pd.crosstab(manifest["label"], split).reindex(columns=here if here != [UNSPLIT] else [])
    counts = counts.assign(all=manifest["label"].value_counts())
    whole = counts.sum().to_frame("all classes").T
    known = manifest[manifest["patient_from"] != "own"]
    if len(known):  # a patient may stand in two classes, so that patients do not add up
        counts = counts.assign(patients=known.groupby("label")["patient"].nunique())
        whole = whole.assign(patients=known["patient"].nunique())
    return pd.concat([counts, whole]).fillna(0)
