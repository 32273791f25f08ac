"""Assign a patient to each image, and record where the identifier was read.

Order: the table's own column, a joined table, the user's pattern, a DICOM tag (as a salted hash), the names of files
and folders of known collections. An image without an identifier is treated as a separate patient. Equal identifiers are
one patient, wherever they were read: splitting a patient into two would cause leakage.
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
from fastcxr.io.formatting import pluralize
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
NAME_START = r"(?:^|/)"
FILE_NAME_END = r"(?![0-9A-Za-z])[^/]*$"  # duplicates have names such as ..._005 (1) and ..._005_flipped
OWN_PATIENT_PREFIX = "image:"  # prefix of the patient of an image without an identifier
PATIENT_NAME_PATTERNS = {
    "nih": re.compile(NAME_START + r"(000\d{5})_\d{3}" + FILE_NAME_END),  # 30,805 patients, so dates do not match
    "kermany": re.compile(NAME_START + r"(person\d+)_(?:bacteria|virus)_\d+" + FILE_NAME_END),
    # NORMAL2-IM-0383 and IM-0383 differ
    "im": re.compile(NAME_START + r"((?:NORMAL\d*-)?IM-\d{4})-\d{4}" + FILE_NAME_END),
    "chexpert": re.compile(NAME_START + r"(patient\d{5})/study\d+/view\d+_(?:frontal|lateral)" + FILE_NAME_END),
    "mimic": re.compile(NAME_START + r"p(1\d{7})/s5\d{7}/"),  # the digits are the subject_id of the tables
}
# names of folders inside a class that are a study, a part of the data or a kind of file, and not a patient
NO_PATIENT_FOLDER_PATTERN = re.compile(
    r"(?i)(s\d|stud(y|ies)|series|visit|exam|part|batch|fold|train(ing)?|val(id|idation)?|test(ing)?"
    r"|images?|imgs?|masks?|png|jpe?g|dicom|dcm|files|data|cxr|x-?rays?|frontal|lateral)([ _-]?images?)?[ _-]?\d*"
)
# values that anonymization tools write in place of an identifier
PLACEHOLDER_PATTERN = re.compile(r"(?i)(anon(ymous|ymi[sz]ed)?|unknown|none|n/?a|null|removed|[0x*]+)?")
PATIENT_COLUMN_NAMES = ("patient", "patientid", "subject", "subjectid", "pid")
FILE_COLUMN_NAMES = ("path", "filename", "file", "filepath", "imagename", "imageindex", "xrayimagename", "image",
                     "imageid")  # fmt: skip
# parts of a path by which a table and the images are matched, the strictest first
MATCH_KEYS: tuple[Callable[[str], str], ...] = (
    str,
    lambda path: str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path,
    lambda path: PurePosixPath(path).name,
    lambda path: PurePosixPath(path).stem,  # collections published as PNG are redistributed as JPEG
)
PLAIN_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")  # 100,000 of these files are not opened to look for a DICOM header
SALT_VARIABLE = "FASTCXR_SALT"


def assign_patients(
    rows: pd.DataFrame, *, table: str | Path | None = None, regex: str | None = None, tag: str | None = None
) -> pd.DataFrame:
    """Return the rows with `patient` and `patient_origin`; an existing `patient` column takes precedence."""
    pattern = None if regex is None else _compile_pattern(regex)
    ids_by_origin = {"column": _read_column(rows)}
    if table is not None:
        ids_by_origin["table"] = join_patients(rows["path"], table, rows["file"])
    if pattern is not None:
        ids_by_origin["regex"] = _match_regex(rows, pattern)
    is_known = pd.concat(ids_by_origin.values(), axis=1).notna().any(axis=1)
    ids_by_origin["dicom"] = _read_dicom_patients(rows[~is_known], tag)
    ids_by_origin |= {name: match_names(rows["path"], pattern) for name, pattern in PATIENT_NAME_PATTERNS.items()}
    patient, origin = to_text(OWN_PATIENT_PREFIX + rows["path"]), pd.Series("image", index=rows.index, dtype=TEXT_DTYPE)
    for name, ids in reversed(ids_by_origin.items()):
        ids = ids.reindex(rows.index)
        patient, origin = patient.where(ids.isna(), ids), origin.where(ids.isna(), name)
    if "patient_origin" in rows:  # a packed dataset has the origins that were recorded when it was packed
        is_recorded = (origin == "column") & rows["patient_origin"].notna() & (rows["patient_origin"] != "image")
        origin = to_text(origin.mask(is_recorded, rows["patient_origin"]))
    return rows.assign(patient=patient, patient_origin=origin)


def match_known_names(paths: pd.Series) -> pd.Series:
    """Return the patient in the path of an image of a known collection, missing for other paths."""
    first, *others = (match_names(paths, pattern) for pattern in PATIENT_NAME_PATTERNS.values())
    for ids in others:  # bfill of a table converts it row by row
        first = first.fillna(ids)
    return first


def match_names(paths: pd.Series, pattern: re.Pattern) -> pd.Series:
    """Return the first group of the pattern in each path, missing without a match."""
    matches = map(pattern.search, paths.tolist())
    return pd.Series([match[1] if match else None for match in matches], index=paths.index, dtype=TEXT_DTYPE)


def suggest_regex(paths: pd.Series, layout: str) -> str:
    """Return a suggestion to use the folders inside class folders as patients, or nothing without such folders."""
    n_folders_above = {"folders": 1, "split_folders": 2}.get(layout)
    if n_folders_above is None:
        return ""
    parts = [path.split("/")[:-1] for path in paths]
    for depth in range(n_folders_above, max(map(len, parts), default=0)):
        folders = {names[depth] for names in parts if len(names) > depth}
        n_others = sum(NO_PATIENT_FOLDER_PATTERN.fullmatch(name) is not None for name in folders)
        if n_others == 0:
            pattern = "^" + "[^/]+/" * depth + "([^/]+)/"
            return f". If folders such as {min(folders)!r} are patients, pass `patient_regex={pattern!r}`"
        if n_others < len(folders):
            return ""
    return ""


def _read_column(rows: pd.DataFrame) -> pd.Series:
    if "patient" not in rows:
        return pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    ids = normalize_ids(rows["patient"])
    # in a manifest written by fastcxr and passed as a table, this prefix marks an image without a patient, unless
    # duplicates share it
    return ids.where(~ids.fillna("").str.startswith(OWN_PATIENT_PREFIX) | ids.duplicated(keep=False))


def _compile_pattern(regex: str) -> re.Pattern:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        problem = f"the patient pattern {regex!r} is not a regular expression ({error})"
        raise RecipeError(problem, r"Pass a pattern such as '([^/_]+)_[0-9]+\.png$'", code="E031") from error
    if not pattern.groups:
        fix = f"Put the part that names the patient in brackets, e.g. '({regex})'"
        raise RecipeError(f"the patient pattern {regex!r} has no group", fix, code="E031")
    return pattern


def _match_regex(rows: pd.DataFrame, pattern: re.Pattern) -> pd.Series:
    group = pattern.groupindex.get("patient", 1)
    matches = [pattern.search(path) for path in rows["path"]]
    ids = normalize_ids(pd.Series([match[group] if match else None for match in matches], rows.index, dtype="object"))
    if not ids.notna().any():
        paths = f"{len(rows):,} paths, such as {rows['path'].iloc[0]!r}"
        problem = f"the patient pattern {pattern.pattern!r} matches none of {paths}"
        raise DataError(problem, "Correct the pattern: it is searched in the path below the data folder", code="E032")
    return ids


def _read_dicom_patients(rows: pd.DataFrame, tag: str | None) -> pd.Series:
    """Return the hashed patient of each DICOM file, missing for placeholders of anonymization tools."""
    values = [_read_dicom_tag(file, tag or "PatientID") for file in rows["file"].tolist()]
    if tag is not None and values and not any(values):
        problem = f"no DICOM file without a patient has the tag {tag}"
        raise DataError(problem, "Leave out `patient_tag`, or pass a tag of the files", code="E032")
    is_placeholder = [bool(value and PLACEHOLDER_PATTERN.fullmatch(value.strip())) for value in values]
    if any(is_placeholder):
        log.warning(
            "%s DICOM files have a placeholder instead of a patient, which is ignored", f"{sum(is_placeholder):,}"
        )
    values = [None if skip else value for value, skip in zip(values, is_placeholder, strict=True)]
    salt = read_salt() if any(values) else b""
    hashed = [pseudonymize(value, salt) if value else None for value in values]
    return pd.Series(hashed, index=rows.index, dtype=TEXT_DTYPE)


def _read_dicom_tag(file: str, tag: str) -> str | None:
    if file.casefold().endswith(PLAIN_IMAGE_SUFFIXES):
        return None
    try:
        with open_file(file) as handle:
            if not may_be_dicom(file, handle.read(HEAD_BYTES)):
                return None
    except (ImageError, OSError):  # reported when the image is read
        return None
    from fastcxr.data.imaging.dicom import read_tag  # importing pydicom is slow, and most datasets have no DICOM files

    return read_tag(file, tag)


def join_patients(paths: pd.Series, table: str | Path, files: pd.Series | None = None) -> pd.Series:
    """Return the patient of each image by full path or, if unique, by file name, then by name without suffix.

    `files`: absolute paths, for a table that lists such paths. Raises DataError if the table gives a file two patients
    (E016), or matches no image (E032).
    """
    table = Path(table)
    patient_table = _read_patient_table(table)
    paths = paths.map(_normalize_path)
    patients = pd.Series(index=paths.index, dtype=TEXT_DTYPE)
    if files is not None:
        patients = to_text(files.map(_normalize_path).map(_find_unambiguous_patients(patient_table, str)))
    for make_key in MATCH_KEYS:
        keys, patient_by_key = paths.map(make_key), _find_unambiguous_patients(patient_table, make_key)
        unique = ~keys.duplicated(keep=False)
        patients = patients.where(patients.notna() | ~unique, keys.map(patient_by_key))
    patients = to_text(patients)
    if not patients.notna().any():
        example = f"{patient_table['name'].iloc[0]!r}" if len(patient_table) else "nothing"
        problem = f"no file name matches an image (the table has {example}, the images are {paths.iloc[0]!r})"
        fix = "Pass a table of the same files with the columns filename and patient"
        raise DataError(problem, fix, path=table, code="E032")
    get_name = MATCH_KEYS[2]
    unused_names = set(patient_table["name"].map(get_name)) - set(paths[patients.notna()].map(get_name))
    if (is_ambiguous := patients.isna() & paths.map(get_name).isin(unused_names)).any():
        text = "%s has file names that several images share; these get no patient: %s. Use full paths in the table"
        log.warning(text, table.name, format_names(paths[is_ambiguous]))
    log.info("%s with a patient from %s", pluralize(int(patients.notna().sum()), "image"), table.name)
    return patients


def normalize_ids(ids: pd.Series) -> pd.Series:
    """Return identifiers as text: blanks are missing, and 2.0 (written by programs for 2 next to blanks) is 2."""
    ids = to_text(ids)
    return to_text(ids.where(~is_blank(ids, MISSING_VALUES)).str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True))


def _read_patient_table(path: Path) -> pd.DataFrame:
    """Return columns name and patient without blank rows; the index is the line number."""
    table = read_table(path)
    columns = [_find_required_column(table, names, path) for names in (FILE_COLUMN_NAMES, PATIENT_COLUMN_NAMES)]
    names, patients = table[columns[0]].map(_normalize_path), normalize_ids(table[columns[1]])
    patient_table = pd.DataFrame({"name": names, "patient": patients})
    patient_table = patient_table[patient_table["patient"].notna() & ~is_blank(patient_table["name"])]
    counts = patient_table.groupby("name")["patient"].transform("nunique")
    if (counts > 1).any():
        conflicts = patient_table["name"][counts > 1]
        problem = f"{conflicts.nunique():,} files have more than one patient ({format_line_numbers(conflicts.index)})"
        raise DataError(problem, "Give every file one patient", path=path, code="E016")
    return patient_table


def _find_required_column(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> str:
    column = find_column(table.columns, names)
    if column is None:
        expected = {"path": "filename"}.get(names[0], names[0])
        problem = f"no column is called {expected}, only {format_names(map(repr, table.columns))}"
        raise DataError(problem, f"Rename the matching column to {expected}", path=path, code="E011")
    return column


def _normalize_path(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _find_unambiguous_patients(patient_table: pd.DataFrame, make_key: Callable[[str], str]) -> pd.Series:
    """Return the patient of each name, without the names of several patients."""
    groups = patient_table["patient"].groupby(patient_table["name"].map(make_key))
    return groups.first()[groups.nunique() == 1]


def pseudonymize(identifier: str, salt: bytes) -> str:
    """Return a pseudonym, which is equal for equal identifiers and salts."""
    return f"dicom-{make_salt_id(salt)}-{hash_text(identifier.strip(), salt)}"


def hash_text(text: str, salt: bytes) -> str:
    """Return the first 16 hexadecimal digits of the HMAC-SHA256 of a text."""
    return hmac.new(salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:16]


def make_salt_id(salt: bytes) -> str:
    """Return four hexadecimal digits that differ between salts but do not reveal them."""
    return hashlib.sha256(salt).hexdigest()[:4]


def read_salt() -> bytes:
    """Return the salt from the environment or from the user's file, which is created on first use."""
    if value := os.environ.get(SALT_VARIABLE, "").strip():
        return value.encode("utf-8", "surrogateescape")
    path = find_salt_file()
    try:
        if not path.exists():
            _create_salt(path)
        salt = path.read_bytes().strip()
    except OSError as error:
        problem = f"the salt for patient pseudonyms cannot be stored or read ({error.strerror})"
        raise OutputError(problem, f"Set {SALT_VARIABLE} to a secret text", path=path) from error
    if len(salt) < 32:
        fix = f"Restore the file, set {SALT_VARIABLE}, or remove the file to create a new salt"
        raise DataError("the salt for patient pseudonyms is damaged", fix, path=path, code="E033")
    return salt


def find_salt_file() -> Path:
    """Return the path of the user's salt file."""
    config_home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(config_home) if Path(config_home).is_absolute() else Path.home() / ".config") / "fastcxr" / "salt"


def _create_salt(path: Path) -> None:
    """Create a complete file before it gets its name: if two processes do so, both read the salt of the first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary_path = tempfile.mkstemp(dir=path.parent, prefix=".salt.")  # readable only by its owner
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(temporary_path)  # unlike a rename, this never replaces an existing salt
        sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        Path(temporary_path).unlink(missing_ok=True)
