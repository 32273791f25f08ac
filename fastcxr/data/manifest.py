"""Class folders, a CSV or a known collection come in; the manifest, a plain table with one row an image, goes out.

Columns: source, path, label, patient, patient_origin, split, split_origin, then sex, age and view where they are known,
then those that a person asked for, then `file`, the absolute path on this machine, which is never written to disk.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import pandas as pd

from fastcxr.data.columns import select_columns, validate_kept_columns
from fastcxr.data.demographics import add_dicom_demographics, is_choice_of_traits
from fastcxr.data.duplicates import drop_exact_duplicates, link_same_filenames
from fastcxr.data.filters import filter_tables
from fastcxr.data.merge import (
    INPUT_INDEX,
    assign_split_origins,
    concat_tables,
    describe_inputs,
    disambiguate_sources,
    make_unique_names,
    scope_patient_ids,
)
from fastcxr.data.patients import assign_patients
from fastcxr.data.readers.csv_table import read_label_table
from fastcxr.data.readers.detect import COLLECTIONS, DetectedDataset, detect_layout
from fastcxr.data.readers.folders import identify_file, list_class_images, list_files_below
from fastcxr.data.readers.hdf5 import is_hdf5, read_packed_manifest
from fastcxr.data.relative_paths import make_paths_relative
from fastcxr.data.stratify import validate_classes
from fastcxr.errors import DataError, ImageError, InputMissingError, RecipeError
from fastcxr.io.files import atomic_write
from fastcxr.io.html import escape_html, make_html_table
from fastcxr.io.tables import MISSING_VALUES, TEXT_DTYPE, escape_formulas, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")
MANIFEST_COLUMNS = ("source", "path", "label", "patient", "patient_origin", "split", "split_origin")
PATIENT_ORIGIN_TEXTS = {
    "column": "the patient column",
    "table": "the joined table",
    "regex": "the pattern in the path",
    "dicom": "DICOM headers",
    "nih": "NIH file names",
    "kermany": "Kermany file names",
    "im": "IM file names",
    "copy": "copies of images",
}
NO_PATIENTS_WARNING = (
    "no image says whose it is: each is taken as a patient of its own. If patients have several images, some of them "
    "will be both trained and tested on: name them with --patient-table, --patient-regex or a patient column"
)
UNSPLIT_LABEL = "not split"


def read_manifest(
    data: str | Path | Sequence[str | Path],
    *,
    data_format: str = "auto",
    patient_table: str | Path | None = None,
    patient_regex: str | None = None,
    patient_tag: str | None = None,
    relabel: Sequence[str] = (),
    classes: Sequence[str] = (),
    filter: Sequence[str] = (),
    keep_columns: Sequence[str] = (),
    deduplicate: bool = False,
    only_test: bool = False,
) -> pd.DataFrame:
    """The manifest of class folders, with train/ valid/ test/ above them or without, a CSV, or a known collection.

    `data`: one of these, or several that become one manifest, in which no image stands twice. `data_format`: auto,
    folders, split_folders, csv, coronahack, cohen, covidx or hdf5. `patient_table`: a CSV of filename and patient.
    `patient_regex`: its first group, searched in the path, is the patient. `patient_tag`: a DICOM tag, kept as a
    salted hash only.
    `relabel`: "theirs=ours". `classes`: the labels to keep. `filter`: "column=value,value", the rows to keep, also by
    sex, age and view of DICOM headers.
    `keep_columns`: further columns to keep, by name; of all others only those of a manifest, sex, age and view stay.
    `only_test`: the images are to be scored and nothing else, so that one class will do.
    Raises DataError or InputMissingError for whatever could not be trained on, before any image is trained on.
    """
    datasets = detect_datasets(data, data_format)
    names = make_unique_names(cohort.source for cohort in datasets)
    tables = [_read_dataset(cohort, name) for cohort, name in zip(datasets, names, strict=True)]
    validate_kept_columns(tables, keep_columns)
    tables = filter_tables(tables, relabel=relabel, classes=classes)
    if by_traits := is_choice_of_traits(filter):  # otherwise only headers of the rows that are left are read, below
        tables = [add_dicom_demographics(table) for table in tables]
    rows = concat_tables(filter_tables(tables, filter=filter), names)
    rows = select_columns(rows, [*keep_columns, INPUT_INDEX])
    data_path = datasets[0].path if len(datasets) == 1 else None
    validate_classes(rows.assign(patient=rows["path"]), data_path, only_test=only_test)
    rows = assign_patients(rows, table=patient_table, regex=patient_regex, tag=patient_tag)
    rows = rows if by_traits else add_dicom_demographics(rows)
    for dataset, name in zip(datasets, names, strict=True):
        _warn_no_patients(rows[rows[INPUT_INDEX] == name], dataset, f"{name}: " if len(datasets) > 1 else "")
    if len(datasets) > 1:
        rows = _merge_sources(rows)
        _warn_empty_inputs(rows, names)
    elif deduplicate:
        rows = drop_exact_duplicates(rows, rows[INPUT_INDEX])
    validate_classes(rows, data_path, only_test=only_test)
    return _order_columns(rows)


def detect_datasets(data: str | Path | Sequence[str | Path], layout: str = "auto") -> list[DetectedDataset]:
    """What lies at each of these places, before any of it is read. Raises InputMissingError or DataError."""
    return [detect_layout(place, layout) for place in _list_data_paths(data)]


def _list_data_paths(data: str | Path | Sequence[str | Path]) -> list[Path]:
    data_names = [data] if isinstance(data, str | Path) else data
    paths = [Path(place) for place in data_names if str(place).strip()]
    if not paths or len(paths) < len(data_names):  # an empty name would be the current folder
        raise RecipeError("no data was named", "Give a folder, a CSV or a packed cohort", code="E024")
    file_ids = [identify_file(place.expanduser()) for place in paths if place.expanduser().exists()]
    if len(set(file_ids)) < len(file_ids):
        raise RecipeError(f"the same data twice among {format_names(map(str, paths))}", "Name each once", code="E034")
    return paths


def _merge_sources(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of several sources as those of one: patients told apart, pictures together."""
    rows = scope_patient_ids(rows)
    log.info("merged: %s; looking for copies", describe_inputs(rows))
    rows = drop_exact_duplicates(rows, rows[INPUT_INDEX])
    return disambiguate_sources(link_same_filenames(rows, rows[INPUT_INDEX]))


def _warn_empty_inputs(rows: pd.DataFrame, names: Iterable[str]) -> None:
    if empty_inputs := sorted(set(names) - set(rows[INPUT_INDEX])):
        text = "no image comes from %s: all of its rows are left out, by their label, by a column or as copies"
        log.warning(text, format_names(empty_inputs))


def _warn_no_patients(rows: pd.DataFrame, dataset: DetectedDataset, name: str) -> None:
    if len(rows) and (rows["patient_origin"] == "image").all():
        log.warning(name + NO_PATIENTS_WARNING + _suggest_regex(rows["path"], dataset.layout))


def _suggest_regex(paths: pd.Series, layout: str) -> str:
    """Folders inside class folders are often patients: whoever knows may say so."""
    n_folders_above = {"folders": 1, "split_folders": 2}.get(layout)
    inner_folders = {
        path.split("/")[n_folders_above] for path in paths if n_folders_above and path.count("/") > n_folders_above
    }
    pattern = "^" + "[^/]+/" * (n_folders_above or 0) + "([^/]+)/"
    return (
        f". If folders such as {min(inner_folders)!r} are patients, say --patient-regex '{pattern}'"
        if inner_folders
        else ""
    )


def read_unlabelled(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Files, and all files of folders and packed cohorts, as a manifest without labels: columns source, path, file.

    A name that leads to no file stays a row: whoever reads the image says what is wrong with it.
    """
    rows = []
    for path in map(Path, paths):
        if path.is_dir():
            source = path.resolve().name
            rows += [(source, below, f"{path.absolute()}/{below}") for below in list_files_below(path)]
        elif is_hdf5(path):
            packed = make_paths_relative(read_packed_manifest(path)[["source", "path", "file"]])
            rows += packed.itertuples(index=False, name=None)
        else:
            rows.append((path.absolute().parent.name, path.name, str(path.absolute())))
    if not rows:
        path_names = format_names(map(str, paths))
        raise InputMissingError(f"0 files in {path_names}", "Name images, or folders that hold some", code="E002")
    return pd.DataFrame(rows, columns=["source", "path", "file"], dtype="str")


def _read_dataset(dataset: DetectedDataset, name: str) -> pd.DataFrame:
    """Rows with a source: their own, else `name`."""
    if dataset.layout in COLLECTIONS:
        rows = COLLECTIONS[dataset.layout].read(dataset.path)
    elif dataset.layout == "csv":
        rows = read_label_table(dataset.path)
    else:
        rows = list_class_images(dataset.path.absolute(), list(dataset.folders))
    folder = dataset.path.absolute().parent
    rows = make_paths_relative(rows, folder, folder.resolve())
    given_sources = rows["source"].str.strip() if "source" in rows else pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    return rows.assign(source=to_text(given_sources.where(~is_blank(given_sources, MISSING_VALUES), name)))


def _order_columns(rows: pd.DataFrame) -> pd.DataFrame:
    rows = assign_split_origins(rows)
    extra_columns = [name for name in rows.columns if name not in {*MANIFEST_COLUMNS, "file", INPUT_INDEX}]
    return rows[[*MANIFEST_COLUMNS, *extra_columns, "file"]].reset_index(drop=True)


class ManifestSummary(str):
    """Text like any other; `counts` has a row a class, and a column of images for each split, all and patients."""

    counts: pd.DataFrame

    def __new__(cls, line: str, counts: pd.DataFrame | None = None) -> Self:
        summary = super().__new__(cls, line)
        summary.counts = pd.DataFrame() if counts is None else counts
        return summary

    def _repr_html_(self) -> str:
        rows = [[label, *map(int, numbers)] for label, *numbers in self.counts.itertuples()]
        return f"<p>{escape_html(self)}</p>" + make_html_table(["class", *self.counts.columns], rows)


def describe_manifest(manifest: pd.DataFrame) -> ManifestSummary:
    """`2 classes, 124 images, 68 patients from NIH file names, 12 images without a patient, each taken as its own`.

    A notebook shows the classes and splits in a table below it.
    """
    parts = [_format_count(manifest["label"].nunique(), "class", "classes"), _format_count(len(manifest), "image")]
    for origin, origin_text in PATIENT_ORIGIN_TEXTS.items():
        patients = manifest.loc[manifest["patient_origin"] == origin, "patient"].nunique()
        parts += [f"{_format_count(patients, 'patient')} from {origin_text}"] if patients else []
    n_without_patient = int((manifest["patient_origin"] == "image").sum())
    if 0 < n_without_patient < len(manifest):
        parts.append(
            f"{_format_count(n_without_patient, 'image')} without a patient, {'each ' * (n_without_patient > 1)}taken "
            "as its own"
        )
    return ManifestSummary(", ".join(parts), count_images_per_class(manifest))


def replace_error_paths(errors: Iterable[ImageError], manifest: pd.DataFrame) -> list[ImageError]:
    """The same errors, each naming its file as the data folder does; of several sources with the source before it."""
    has_several_sources = manifest["source"].nunique() > 1
    names = manifest["source"] + "/" + manifest["path"] if has_several_sources else manifest["path"]
    name_by_file = dict(zip(manifest["file"], names, strict=True))
    return [ImageError(e.problem, e.fix, path=name_by_file.get(e.path, e.path), code=e.code) for e in errors]


def drop_unreadable(manifest: pd.DataFrame, errors: Iterable[ImageError], *, only_test: bool = False) -> pd.DataFrame:
    """The manifest without the files that the errors name; raises if too little is left to train on."""
    bad_files = {error.path for error in errors}
    is_bad = manifest["file"].isin(bad_files)
    kept = manifest[~is_bad].reset_index(drop=True)
    if lost_labels := sorted(set(manifest["label"]) - set(kept["label"])):
        problem = f"no image that can be read is left of {format_names(map(repr, lost_labels))}"
        raise DataError(problem, "Repair some of its images, or leave the class out", code="E005")
    validate_classes(kept, only_test=only_test)
    log.info("left out %s of %s images", f"{is_bad.sum():,}", f"{len(manifest):,}")
    return kept


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """The manifest as CSV without `file`, in one step: a crash leaves the old file or the new one."""
    table = escape_formulas(manifest.drop(columns="file", errors="ignore"))
    # a lone carriage return in a file name is quoted only when it is a part of the line end
    text = table.to_csv(index=False, lineterminator="\r\n")
    atomic_write(path, text)


def read_written_manifest(path: str | Path) -> pd.DataFrame:
    """A manifest.csv of an earlier run: every column as text, blank cells missing, no `file`."""
    table = read_table(path).reset_index(drop=True)
    if missing := [name for name in MANIFEST_COLUMNS if name not in table]:
        problem = f"no manifest of fastcxr: the columns {format_names(map(repr, missing))} are missing"
        raise DataError(problem, "Give the manifest.csv of a run folder", path=path, code="E011")
    return table.assign(**{name: to_text(table[name].where(table[name] != "")) for name in table.columns})


def _format_count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def count_images_per_class(manifest: pd.DataFrame) -> pd.DataFrame:
    """Images of each class in each split and altogether, and its patients; the last row is the whole cohort."""
    split = manifest["split"].fillna(UNSPLIT_LABEL)
    present_splits = [name for name in ("train", "valid", "test", UNSPLIT_LABEL) if (split == name).any()]
    counts = pd.crosstab(manifest["label"], split).reindex(
        columns=present_splits if present_splits != [UNSPLIT_LABEL] else []
    )
    counts = counts.assign(all=manifest["label"].value_counts())
    total = counts.sum().to_frame("all classes").T
    with_patient = manifest[manifest["patient_origin"] != "image"]
    if len(with_patient):  # a patient may stand in two classes, so that patients do not add up
        counts = counts.assign(patients=with_patient.groupby("label")["patient"].nunique())
        total = total.assign(patients=with_patient["patient"].nunique())
    return pd.concat([counts, total]).fillna(0)
