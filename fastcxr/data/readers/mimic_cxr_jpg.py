"""Reader of MIMIC-CXR-JPG 2.x.

Johnson A, Lungren M, Peng Y, Lu Z, Mark R, Berkowitz S, Horng S. MIMIC-CXR-JPG - chest radiographs with structured
labels (version 2.1.0). PhysioNet, 2024. https://doi.org/10.13026/jsn5-t979; see also https://arxiv.org/abs/1901.07042

Access: PhysioNet, credentialed. The table of the split lists the images; their path is
files/p10/p10000032/s50414267/<dicom_id>.jpg. The labels are those of a study and hold for each of its images.

Known traps: the labels were extracted from reports by two programs, CheXpert and NegBio; a blank cell is unknown, -1 is
uncertain. The findings of a study without a row of labels are unknown. A study may have frontal and lateral views, and
all of its images get the same labels; `filter` selects by `view`.

With `test_labels="radiologist"`, mimic-cxr-2.1.0-test-set-labeled.csv alone gives the labels of the official test
images. The radiologists labelled a part of the test studies; the labels of the other test images are then unknown, so
that no test set mixes both kinds. That table has no subject_id, and "Airspace Opacity" in it is "Lung Opacity".

Sex and age are in the table patients.csv.gz of MIMIC-IV, which is used if it lies in the folder. The age is anchor_age
+ (year of the study - anchor_year), because all dates are shifted; ages above 90 years are read as 90.

The images are those of MIMIC-CXR, which has them as DICOM.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.demographics import MAX_AGE_YEARS
from fastcxr.data.findings import list_findings
from fastcxr.data.readers.csv_table import clear_blank_cells, reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import (
    CHEXPERT_LABELS,
    find_dataset_folder,
    find_table,
    make_path_columns,
    parse_chexpert_labels,
    parse_view,
    reject_repeated_rows,
)
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_line_numbers, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")
VERSIONS = ("2.1.0", "2.0.0")  # the tables of release 2.1.0 still have 2.0.0 in their names
IMAGE_COLUMNS = ("dicom_id", "study_id", "subject_id")
COLUMNS = {  # required columns of each table
    "split": (*IMAGE_COLUMNS, "split"),
    "metadata": (*IMAGE_COLUMNS, "ViewPosition"),
    "chexpert": ("subject_id", "study_id"),
    "negbio": ("subject_id", "study_id"),
    "test-set-labeled": ("study_id",),
}
LABEL_VARIANTS = {"chexpert": "labels by CheXpert's labeler", "negbio": "labels by NegBio"}
PATIENT_TABLE, PATIENT_COLUMNS = "patients.csv", ("subject_id", "gender", "anchor_age", "anchor_year")
FILTER_COLUMNS = (
    "PerformedProcedureStepDescription", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
SPLITS = {"train": "train", "validate": "valid", "test": "test"}
RADIOLOGIST_NAMES = {"Airspace Opacity": "Lung Opacity"}


def read_mimic_cxr_jpg(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return a row per image of the split table, with the findings of its study; `location`: folder of the tables.

    Raises:
        DataError: a split (E012) or label (E012) is unknown, a row is repeated (E014), or two tables name different
            patients or studies (E016).
        InputMissingError: a table is missing (E001).
        RecipeError: there is no such label variant (E022).
    """
    images = _read_images(location)
    studies = _read_studies(location, DATASET.find_variant(options), images)
    labels = studies.reindex(images["study_id"]).set_axis(images.index)
    _log_unlabelled("studies without labels", images[~images["study_id"].isin(studies.index)])
    if options.test_labels == "radiologist":
        labels = _replace_test_labels(labels, images, location)
    subject, study = images["subject_id"], images["study_id"]
    names = "files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/" + images["dicom_id"] + ".jpg"
    index = FileIndex(location)
    rows = make_path_columns(names, index.find(names, any_folder=True), index.root).assign(
        split=images["split"], patient=subject, view=parse_view(images["ViewPosition"])
    )
    others = clear_blank_cells(images, ["study_id", *(name for name in FILTER_COLUMNS if name in images)])
    others = others[["study_id", *(name for name in FILTER_COLUMNS if name in others)]]
    people = _read_people(location, images)
    return pd.concat([rows, people, others, labels.assign(label=labels["label"].fillna(""))], axis=1)


def _find_table(folder: Path, kind: str) -> Path | None:
    return find_table(folder, [f"mimic-cxr-{version}-{kind}.csv" for version in VERSIONS], COLUMNS[kind])


def _require_table(folder: Path, kind: str) -> Path:
    path = _find_table(folder, kind)
    if path is None:
        name = f"mimic-cxr-2.{'1' if kind == 'test-set-labeled' else '0'}.0-{kind}.csv"
        problem = f"no {name} or {name}.gz with the columns {format_names(COLUMNS[kind])}"
        others = [other for other in LABEL_VARIANTS if kind in LABEL_VARIANTS and _find_table(folder, other)]
        fix = "Copy it from PhysioNet to the folder" + "".join(f", or pass `label_variant={x!r}`" for x in others)
        if kind == "test-set-labeled":
            fix += ", or omit `test_labels`"
        raise InputMissingError(problem, fix, path=folder, code="E001")
    return path


def _read_images(folder: Path) -> pd.DataFrame:
    """Return the rows of the split table with the columns of the metadata; identifiers have no blanks around them."""
    path, metadata_path = _require_table(folder, "split"), _require_table(folder, "metadata")
    images = _read_stripped(path, COLUMNS["split"])
    metadata = _read_stripped(metadata_path, (*COLUMNS["metadata"], "StudyDate", *FILTER_COLUMNS))
    reject_repeated_rows(images, "dicom_id", path)
    reject_repeated_rows(metadata, "dicom_id", metadata_path)
    splits = images["split"].str.casefold().map(SPLITS)
    is_unknown = splits.isna() & ~is_blank(images["split"])
    reject_rows(is_unknown, "have an unknown split", "Restore the published table", path, images["split"])
    images = images.assign(split=to_text(splits)).reset_index(drop=True).rename_axis("row")
    metadata = metadata.set_index("dicom_id")
    _reject_other_owners(images, metadata.reindex(images["dicom_id"]), ["subject_id", "study_id"], metadata_path)
    details = metadata.drop(columns=["subject_id", "study_id"])
    return images.join(details, on="dicom_id")


def _read_studies(folder: Path, variant: str, images: pd.DataFrame) -> pd.DataFrame:
    """Return the finding columns and `label` of each study, indexed by study_id."""
    path = _require_table(folder, variant)
    table = _read_stripped(path, (*COLUMNS[variant], *CHEXPERT_LABELS))
    reject_repeated_rows(table, "study_id", path)
    owners = table.set_index("study_id").reindex(images["study_id"])
    _reject_other_owners(images, owners, ["subject_id"], path)
    return parse_chexpert_labels(table, path).set_index(table["study_id"])


def _replace_test_labels(labels: pd.DataFrame, images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the labels with those of the radiologists, or unknown ones, for the official test images."""
    path = _require_table(folder, "test-set-labeled")
    table = _read_stripped(path, (*COLUMNS["test-set-labeled"], *CHEXPERT_LABELS, *RADIOLOGIST_NAMES))
    table = table.rename(columns=RADIOLOGIST_NAMES)
    reject_repeated_rows(table, "study_id", path)
    studies = parse_chexpert_labels(table, path).set_index(table["study_id"])
    if absent := set(list_findings(labels)) - set(list_findings(studies)):
        log.warning("%s has no column %s: unknown in the test images", path.name, format_names(sorted(absent)))
    tests = images[images["split"] == "test"]
    _log_unlabelled("test studies without labels of radiologists", tests[~tests["study_id"].isin(studies.index)])
    replaced = studies.reindex(tests["study_id"]).set_axis(tests.index).reindex(columns=labels.columns)
    others = labels[images["split"] != "test"]
    return pd.concat([others, replaced.astype(labels.dtypes)]).reindex(labels.index)


def _read_people(folder: Path, images: pd.DataFrame) -> pd.DataFrame:
    """Return sex and age of each image, as far as the tables give them; log what is left out."""
    path = find_table(folder, [PATIENT_TABLE], PATIENT_COLUMNS)
    if path is None:
        log.info("MIMIC-CXR-JPG: no sex and age: copy MIMIC-IV's %s.gz to the folder to add them", PATIENT_TABLE)
        return pd.DataFrame(index=images.index)
    table = _read_stripped(path, PATIENT_COLUMNS)
    reject_repeated_rows(table, "subject_id", path)
    patients = table.set_index("subject_id").reindex(images["subject_id"]).set_axis(images.index)
    people = pd.DataFrame({"sex": patients["gender"]})
    if "StudyDate" not in images:
        log.info("MIMIC-CXR-JPG: no age: the metadata table has no column StudyDate")
        return people
    anchor_age, anchor_year = (pd.to_numeric(patients[name], errors="coerce") for name in PATIENT_COLUMNS[2:])
    years = anchor_age + pd.to_numeric(images["StudyDate"].str[:4], errors="coerce") - anchor_year
    years = years.where(years >= 0).clip(upper=MAX_AGE_YEARS)
    return people.assign(age=to_text(years.astype("Int64").astype("string")))


def _read_stripped(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    return read_table(path, columns).apply(lambda cells: cells.str.strip())


def _reject_other_owners(images: pd.DataFrame, others: pd.DataFrame, columns: list[str], path: Path) -> None:
    """Raise DataError if a table gives an image another patient or study than the split table (E016)."""
    for column in columns:
        given = others[column].set_axis(images.index)
        is_other = given.notna() & (given != images[column])
        if is_other.any():
            rows = format_line_numbers(images.index[is_other])
            problem = f"{is_other.sum():,} images have another {column} in the split table ({rows})"
            raise DataError(problem, "Restore the tables of one release", path=path, code="E016")


def _log_unlabelled(what: str, images: pd.DataFrame) -> None:
    if len(images):
        counts = pluralize(images["study_id"].nunique(), "study", "studies"), pluralize(len(images), "image")
        log.warning("MIMIC-CXR-JPG: %s: %s, %s: findings unknown", what, *counts)


def _detect(path: Path) -> Path | None:
    """Return the folder of the tables, for itself, one of the tables, the folder above or the folder files/."""
    if path.is_file():
        is_table = any(_find_table(path.parent, kind) == path for kind in COLUMNS)
        return path.parent if is_table and _has_tables(path.parent) else None
    if path.absolute().name == "files" and _has_tables(path.absolute().parent):
        return path.absolute().parent
    return find_dataset_folder(path, _has_tables)


def _has_tables(folder: Path) -> bool:
    """Return whether the folder has the split table or a table of labels; reading it names those that are missing."""
    return any(_find_table(folder, kind) for kind in ("split", *LABEL_VARIANTS))


DATASET = PublicDataset(
    name="mimic_cxr_jpg",
    title="MIMIC-CXR-JPG",
    required="mimic-cxr-2.0.0-split.csv.gz, its metadata and chexpert or negbio tables, and the folder files/",
    blank="negative",
    blank_reason="CheXpert's labeller leaves a finding blank that the report does not mention",
    detect=_detect,
    read=read_mimic_cxr_jpg,
    labels="13 findings of CheXpert (several per image; 1, 0, -1 uncertain, blank), by study",
    n_images=377_110,
    counts_from="https://mimic.mit.edu, read in November 2026",
    page="https://physionet.org/content/mimic-cxr-jpg/",
    access="PhysioNet credentialed",
    terms="PhysioNet asks to treat models derived from MIMIC as sensitive, and to share them on PhysioNet under the "
    "agreement of the data (physionet.org, Guidelines for creating datasets and models from MIMIC, 24 April 2024)",
    citation="Johnson et al., MIMIC-CXR-JPG 2.1.0, PhysioNet 2024",
    files={
        "mimic-cxr-2.*-split.csv*": "official split",
        "mimic-cxr-2.*-metadata.csv*": "views and dates",
        "mimic-cxr-2.*-chexpert.csv*": "labels by CheXpert's labeler",
        "mimic-cxr-2.*-negbio.csv*": "labels by NegBio",
        "mimic-cxr-2.*-test-set-labeled.csv*": "labels of test studies by radiologists",
        "patients.csv*": "sex and age, of MIMIC-IV",
        "files/p*/p*/s*/*.jpg": "images",
    },
    label_variants=LABEL_VARIANTS,
)
