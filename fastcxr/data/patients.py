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

from fastcxr.data.imaging.sniff import HEAD, may_be_dicom, open_file
from fastcxr.errors import DataError, ImageError, OutputError, RecipeError
from fastcxr.io.files import sync_folder
from fastcxr.io.tables import NOBODY, TEXT, find_column, is_blank, name_lines, name_some, read_table, texts

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
PATIENT_NAMES = ("patient", "patientid", "subject", "subjectid", "pid")
FILE_NAMES = ("path", "filename", "file", "filepath", "imagename", "imageindex", "xrayimagename", "image", "imageid")
# how closely a name of the table must be an image's, the strictest first
WAYS: tuple[Callable[[str], str], ...] = (
    str,
    lambda path: str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path,
    lambda path: PurePosixPath(path).name,
    lambda path: PurePosixPath(path).stem,  # collections were published as PNG and copied as JPEG
)
VARIABLE = "FASTCXR_SALT"


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
    from fastcxr.data.imaging.dicom import read_patient_tag  # pydicom takes its time, and most cohorts have no DICOM

    return read_patient_tag(file, tag)


def _is_dicom(file: str) -> bool:
    try:
        with open_file(file) as handle:
            return may_be_dicom(file, handle.read(HEAD))
    except (ImageError, OSError):  # whoever reads the image says what is wrong with it
        return False


def join_patients(paths: pd.Series, table: str | Path, files: pd.Series | None = None) -> pd.Series:
    """The patient of each path by whole path or, where that is unique, by file name, then whatever its suffix.

    `files`: where the images lie on this machine, for a table that names absolute paths.

    Raises DataError for a table that gives one file two patients, or that knows none of the images.
    """
    listed = _read_patients(Path(table))
    paths = paths.map(_normalize)
    found = pd.Series(index=paths.index, dtype=TEXT)
    if files is not None:
        found = texts(files.map(_normalize).map(_choose_patients(listed, str)))
    for way in WAYS:
        keys, patients = paths.map(way), _choose_patients(listed, way)
        unique = ~keys.duplicated(keep=False)
        found = found.where(found.notna() | ~unique, keys.map(patients))
    found = texts(found)
    _refuse_strangers(found, paths, listed, Path(table))
    _warn_ambiguous(found, paths, listed, Path(table))
    log.info("%s images have their patient from %s", f"{int(found.notna().sum()):,}", Path(table).name)
    return found


def clean_ids(ids: pd.Series) -> pd.Series:
    """Identifiers as text: blanks are missing, and 2.0, as programs write 2 in a column with blanks, is 2."""
    ids = texts(ids)
    return texts(ids.where(~is_blank(ids, NOBODY)).str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True))


def _read_patients(path: Path) -> pd.DataFrame:
    """Columns name and patient, blank rows left out; the index is the line."""
    table = read_table(path)
    columns = [_find(table, names, path) for names in (FILE_NAMES, PATIENT_NAMES)]
    listed = table[columns].set_axis(["name", "patient"], axis=1)
    listed = listed.assign(name=listed["name"].map(_normalize), patient=clean_ids(listed["patient"]))
    listed = listed[listed["patient"].notna() & ~is_blank(listed["name"])]
    counts = listed.groupby("name")["patient"].transform("nunique")
    if (counts > 1).any():
        torn = listed.index[counts > 1]
        what = f"{listed.loc[torn, 'name'].nunique():,} files have more than one patient ({name_lines(torn)})"
        raise DataError(what, "Give every file one patient", path=path, code="E016")
    return listed


def _find(table: pd.DataFrame, names: tuple[str, ...], path: Path) -> str:
    column = find_column(table.columns, names)
    if column is None:
        wanted = {"path": "filename"}.get(names[0], names[0])
        what = f"no column called {wanted}; there are {name_some(map(repr, table.columns))}"
        fix = f"Rename the column that holds it to {wanted}"
        raise DataError(what, fix, path=path, code="E011")
    return column


def _normalize(path: str) -> str:
    return unicodedata.normalize("NFC", path.strip().replace("\\", "/").removeprefix("./"))


def _choose_patients(listed: pd.DataFrame, way: Callable[[str], str]) -> pd.Series:
    """One patient a name; names that stand for several patients are left out."""
    groups = listed["patient"].groupby(listed["name"].map(way))
    return groups.first()[groups.nunique() == 1]


def _refuse_strangers(found: pd.Series, paths: pd.Series, listed: pd.DataFrame, table: Path) -> None:
    if found.notna().any():
        return
    there = f"{listed['name'].iloc[0]!r}, the images {paths.iloc[0]!r}" if len(listed) else "nothing"
    what = f"none of its file names belongs to an image (it says {there})"
    raise DataError(what, "Give a table of the same files: columns filename and patient", path=table, code="E016")


def _warn_ambiguous(found: pd.Series, paths: pd.Series, listed: pd.DataFrame, table: Path) -> None:
    name = WAYS[2]
    spare = set(listed["name"].map(name)) - set(paths[found.notna()].map(name))
    if (torn := found.isna() & paths.map(name).isin(spare)).any():
        text = "%s gives names that several images share; these have no patient from it: %s. Give whole paths"
        log.warning(text, table.name, name_some(paths[torn]))


def hide_patient(identifier: str, salt: bytes) -> str:
    """The same name for the same identifier under the same salt."""
    hashed = hmac.new(salt, identifier.strip().encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"dicom-{name_salt(salt)}-{hashed.hexdigest()[:16]}"


def name_salt(salt: bytes) -> str:
    """Four letters that tell one salt from another and nothing about it."""
    return hashlib.sha256(salt).hexdigest()[:4]


def read_salt() -> bytes:
    """The salt of the environment, or this person's own, made on first use."""
    if given := os.environ.get(VARIABLE, "").strip():
        return given.encode("utf-8", "surrogateescape")
    path = find_salt_file()
    try:
        if not path.exists():
            _make_salt(path)
        salt = path.read_bytes().strip()
    except OSError as error:
        what = f"the salt that hides patients cannot be kept here ({error.strerror})"
        raise OutputError(what, f"Set {VARIABLE} to a secret of your own", path=path) from error
    if len(salt) < 32:
        what = "the salt that hides patients is damaged"
        raise DataError(what, f"Restore the file, set {VARIABLE}, or remove it to begin anew", path=path, code="E016")
    return salt


def find_salt_file() -> Path:
    """Where this person's salt is kept."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".config") / "fastcxr" / "salt"


def _make_salt(path: Path) -> None:
    """Complete before it has its name: of two processes at once the first wins, and both read the same salt."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".salt.")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)  # unlike a rename it never replaces a salt that came first
        sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink(missing_ok=True)
