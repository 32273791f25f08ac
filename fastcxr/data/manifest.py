"""Read a dataset into a manifest: a table with one row per image.

Columns: source, path, label, patient, patient_origin, split, split_origin; sex, age and view if known; additional
columns chosen by the user; `file`, the absolute path on this machine, which is never written to disk.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Self

import pandas as pd

from fastcxr.config.fields import list_options, unknown_option_error
from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.columns import select_columns, validate_kept_columns
from fastcxr.data.demographics import add_dicom_demographics, filters_demographics
from fastcxr.data.duplicates import drop_exact_duplicates, link_same_filenames
from fastcxr.data.filters import filter_tables
from fastcxr.data.findings import (
    count_findings,
    is_multi_label,
    list_findings,
)
from fastcxr.data.label_options import apply_label_options, find_uncertain_policy
from fastcxr.data.label_policy import reject_unknown_findings
from fastcxr.data.merge import (
    INPUT_INDEX,
    assign_split_origins,
    concat_tables,
    disambiguate_sources,
    make_unique_names,
    scope_patient_ids,
)
from fastcxr.data.patients import assign_patients, suggest_regex
from fastcxr.data.readers.csv_table import make_label_rows, read_label_table
from fastcxr.data.readers.detect import (
    FRAME_LAYOUT,
    MISSING_DATA_FIX,
    DetectedDataset,
    detect_layout,
)
from fastcxr.data.readers.folders import identify_file, list_class_images
from fastcxr.data.readers.hdf5 import read_packed_manifest
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.registry import PUBLIC_DATASETS, describe_overlaps
from fastcxr.data.readers.split_files import apply_split_files, name_split
from fastcxr.data.relative_paths import make_paths_relative
from fastcxr.data.row_checks import check_rows
from fastcxr.data.stratify import validate_classes
from fastcxr.errors import DataError, ImageError, RecipeError, require_type
from fastcxr.io.formatting import pluralize
from fastcxr.io.html import escape_html, make_html_table
from fastcxr.io.paths import reject_missing_paths
from fastcxr.io.tables import (
    MISSING_VALUES,
    TEXT_DTYPE,
    format_names,
    is_blank,
    make_text_table,
    to_text,
)

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
    "chexpert": "CheXpert paths",
    "mimic": "MIMIC-CXR paths",
    "copy": "duplicate images",
}
NO_PATIENTS_WARNING = (
    "no patient identifiers found: every image is treated as a separate patient. If patients have several images, some "
    "will be in both train and test: pass `patient_table`, `patient_regex` or a table with a patient column"
)
UNSPLIT_LABEL = "not split"
DATA_OPTIONS = list_options(Recipe, "Data", without=("data",))
DataInput = str | Path | pd.DataFrame


def read_manifest(
    data: DataInput | Sequence[DataInput],
    recipe: Recipe | None = None,
    *,
    root: str | Path = ".",
    only_test: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Return the manifest of class folders (also below train/, valid/ and test/), a table or a public dataset.

    Args:
        data: class folders, a CSV, a DataFrame with the columns path and label, a public dataset or a packed file; or
            several, which are merged without exact duplicates.
        recipe: recipe whose data options are used.
        root: folder of the relative paths in a DataFrame; those in a CSV are relative to the folder of the CSV.
        only_test: the images are only evaluated, so one class is enough.
        **options: data options of a Recipe, which help(Recipe) explains: data_format, relabel, classes, filter,
            columns, label_separator, label_variant, task, blank, uncertain, test_labels, split_file, keep_columns,
            deduplicate, patient_table, patient_regex, patient_tag, skip_bad, which here leaves out missing files and
            blank labels.

    Raises:
        DataError: the data cannot be used for training.
        InputMissingError: the data does not exist, or contains no images.
        RecipeError: an option is malformed, or names something that does not exist.
    """
    require_type("recipe", recipe, Recipe, NoneType)
    recipe = _apply_options(recipe or Recipe(), options)
    datasets = detect_datasets(data, recipe.data_format, root)
    names = make_unique_names(dataset.source for dataset in datasets)
    names, tables = _read_datasets(datasets, names, make_reader_options(recipe))
    rows = _check_datasets(_select_rows(tables, datasets, recipe), datasets, names, recipe)
    reject_unknown_findings(find_uncertain_policy(recipe), list_findings(rows), "uncertain")
    data_path = datasets[0].path if len(datasets) == 1 else None
    validate_classes(rows.assign(patient=rows["path"]), data_path, only_test=only_test)
    rows = assign_patients(rows, table=recipe.patient_table, regex=recipe.patient_regex, tag=recipe.patient_tag)
    if not filters_demographics(recipe.filter):  # otherwise _select_rows has read the headers
        rows = add_dicom_demographics(rows)
    _warn_missing_patients(rows, datasets, names)
    if len(datasets) > 1:
        rows = _merge_datasets(rows, datasets, names)
    elif recipe.deduplicate:
        rows = drop_exact_duplicates(rows, rows[INPUT_INDEX])
    validate_classes(rows, data_path, only_test=only_test)
    return _order_columns(rows)


def _read_datasets(
    datasets: list[DetectedDataset], names: list[str], options: ReaderOptions
) -> tuple[list[str], list[pd.DataFrame]]:
    """Return the name and the rows of each dataset, with the splits that names of datasets or split files give."""
    tables = [_read_dataset(dataset, name, options) for dataset, name in zip(datasets, names, strict=True)]
    if named_splits := find_named_splits(datasets):
        names, tables = _join_named_splits(datasets, names, tables, named_splits)
    if options.split_files:
        tables = [_apply_split_files(tables, options.split_files)]
    return names, tables


def _apply_options(recipe: Recipe, options: dict[str, Any]) -> Recipe:
    for name in options:
        if name not in DATA_OPTIONS:
            raise unknown_option_error(name, DATA_OPTIONS, "read_manifest")
    return recipe.replace(**options)


def make_reader_options(recipe: Recipe) -> ReaderOptions:
    """Return the options of a recipe that change how labels are read."""
    given = {item.name: getattr(recipe, item.name) for item in fields(ReaderOptions) if item.name != "split_files"}
    files = recipe.split_file or ()
    return ReaderOptions(**given, split_files=(files,) if isinstance(files, str) else tuple(files))


def find_named_splits(datasets: list[DetectedDataset]) -> list[str]:
    """Return the splits that all of the datasets are named for (train.csv and test.csv), else an empty list."""
    splits = [name_split(dataset.path) or name_split(_find_folder(dataset)) for dataset in datasets]
    return [split for split in splits if split] if len(set(splits)) == len(splits) > 1 and all(splits) else []


def _find_folder(dataset: DetectedDataset) -> Path:
    """Return the folder of the relative paths of a dataset."""
    return (dataset.path if dataset.path.is_dir() else dataset.path.parent).absolute()


def _join_named_splits(
    datasets: list[DetectedDataset], names: list[str], tables: list[pd.DataFrame], splits: list[str]
) -> tuple[list[str], list[pd.DataFrame]]:
    """Return the name, once per table, and the tables of one dataset whose splits were passed as several datasets."""
    paths = [dataset.path if name_split(dataset.path) else dataset.path.parent for dataset in datasets]
    text = format_names(f"{path.name} is {split}" for path, split in zip(paths, splits, strict=True))
    log.info("the datasets are splits of one dataset: %s", text)
    folders = [_find_folder(dataset) for dataset in datasets]
    are_apart = len(set(folders)) > 1  # two folders may contain equal names
    name = (folders[0].parent if are_apart else folders[0]).name
    joined = []
    for given_name, folder, table, split in zip(names, folders, tables, splits, strict=True):
        prefix = f"{folder.name}/" if are_apart else ""
        source = table["source"].where(table["source"] != given_name, name)
        joined.append(table.assign(path=prefix + table["path"], split=split, source=to_text(source)))
    return [name] * len(tables), joined


def _apply_split_files(tables: list[pd.DataFrame], files: tuple[str, ...]) -> pd.DataFrame:
    if len(tables) > 1:
        problem = f"`split_file` is for one dataset, and {len(tables)} are given"
        raise RecipeError(problem, "Add a column split to the tables, or pass one dataset", code="E022")
    return apply_split_files(tables[0], files)


def _select_rows(tables: list[pd.DataFrame], datasets: list[DetectedDataset], recipe: Recipe) -> list[pd.DataFrame]:
    """Return the tables with the rows that the recipe keeps, each with its index, and the labels of its task."""
    validate_kept_columns(tables, recipe.keep_columns)
    # with findings, apply_label_options selects those of `classes`
    classes = () if recipe.task == MULTI_LABEL else recipe.classes
    tables = filter_tables(tables, relabel=recipe.relabel, classes=classes)
    tables = apply_label_options(tables, [PUBLIC_DATASETS.get(dataset.layout) for dataset in datasets], recipe)
    if filters_demographics(recipe.filter):  # otherwise the headers of fewer files are read, after filtering
        tables = [add_dicom_demographics(table) for table in tables]
    return filter_tables(tables, filter=recipe.filter)


def _check_datasets(
    tables: list[pd.DataFrame], datasets: list[DetectedDataset], names: list[str], recipe: Recipe
) -> pd.DataFrame:
    """Return one table of the selected rows with a label and a file, and of the columns that the recipe keeps."""
    checked = [
        check_rows(table, dataset.path, find_missing_fix(dataset), skip_bad=recipe.skip_bad)
        for table, dataset in zip(tables, datasets, strict=True)
    ]
    kinds = {is_multi_label(table) for table in checked if len(table)}
    if len(kinds) > 1:
        several = [name for name, table in zip(names, checked, strict=True) if is_multi_label(table)]
        problem = f"some datasets have one label per image, but {format_names(several)} has several"
        fix = "Pass `task='multi_label'`, which makes each class a finding, or choose `classes` for one label per image"
        raise DataError(problem, fix, code="E015")
    return select_columns(concat_tables(checked, names), [*recipe.keep_columns, INPUT_INDEX])


def find_missing_fix(dataset: DetectedDataset) -> str | None:
    """Return what to do about missing files of a public dataset."""
    return PUBLIC_DATASETS[dataset.layout].missing_fix if dataset.layout in PUBLIC_DATASETS else None


def _warn_missing_patients(rows: pd.DataFrame, datasets: list[DetectedDataset], names: list[str]) -> None:
    """Log each dataset without any patient identifier."""
    for dataset, name in zip(datasets, names, strict=True):
        part = rows[rows[INPUT_INDEX] == name]
        if len(part) and (part["patient_origin"] == "image").all():
            prefix = f"{name}: " if len(datasets) > 1 else ""
            log.warning(prefix + NO_PATIENTS_WARNING + suggest_regex(part["path"], dataset.layout))


def _merge_datasets(rows: pd.DataFrame, datasets: list[DetectedDataset], names: list[str]) -> pd.DataFrame:
    """Return the rows of several datasets without exact duplicates, with unambiguous sources and patients."""
    rows = scope_patient_ids(rows)
    counts = rows[INPUT_INDEX].value_counts(sort=False)
    inputs_text = ", ".join(f"{name} {pluralize(n, 'image')}" for name, n in counts.items())
    log.info("merged: %s; searching for duplicates", inputs_text)
    layouts = [dataset.layout for dataset in datasets]
    for sentence in describe_overlaps(layouts, layouts):
        log.warning(
            "%s. Only images with the same bytes or file name are recognised here: run `fastcxr audit`, which also "
            "finds near-duplicates, before you trust a test on merged data",
            sentence,
        )
    rows = drop_exact_duplicates(rows, rows[INPUT_INDEX])
    rows = disambiguate_sources(link_same_filenames(rows, rows[INPUT_INDEX]))
    if unused := sorted(set(names) - set(rows[INPUT_INDEX])):
        text = "no image of %s is left: all of its rows are excluded by filters or are exact duplicates"
        log.warning(text, format_names(unused))
    return rows


def detect_datasets(
    data: DataInput | Sequence[DataInput], layout: str = "auto", root: str | Path = "."
) -> list[DetectedDataset]:
    """Return the layout of each dataset without reading it. Raises InputMissingError, DataError or RecipeError.

    `root`: folder of the relative paths in a DataFrame.
    """
    inputs = [data] if isinstance(data, DataInput) or not isinstance(data, Iterable) else list(data)
    for one in inputs:
        require_type("data", one, str, Path, pd.DataFrame)
    if not inputs or not all(isinstance(one, pd.DataFrame) or str(one).strip() for one in inputs):
        # an empty name would mean the current folder
        raise RecipeError("no data is named", "Pass a folder, a CSV or a packed dataset", code="E024")
    paths = [Path(one) for one in inputs if not isinstance(one, pd.DataFrame)]
    reject_missing_paths(paths, MISSING_DATA_FIX)
    file_ids = [identify_file(path.expanduser()) for path in paths if path.expanduser().exists()]
    if len(set(file_ids)) < len(file_ids):
        problem = f"the same data is named twice in {format_names(map(str, paths))}"
        raise RecipeError(problem, "Name each dataset once", code="E034")
    return [
        DetectedDataset(FRAME_LAYOUT, Path(root).expanduser() / "DataFrame", table=one)
        if isinstance(one, pd.DataFrame)
        else detect_layout(one, layout)
        for one in inputs
    ]


def _read_dataset(dataset: DetectedDataset, name: str, options: ReaderOptions) -> pd.DataFrame:
    """Return the rows of a dataset; `name` is their source unless the data has a column for it."""
    if dataset.layout in PUBLIC_DATASETS:
        rows = PUBLIC_DATASETS[dataset.layout].read(dataset.path, options)
    elif dataset.layout == "hdf5":
        rows = read_packed_manifest(dataset.path)
    elif dataset.table is not None:
        rows = make_label_rows(make_text_table(dataset.table, dataset.path), dataset.path, options)
    elif dataset.layout == "csv":
        rows = read_label_table(dataset.path, options)
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
    """Text with `counts`.

    A row for each class, and columns of images in each split, all images, and patients; or a row for each finding, see
    count_findings.
    """

    counts: pd.DataFrame

    def __new__(cls, line: str, counts: pd.DataFrame | None = None) -> Self:  # noqa: D102
        summary = super().__new__(cls, line)
        summary.counts = pd.DataFrame() if counts is None else counts
        return summary

    def _repr_html_(self) -> str:
        rows = [[label, *map(int, numbers)] for label, *numbers in self.counts.itertuples()]
        headings = [str(self.counts.index.name), *self.counts.columns]
        return f"<p>{escape_html(self)}</p>" + make_html_table(headings, rows)


def describe_manifest(manifest: pd.DataFrame) -> ManifestSummary:
    """Return `2 classes, 124 images, 68 patients from NIH file names`; a notebook also shows a table of the classes."""
    require_type("manifest", manifest, pd.DataFrame)
    findings = list_findings(manifest)
    labels = pluralize(manifest["label"].nunique(), "class", "classes")
    parts = [pluralize(len(findings), "finding") if findings else labels, pluralize(len(manifest), "image")]
    for origin, origin_text in PATIENT_ORIGIN_TEXTS.items():
        patients = manifest.loc[manifest["patient_origin"] == origin, "patient"].nunique()
        parts += [f"{pluralize(patients, 'patient')} from {origin_text}"] if patients else []
    n_without_patient = int((manifest["patient_origin"] == "image").sum())
    if 0 < n_without_patient < len(manifest):
        each = "each " if n_without_patient > 1 else ""
        parts.append(f"{pluralize(n_without_patient, 'image')} without a patient, {each}treated as a separate patient")
    counts = count_findings(manifest).rename_axis("finding") if findings else count_images_per_class(manifest)
    return ManifestSummary(", ".join(parts), counts)


def replace_error_paths(errors: Iterable[ImageError], manifest: pd.DataFrame) -> list[ImageError]:
    """Return the errors with paths as in the manifest instead of absolute paths; prefixed by source if several."""
    has_several_sources = manifest["source"].nunique() > 1
    names = manifest["source"] + "/" + manifest["path"] if has_several_sources else manifest["path"]
    name_by_file = dict(zip(manifest["file"], names, strict=True))
    return [ImageError(e.problem, e.fix, path=name_by_file.get(e.path or "", e.path), code=e.code) for e in errors]


def drop_unreadable(manifest: pd.DataFrame, errors: Iterable[ImageError], *, only_test: bool = False) -> pd.DataFrame:
    """Return the manifest without unreadable files. Raises DataError if a class becomes too small (E004, E005)."""
    is_bad = manifest["file"].isin([error.path for error in errors])
    kept = manifest[~is_bad].reset_index(drop=True)
    lost_labels = [] if is_multi_label(manifest) else sorted(set(manifest["label"]) - set(kept["label"]))
    if lost_labels:
        problem = f"no readable image is left of {format_names(map(repr, lost_labels))}"
        raise DataError(problem, "Repair images of this class, or leave out the class", code="E005")
    validate_classes(kept, only_test=only_test)
    log.info("left out %s of %s images", f"{is_bad.sum():,}", f"{len(manifest):,}")
    return kept


def count_images_per_class(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the images of each class in each split, all its images and its patients; the last row is the total."""
    split = manifest["split"].fillna(UNSPLIT_LABEL)
    present_splits = [name for name in ("train", "valid", "test", UNSPLIT_LABEL) if (split == name).any()]
    columns = present_splits if present_splits != [UNSPLIT_LABEL] else []
    counts = pd.crosstab(manifest["label"], split).reindex(columns=columns)
    counts = counts.assign(all=manifest["label"].value_counts())
    total = counts.sum().to_frame("all classes").T
    with_patient = manifest[manifest["patient_origin"] != "image"]
    if len(with_patient):  # a patient may be in two classes, so the total is not the sum
        counts = counts.assign(patients=with_patient.groupby("label")["patient"].nunique())
        total = total.assign(patients=with_patient["patient"].nunique())
    return pd.concat([counts, total]).fillna(0).rename_axis("class")
