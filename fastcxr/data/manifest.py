"""Class folders or a CSV come in; the manifest, a plain table with one row an image, goes out.

Columns: source, path, label, patient, patient_from, split, split_from, then the user's own, then `file`, the absolute
path on this machine, which is never written to disk.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.cohort.checks import check_classes
from fastcxr.data.cohort.folders import list_below, list_images
from fastcxr.data.cohort.labels import read_labelled
from fastcxr.data.cohort.layouts import Cohort, find_layout
from fastcxr.data.cohort.patients import name_patients
from fastcxr.data.cohort.tables import NOBODY, TEXT, is_blank, name_some, read_table, texts
from fastcxr.errors import DataError, ImageError, InputMissingError
from fastcxr.storage import write_whole

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
}
NOBODYS = (
    "no image says whose it is: each is taken as a patient of its own. If patients have several images, some of them "
    "will be both trained and tested on: name them with --patients, --patient-regex or a patient column"
)


def read_manifest(
    data: str | Path,
    *,
    layout: str = "auto",
    patients: str | Path | None = None,
    patient_regex: str | None = None,
    patient_tag: str | None = None,
) -> pd.DataFrame:
    """The manifest of a folder of class folders, with train/ valid/ test/ above them or without, or of a CSV.

    `layout`: auto, folders, split_folders or csv. `patients`: a table of filename and patient. `patient_regex`: its
    first group, searched in the path, is the patient. `patient_tag`: a DICOM tag, kept as a salted hash only.
    Raises DataError or InputMissingError for whatever could not be trained on, before any image is decoded.
    """
    cohort = find_layout(data, layout)
    rows = _read_rows(cohort)
    check_classes(rows.assign(patient=rows["path"]), cohort.path)
    rows = name_patients(rows, table=patients, regex=patient_regex, tag=patient_tag)
    if (rows["patient_from"] == "own").all():
        log.warning(NOBODYS + _suggest_regex(rows["path"], cohort.layout))
    return _arrange(rows)


def _suggest_regex(paths: pd.Series, layout: str) -> str:
    """Folders inside class folders are often patients: whoever knows may say so."""
    above = {"folders": 1, "split_folders": 2}.get(layout)
    inner = {path.split("/")[above] for path in paths if above and path.count("/") > above}
    pattern = "^" + "[^/]+/" * (above or 0) + "([^/]+)/"
    return f". If folders such as {min(inner)!r} are patients, say --patient-regex '{pattern}'" if inner else ""


def read_unlabelled(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Files, and all files of folders, as a manifest without labels: columns source, path, file.

    A name that leads to no file stays a row: whoever reads the image says what is wrong with it.
    """
    rows = []
    for path in map(Path, paths):
        if path.is_dir():
            source = path.resolve().name
            rows += [(source, below, f"{path.absolute()}/{below}") for below in list_below(path)]
        else:
            rows.append((path.absolute().parent.name, path.name, str(path.absolute())))
    if not rows:
        named = name_some(map(str, paths))
        raise InputMissingError(f"0 files in {named}", "Name images, or folders that hold some", code="E002")
    return pd.DataFrame(rows, columns=["source", "path", "file"], dtype="str")


def _read_rows(cohort: Cohort) -> pd.DataFrame:
    if cohort.layout == "csv":
        rows = read_labelled(cohort.path)
        given = rows["source"].str.strip() if "source" in rows else pd.Series(index=rows.index, dtype=TEXT)
        return rows.assign(source=texts(given.where(~is_blank(given, NOBODY), cohort.source)))
    root = cohort.path.absolute()
    rows = list_images(root, list(cohort.folders))
    return rows.assign(source=pd.Series(cohort.source, index=rows.index, dtype=TEXT))


def _arrange(rows: pd.DataFrame) -> pd.DataFrame:
    given = pd.Series("given", index=rows.index, dtype=TEXT).where(rows["split"].notna())
    rows = rows.assign(split_from=given)
    further = [name for name in rows.columns if name not in {*COLUMNS, "file"}]
    return rows[[*COLUMNS, *further, "file"]].reset_index(drop=True)


def describe_manifest(manifest: pd.DataFrame) -> str:
    """`2 classes, 124 images, 68 patients from NIH file names, 12 images without a patient, each taken as its own`."""
    parts = [_count(manifest["label"].nunique(), "class", "classes"), _count(len(manifest), "image")]
    for origin, words in ORIGINS.items():
        patients = manifest.loc[manifest["patient_from"] == origin, "patient"].nunique()
        parts += [f"{_count(patients, 'patient')} from {words}"] if patients else []
    own = int((manifest["patient_from"] == "own").sum())
    if 0 < own < len(manifest):
        parts.append(f"{_count(own, 'image')} without a patient, {'each ' * (own > 1)}taken as its own")
    return ", ".join(parts)


def leave_out(manifest: pd.DataFrame, errors: Iterable[ImageError]) -> pd.DataFrame:
    """The manifest without the files that the errors name; raises if too little is left to train on."""
    bad = {error.path for error in errors}
    out = manifest["file"].isin(bad)
    kept = manifest[~out].reset_index(drop=True)
    if lost := sorted(set(manifest["label"]) - set(kept["label"])):
        what = f"no image that can be read is left of {name_some(map(repr, lost))}"
        raise DataError(what, "Repair some of its images, or leave the class out", code="E005")
    check_classes(kept)
    log.info("left out %s of %s images", f"{out.sum():,}", f"{len(manifest):,}")
    return kept


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """The manifest as CSV without `file`, in one step: a crash leaves the old file or the new one."""
    table = manifest.drop(columns="file", errors="ignore")
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
