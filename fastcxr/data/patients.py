"""Images come in; each one's patient, and where that was read, go out.

In this order: the table's own column, a joined table, the user's pattern, a DICOM tag (as a salted hash), the file
names of known collections. An image of which none says anything is taken as a patient of its own.
Equal identifiers are one patient, wherever they were read: to group too much costs little, to group too little leaks.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.imaging.sniff import HEAD_BYTES, may_be_dicom, open_file
from fastcxr.errors import DataError, ImageError, OutputError, RecipeError
from fastcxr.io.files import sync_folder
from fastcxr.io.tables import (
    MISSING_VALUES,
    TEXT_DTYPE,
    find_column,
    format_line_numbers,
    format_names,
    is_blank,
    read_table,
    to_text,
)

log = logging.getLogger("fastcxr")
NAME_END = r"(?![0-9A-Za-z])"  # copies are called ..._005 (1) and ..._005_flipped
OWN_PATIENT_PREFIX = "image:"  # begins the name of a patient who is one image
PATIENT_NAME_PATTERNS = {
    "nih": re.compile(r"(000\d{5})_\d{3}" + NAME_END),  # NIH ChestX-ray14: 30,805 patients, so no date looks like one
    "kermany": re.compile(r"(person\d+)_(?:bacteria|virus)_\d+" + NAME_END),
    "im": re.compile(r"((?:NORMAL\d*-)?IM-\d{4})-\d{4}" + NAME_END),  # NORMAL2-IM-0383 is another child than IM-0383
}
# what anonymizers write where an identifier was
PLACEHOLDER_PATTERN = re.compile(r"(?i)(anon(ymous|ymi[sz]ed)?|unknown|none|n/?a|null|removed|[0x*]+)?")
PATIENT_COLUMN_NAMES = ("patient", "patientid", "subject", "subjectid", "pid")
FILE_COLUMN_NAMES = (
    "path",
    "filename",
    "file",
    "filepath",
    "imagename",
    "imageindex",
    "xrayimagename",
    "image",
    "imageid",
)
# how closely a name of the table must be an image's, the strictest first
MATCH_KEYS: tuple[Callable[[str], str], ...] = (
    str,
    lambda path: str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path,
    lambda path: PurePosixPath(path).name,
    lambda path: PurePosixPath(path).stem,  # collections were published as PNG and copied as JPEG
)
SALT_VARIABLE = "FASTCXR_SALT"


def assign_patients(
    rows: pd.DataFrame, *, table: str | Path | None = None, regex: str | None = None, tag: str | None = None
) -> pd.DataFrame:
    """The rows with `patient` and `patient_origin`; a `patient` column that they bring goes before everything else."""
    pattern = None if regex is None else _compile_pattern(regex)
    ids_by_origin = {"column": _read_column(rows)}
    if table is not None:
        ids_by_origin["table"] = join_patients(rows["path"], table, rows["file"])
    if pattern is not None:
        ids_by_origin["regex"] = _match_regex(rows, pattern)
    is_known = pd.concat(ids_by_origin.values(), axis=1).notna().any(axis=1)
    ids_by_origin["dicom"] = _read_dicom_patients(rows[~is_known], tag)
    ids_by_origin |= {name: match_names(rows["path"], pattern) for name, pattern in PATIENT_NAME_PATTERNS.items()}
    return _restore_origins(_use_first_origin(rows, ids_by_origin), rows)


def match_known_names(paths: pd.Series) -> pd.Series:
    """The patient that the file name of a known collection says, missing for all others."""
    ids = [match_names(paths, pattern) for pattern in PATIENT_NAME_PATTERNS.values()]
    return to_text(pd.concat(ids, axis=1).bfill(axis=1).iloc[:, 0])


def match_names(paths: pd.Series, pattern: re.Pattern) -> pd.Series:
    """The first group of the pattern at the beginning of each file name, missing where it does not match."""
    stems = paths.map(lambda path: PurePosixPath(path).stem)
    return to_text(stems.map(lambda stem: _get_group(pattern.match(stem))))


def _use_first_origin(rows: pd.DataFrame, ids_by_origin: dict[str, pd.Series]) -> pd.DataFrame:
    """The first source that knows an image names its patient."""
    patient, origin = to_text(OWN_PATIENT_PREFIX + rows["path"]), pd.Series("image", index=rows.index, dtype=TEXT_DTYPE)
    for name, ids in reversed(ids_by_origin.items()):
        ids = ids.reindex(rows.index)
        patient, origin = patient.where(ids.isna(), ids), origin.where(ids.isna(), name)
    return rows.assign(patient=patient, patient_origin=origin)


def _restore_origins(assigned: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The named rows; those of a packed cohort, which brings its patients, know where these were read before that."""
    if "patient_origin" not in rows:
        return assigned
    is_known = (
        (assigned["patient_origin"] == "column") & rows["patient_origin"].notna() & (rows["patient_origin"] != "image")
    )
    return assigned.assign(patient_origin=to_text(assigned["patient_origin"].mask(is_known, rows["patient_origin"])))


def _read_column(rows: pd.DataFrame) -> pd.Series:
    if "patient" not in rows:
        return pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    ids = normalize_ids(rows["patient"])
    # a manifest that fastcxr wrote, given as a table: a patient of one image, unless copies share it
    return ids.where(~ids.fillna("").str.startswith(OWN_PATIENT_PREFIX) | ids.duplicated(keep=False))


def _compile_pattern(regex: str) -> re.Pattern:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        problem = f"the pattern for patients {regex!r} is no regular expression ({error})"
        raise RecipeError(problem, r"Give one such as '([^/_]+)_[0-9]+\.png$'", code="E031") from error
    if not pattern.groups:
        fix = f"Put the part that is the patient in brackets, e.g. '({regex})'"
        raise RecipeError(f"the pattern for patients {regex!r} has no group", fix, code="E031")
    return pattern


def _match_regex(rows: pd.DataFrame, pattern: re.Pattern) -> pd.Series:
    group = pattern.groupindex.get("patient", 1)
    ids = normalize_ids(rows["path"].map(lambda path: _get_group(pattern.search(path), group)))
    if not ids.notna().any():
        paths = f"{len(rows):,} paths, such as {rows['path'].iloc[0]!r}"
        problem = f"the pattern for patients {pattern.pattern!r} finds none in {paths}"
        raise DataError(problem, "Mend it: it is searched in the path below the data folder", code="E032")
    return ids


def _get_group(match: re.Match | None, group: int = 1) -> str | None:
    return match[group] if match else None


def _read_dicom_patients(rows: pd.DataFrame, tag: str | None) -> pd.Series:
    """The hashed patient of each DICOM file; what an anonymizer left in its place is no patient."""
    values = to_text(rows["file"].map(lambda file: _read_dicom_tag(file, tag or "PatientID")))
    if tag is not None and len(rows) and not values.notna().any():
        problem = f"no file without a patient is a DICOM file that holds {tag}"
        raise DataError(problem, "Leave --patient-tag out, or name a tag that the files hold", code="E032")
    is_placeholder = values.map(
        lambda value: pd.notna(value) and PLACEHOLDER_PATTERN.fullmatch(value.strip()) is not None
    ).astype(bool)
    if is_placeholder.any():
        log.warning("%s DICOM files hold a placeholder for their patient, so none at all", f"{is_placeholder.sum():,}")
    values = values.where(~is_placeholder)
    if not values.notna().any():
        return values
    salt = read_salt()
    return to_text(values.map(lambda value: None if pd.isna(value) else pseudonymize(value, salt)))


def _read_dicom_tag(file: str, tag: str) -> str | None:
    if not _is_dicom(file):
        return None
    from fastcxr.data.imaging.dicom import read_tag  # pydicom takes its time, and most cohorts have no DICOM

    return read_tag(file, tag)


def _is_dicom(file: str) -> bool:
    try:
        with open_file(file) as handle:
            return may_be_dicom(file, handle.read(HEAD_BYTES))
    except (ImageError, OSError):  # whoever reads the image says what is wrong with it
        return False


def join_patients(paths: pd.Series, table: str | Path, files: pd.Series | None = None) -> pd.Series:
    """The patient of each path by whole path or, where that is unique, by file name, then whatever its suffix.

    `files`: where the images lie on this machine, for a table that names absolute paths.

    Raises DataError for a table that gives one file two patients, or that knows none of the images.
    """
    patient_table = _read_patient_table(Path(table))
    paths = paths.map(_normalize_path)
    patients = pd.Series(index=paths.index, dtype=TEXT_DTYPE)
    if files is not None:
        patients = to_text(files.map(_normalize_path).map(_find_unambiguous_patients(patient_table, str)))
    for make_key in MATCH_KEYS:
        keys, patient_by_key = paths.map(make_key), _find_unambiguous_patients(patient_table, make_key)
        unique = ~keys.duplicated(keep=False)
        patients = patients.where(patients.notna() | ~unique, keys.map(patient_by_key))
    patients = to_text(patients)
    _reject_unmatched_table(patients, paths, patient_table, Path(table))
    _warn_ambiguous(patients, paths, patient_table, Path(table))
    log.info("%s images have their patient from %s", f"{int(patients.notna().sum()):,}", Path(table).name)
    return patients


def normalize_ids(ids: pd.Series) -> pd.Series:
    """Identifiers as text: blanks are missing, and 2.0, as programs write 2 in a column with blanks, is 2."""
    ids = to_text(ids)
    return to_text(ids.where(~is_blank(ids, MISSING_VALUES)).str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True))


def _read_patient_table(path: Path) -> pd.DataFrame:
    """Columns name and patient, blank rows left out; the index is the line."""
    table = read_table(path)
    columns = [_find_required_column(table, names, path) for names in (FILE_COLUMN_NAMES, PATIENT_COLUMN_NAMES)]
    patient_table = table[columns].set_axis(["name", "patient"], axis=1)
    patient_table = patient_table.assign(
        name=patient_table["name"].map(_normalize_path), patient=normalize_ids(patient_table["patient"])
    )
    patient_table = patient_table[patient_table["patient"].notna() & ~is_blank(patient_table["name"])]
    counts = patient_table.groupby("name")["patient"].transform("nunique")
    if (counts > 1).any():
        conflicting = patient_table.index[counts > 1]
        problem = (
            f"{patient_table.loc[conflicting, 'name'].nunique():,} files have more than one patient "
            f"({format_line_numbers(conflicting)})"
        )
        raise DataError(problem, "Give every file one patient", path=path, code="E016")
    return patient_table


def _find_required_column(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> str:
    column = find_column(table.columns, names)
    if column is None:
        expected = {"path": "filename"}.get(names[0], names[0])
        problem = f"no column called {expected}; there are {format_names(map(repr, table.columns))}"
        fix = f"Rename the column that holds it to {expected}"
        raise DataError(problem, fix, path=path, code="E011")
    return column


def _normalize_path(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _find_unambiguous_patients(patient_table: pd.DataFrame, make_key: Callable[[str], str]) -> pd.Series:
    """One patient a name; names that stand for several patients are left out."""
    groups = patient_table["patient"].groupby(patient_table["name"].map(make_key))
    return groups.first()[groups.nunique() == 1]


def _reject_unmatched_table(patients: pd.Series, paths: pd.Series, patient_table: pd.DataFrame, table: Path) -> None:
    if patients.notna().any():
        return
    content = f"{patient_table['name'].iloc[0]!r}, the images {paths.iloc[0]!r}" if len(patient_table) else "nothing"
    problem = f"none of its file names belongs to an image (it says {content})"
    raise DataError(problem, "Give a table of the same files: columns filename and patient", path=table, code="E032")


def _warn_ambiguous(patients: pd.Series, paths: pd.Series, patient_table: pd.DataFrame, table: Path) -> None:
    make_key = MATCH_KEYS[2]
    unused_names = set(patient_table["name"].map(make_key)) - set(paths[patients.notna()].map(make_key))
    if (is_ambiguous := patients.isna() & paths.map(make_key).isin(unused_names)).any():
        text = "%s gives names that several images share; these have no patient from it: %s. Give whole paths"
        log.warning(text, table.name, format_names(paths[is_ambiguous]))


def pseudonymize(identifier: str, salt: bytes) -> str:
    """The same name for the same identifier under the same salt."""
    digest = hmac.new(salt, identifier.strip().encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"dicom-{make_salt_id(salt)}-{digest.hexdigest()[:16]}"


def make_salt_id(salt: bytes) -> str:
    """Four letters that tell one salt from another and nothing about it."""
    return hashlib.sha256(salt).hexdigest()[:4]


def read_salt() -> bytes:
    """The salt of the environment, or this person's own, made on first use."""
    if value := os.environ.get(SALT_VARIABLE, "").strip():
        return value.encode("utf-8", "surrogateescape")
    path = find_salt_file()
    try:
        if not path.exists():
            _create_salt(path)
        salt = path.read_bytes().strip()
    except OSError as error:
        problem = f"the salt that hides patients cannot be kept here ({error.strerror})"
        raise OutputError(problem, f"Set {SALT_VARIABLE} to a secret of your own", path=path) from error
    if len(salt) < 32:
        problem = "the salt that hides patients is damaged"
        raise DataError(
            problem, f"Restore the file, set {SALT_VARIABLE}, or remove it to begin anew", path=path, code="E033"
        )
    return salt


def find_salt_file() -> Path:
    """Where this person's salt is kept."""
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(config_home) if Path(config_home).is_absolute() else Path.home() / ".config") / "fastcxr" / "salt"


def _create_salt(path: Path) -> None:
    """Complete before it has its name: of two processes at once the first wins, and both read the same salt."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary_path = tempfile.mkstemp(dir=path.parent, prefix=".salt.")  # readable by its owner alone
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary_path)  # unlike a rename it never replaces a salt that came first
        sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        Path(temporary_path).unlink(missing_ok=True)
