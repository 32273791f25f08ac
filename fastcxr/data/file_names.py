"""File names that identify a patient: find them by the DICOM header of the file, and replace them by salted hashes."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pandas as pd

from fastcxr.data.imaging.sniff import DICOM_SUFFIXES, Remarks, log_counted_warnings
from fastcxr.data.patients import OWN_PATIENT_PREFIX, hash_text, make_salt_id, read_salt
from fastcxr.io.tables import to_text

Header: TypeAlias = Mapping[str, str | None]
NAME_TAGS = ("PatientName", "PatientBirthDate")
IDENTIFYING_CODE = "W215"
IDENTIFYING_TEXT = (
    "the path contains the patient name or the birth date of the DICOM header. "
    "Rename the file, or hash the names in predictions, before you share outputs"
)
MIN_WORD_LETTERS = 3  # shorter names such as Li count only together with the other names of the patient
NOT_NAMES = {"anon", "anonymous", "anonymised", "anonymized", "name", "none", "patient", "phantom", "test", "unknown"}


def has_dicom_name(file: str) -> bool:
    """Return whether the file name is usual for DICOM: checking the content would open every file."""
    suffix = os.path.splitext(file)[1].casefold()
    return suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")


def find_identifying_paths(table: pd.DataFrame, headers: Sequence[Header | None] | None = None) -> dict[int, Remarks]:
    """Return a remark on each row whose source or path contains the patient name or birth date of its DICOM header.

    `headers`: the NAME_TAGS of each row, None for a row without DICOM header, if they have been read.
    """
    sources = table["source"] if "source" in table else [""] * len(table)
    shown_names = [f"{source}/{path}" for source, path in zip(sources, table["path"], strict=True)]
    headers = read_name_tags(table["file"].tolist()) if headers is None else headers
    return {
        row: Remarks({IDENTIFYING_CODE: IDENTIFYING_TEXT})
        for row, (name, header) in enumerate(zip(shown_names, headers, strict=True))
        if header and is_identifying(name, header)
    }


def read_name_tags(files: Sequence[str]) -> list[Header | None]:
    """Return the NAME_TAGS of each file with a usual DICOM name, None for other files."""
    # images in memory have no file name
    may_be_dicom = [isinstance(file, str) and has_dicom_name(file) for file in files]
    if not any(may_be_dicom):
        return [None] * len(may_be_dicom)
    from fastcxr.data.imaging.dicom import read_tags  # importing pydicom is slow, and most datasets have no DICOM files

    return [
        read_tags(file, NAME_TAGS) if is_dicom else None for file, is_dicom in zip(files, may_be_dicom, strict=True)
    ]


def is_identifying(name: str, header: Header) -> bool:
    """Return whether a name of a file contains the patient name or the birth date of its header."""
    return contains_name(name, header["PatientName"] or "") or contains_date(name, header["PatientBirthDate"] or "")


def warn_identifying_paths(remarks: Mapping[int, Remarks]) -> None:
    """Log the number of identifying paths, and none of them, because run.json stores the log."""
    log_counted_warnings(("", remark) for remark in remarks.values())


def contains_name(text: str, patient_name: str) -> bool:
    """Return whether a text contains a name of the patient as a word, or all names joined, as in DoeJohn.

    A patient name with a digit is a pseudonym. Case and accents are ignored.
    """
    names = [word for word in _split_words(patient_name) if word not in NOT_NAMES]
    if not names or any(character.isdigit() for character in patient_name):
        return False
    words = {*_split_words(text), *_split_words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text))}
    joined = {first + second for first in names for second in names if first != second}
    long_names = {name for name in names if len(name) >= MIN_WORD_LETTERS or not name.isascii()}
    return bool(words & (long_names | joined)) or (len(names) > 1 and words.issuperset(names))


def _split_words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.findall(r"[^\W\d_]+", plain.casefold())


def contains_date(text: str, date: str) -> bool:
    """Return whether a text contains a DICOM date (YYYYMMDD) in a usual order, with or without separators."""
    match = re.fullmatch(r"(\d\d)(\d\d)(\d\d)(\d\d)", date)
    if not match:
        return False
    century, year, month, day = match.groups()
    # a year of two digits only without points, because the parts of a UID look the same
    forms = [(f"{century}{year}", "[-_. /]?"), (year, "[-_ ]?")]
    orders = [
        separator.join(parts)
        for written_year, separator in forms
        for parts in ((written_year, month, day), (day, month, written_year), (month, day, written_year))
    ]
    return re.search(rf"(?<!\d)(?:{'|'.join(orders)})(?!\d)", text) is not None


def hash_name_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with salted hashes in the columns source and path, and in patients that are named by a path.

    A hash is `file-SALT-HASH`: 4 digits that differ between salts, and the first 16 hexadecimal digits of the
    HMAC-SHA256 of the text. The salt is that of patient pseudonyms (FASTCXR_SALT, or the user's file), therefore only
    its owner can repeat the hashes of the known paths, and join the rows to the files.
    """
    salt = read_salt()
    salt_id = make_salt_id(salt)
    hashed = {
        name: to_text(table[name].map(lambda text: f"file-{salt_id}-{hash_text(str(text), salt)}"))
        for name in ("source", "path")
        if name in table
    }
    if "patient" in table:
        is_own = table["patient"].fillna("").str.startswith(OWN_PATIENT_PREFIX)
        hashed["patient"] = to_text(table["patient"].mask(is_own, OWN_PATIENT_PREFIX + hashed["path"]))
    return table.assign(**hashed)
