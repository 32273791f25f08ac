"""Images come in; each one's patient, and where that was read, go out.

In this order: the table's own column, a joined table, the user's pattern, a DICOM tag (as a salted hash), the file
names of known collections. An image of which none says anything is taken as a patient of its own.
Equal identifiers are one patient, wherever they were read: to group too much costs little, to group too little leaks.
"""

import logging
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.cohort.joined import clean_ids, join_patients
from fastcxr.data.cohort.pseudonyms import hide_patient, read_salt
from fastcxr.data.cohort.tables import TEXT, texts
from fastcxr.data.formats.files import HEAD, may_be_dicom, open_file
from fastcxr.errors import DataError, ImageError, RecipeError

log = logging.getLogger("fastcxr")

END = r"(?![0-9A-Za-z])"  # copies are called ..._005 (1) and ..._005_flipped
OWN = "image:"  # begins the name of a patient who is one image
KNOWN_NAMES = {
    "nih": re.compile(r"(000\d{5})_\d{3}" + END),  # NIH ChestX-ray14: 30,805 patients, so no date looks like one
    "kermany": re.compile(r"(person\d+)_(?:bacteria|virus)_\d+" + END),
    "im": re.compile(r"((?:NORMAL\d*-)?IM-\d{4})-\d{4}" + END),  # NORMAL2-IM-0383 is another child than IM-0383
}
# what anonymizers write where an identifier was
PLACEHOLDER = re.compile(r"(?i)(anon(ymous|ymi[sz]ed)?|unknown|none|n/?a|null|removed|[0x*]+)?")


def name_patients(
    rows: pd.DataFrame, *, table: str | Path | None = None, regex: str | None = None, tag: str | None = None
) -> pd.DataFrame:
    """The rows with `patient` and `patient_from`; a `patient` column that they bring goes before everything else."""
    pattern = None if regex is None else _compile(regex)
    found = {"column": _from_column(rows)}
    if table is not None:
        found["table"] = join_patients(rows["path"], table, rows["file"])
    if pattern is not None:
        found["regex"] = _from_regex(rows, pattern)
    known = pd.concat(found.values(), axis=1).notna().any(axis=1)
    found["dicom"] = _from_dicom(rows[~known], tag)
    found |= {name: match_names(rows["path"], pattern) for name, pattern in KNOWN_NAMES.items()}
    return _restore_origins(_choose(rows, found), rows)


def name_known(paths: pd.Series) -> pd.Series:
    """The patient that the file name of a known collection says, missing for all others."""
    found = [match_names(paths, pattern) for pattern in KNOWN_NAMES.values()]
    return texts(pd.concat(found, axis=1).bfill(axis=1).iloc[:, 0])


def match_names(paths: pd.Series, pattern: re.Pattern) -> pd.Series:
    """The first group of the pattern at the beginning of each file name, missing where it does not match."""
    stems = paths.map(lambda path: PurePosixPath(path).stem)
    return texts(stems.map(lambda stem: _first(pattern.match(stem))))


def _choose(rows: pd.DataFrame, found: dict[str, pd.Series]) -> pd.DataFrame:
    """The first source that knows an image names its patient."""
    patient, origin = texts(OWN + rows["path"]), pd.Series("own", index=rows.index, dtype=TEXT)
    for name, names in reversed(found.items()):
        names = names.reindex(rows.index)
        patient, origin = patient.where(names.isna(), names), origin.where(names.isna(), name)
    return rows.assign(patient=patient, patient_from=origin)


def _restore_origins(named: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The named rows; those of a packed cohort, which brings its patients, know where these were read before that."""
    if "patient_from" not in rows:
        return named
    known = (named["patient_from"] == "column") & rows["patient_from"].notna() & (rows["patient_from"] != "own")
    return named.assign(patient_from=texts(named["patient_from"].mask(known, rows["patient_from"])))


def _from_column(rows: pd.DataFrame) -> pd.Series:
    if "patient" not in rows:
        return pd.Series(index=rows.index, dtype=TEXT)
    ids = clean_ids(rows["patient"])
    # a manifest that fastcxr wrote, given as a table: a patient of one image, unless copies share it
    return ids.where(~ids.fillna("").str.startswith(OWN) | ids.duplicated(keep=False))


def _compile(regex: str) -> re.Pattern:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        what = f"the pattern for patients {regex!r} is no regular expression ({error})"
        raise RecipeError(what, r"Give one such as '([^/_]+)_[0-9]+\.png$'", code="E016") from error
    if not pattern.groups:
        fix = f"Put the part that is the patient in brackets, e.g. '({regex})'"
        raise RecipeError(f"the pattern for patients {regex!r} has no group", fix, code="E016")
    return pattern


def _from_regex(rows: pd.DataFrame, pattern: re.Pattern) -> pd.Series:
    group = pattern.groupindex.get("patient", 1)
    found = clean_ids(rows["path"].map(lambda path: _first(pattern.search(path), group)))
    if not found.notna().any():
        paths = f"{len(rows):,} paths, such as {rows['path'].iloc[0]!r}"
        what = f"the pattern for patients {pattern.pattern!r} finds none in {paths}"
        raise DataError(what, "Mend it: it is searched in the path below the data folder", code="E016")
    return found


def _first(match: re.Match | None, group: int = 1) -> str | None:
    return match[group] if match else None


def _from_dicom(rows: pd.DataFrame, tag: str | None) -> pd.Series:
    """The hashed patient of each DICOM file; what an anonymizer left in its place is no patient."""
    values = texts(rows["file"].map(lambda file: _read_tag(file, tag or "PatientID")))
    if tag is not None and len(rows) and not values.notna().any():
        what = f"no file without a patient is a DICOM file that holds {tag}"
        raise DataError(what, "Leave --patient-tag out, or name a tag that the files hold", code="E016")
    empty = values.map(lambda value: pd.notna(value) and PLACEHOLDER.fullmatch(value.strip()) is not None).astype(bool)
    if empty.any():
        log.warning("%s DICOM files hold a placeholder for their patient, so none at all", f"{empty.sum():,}")
    values = values.where(~empty)
    if not values.notna().any():
        return values
    salt = read_salt()
    return texts(values.map(lambda value: None if pd.isna(value) else hide_patient(value, salt)))


def _read_tag(file: str, tag: str) -> str | None:
    if not _is_dicom(file):
        return None
    from fastcxr.data.formats.dicom import read_patient_tag  # pydicom takes its time, and most cohorts have no DICOM

    return read_patient_tag(file, tag)


def _is_dicom(file: str) -> bool:
    try:
        with open_file(file) as handle:
            return may_be_dicom(file, handle.read(HEAD))
    except (ImageError, OSError):  # whoever reads the image says what is wrong with it
        return False
