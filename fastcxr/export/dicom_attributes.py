"""Attributes that a DICOM result has in common with its source image, with values that validators accept.

Only the attributes in COPIED_TAGS are read: those that identify the patient, the study and the image. Real headers have
values that the standard does not allow, such as a PatientAge of "62". Such a value is corrected if its meaning is
certain; otherwise the attribute is empty. No value is quoted in an error, because it may identify a patient.
"""

import importlib
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom import Dataset
from pydicom.config import IGNORE
from pydicom.uid import UID

from fastcxr.data.imaging.dicom import read_header
from fastcxr.data.imaging.dicom_classes import RADIOGRAPH_CLASSES
from fastcxr.data.imaging.memory import FileInMemory, MemoryImage
from fastcxr.data.imaging.sniff import DICOM_SUFFIXES, HEAD_BYTES, detect_format, open_file, suppress_decoder_warnings
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.errors import DataError, ImageError
from fastcxr.io.packages import require_packages

MAX_NAME_LENGTH, MAX_NAME_GROUPS, MAX_NAME_PARTS = 64, 3, 5  # PN: characters per group, groups, components
MAX_UID_LENGTH = 64
UID_ROOT = "2.25."  # of the UIDs that are derived from a UUID (PS3.5, B.2)
SEX_WORDS = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "O": "O", "OTHER": "O"}
OTHER_CLASS, OTHER_CLASS_FIX = "the SOP class of the DICOM header is not one of radiographs", "Leave other images out"
OTHER_EXPORT_FIX = "Export the image again with its UIDs, or leave it out"
UID_TAGS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
ImageFile = str | MemoryImage | FileInMemory


def clean_text(value: str, max_length: int) -> str:
    """Return an identifier without control characters; empty if it is longer than the standard allows.

    A backslash separates values, so the text is empty too. A cut identifier would be that of another person or study.
    """
    text = "".join(character for character in value if character.isprintable()).strip()
    return "" if len(text) > max_length or "\\" in text else text


def clean_person_name(value: str) -> str:
    """Return a PN: at most 3 groups of at most 64 characters and 5 components; an old-style name gets a caret.

    A name without a caret is the family name: `DOE JOHN` and `DOE JOHN^` are equal by PS3.5, 6.2.1.1.
    """
    text = "".join(" " if character == "\\" else character for character in value if character.isprintable())
    groups = []
    for group in text.split("=")[:MAX_NAME_GROUPS]:
        parts = [part.strip() for part in group.split("^")]
        parts = [*parts[: MAX_NAME_PARTS - 1], " ".join(parts[MAX_NAME_PARTS - 1 :])]
        name = "^".join(parts).rstrip("^ ")
        name = name if "^" in name or not name else f"{name[: MAX_NAME_LENGTH - 1]}^"
        groups.append(name[:MAX_NAME_LENGTH])
    return "=".join(groups).rstrip("=")


def clean_age(value: str) -> str:
    """Return an AS such as 062Y; a number without a unit is in years. Empty if it is not an age."""
    match = re.fullmatch(r"0*(\d{1,3})\s*([DWMY]?)", value.strip().upper())
    return f"{int(match[1]):03d}{match[2] or 'Y'}" if match else ""


def clean_sex(value: str) -> str:
    """Return M, F or O; empty for another value."""
    return SEX_WORDS.get(value.strip().upper(), "")


def clean_date(value: str) -> str:
    """Return a DA, YYYYMMDD; empty if it is not a date. Dots and hyphens between the parts are removed."""
    match = re.fullmatch(r"(\d{4})([.-]?)(\d{2})\2(\d{2})", value.strip())
    text = match[1] + match[3] + match[4] if match else ""
    try:
        return text and datetime.strptime(text, "%Y%m%d").strftime("%Y%m%d").zfill(8)
    except ValueError:
        return ""


def clean_time(value: str) -> str:
    """Return a TM, HHMMSS.FFFFFF or its beginning; empty if it is not a time. Colons are removed."""
    match = re.fullmatch(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d)(\.\d{1,6})?)?)?\.?", value.strip())
    return "".join(part or "" for part in match.groups()) if match else ""


def clean_answer(value: str) -> str:
    """Return YES or NO; empty for another value."""
    return value.strip().upper() if value.strip().upper() in ("YES", "NO") else ""


COPIED_TAGS: dict[str, Callable[[str], str]] = {
    "PatientName": clean_person_name,
    "PatientID": lambda value: clean_text(value, 64),
    "IssuerOfPatientID": lambda value: clean_text(value, 64),
    "PatientBirthDate": clean_date,
    "PatientSex": clean_sex,
    "PatientAge": clean_age,
    "StudyDate": clean_date,
    "StudyTime": clean_time,
    "StudyID": lambda value: clean_text(value, 16),
    "AccessionNumber": lambda value: clean_text(value, 16),
    "BurnedInAnnotation": clean_answer,
    "LossyImageCompression": lambda value: value.strip() if value.strip() in ("00", "01") else "",
}
IMAGE_TAGS = ("BurnedInAnnotation", "LossyImageCompression")  # of COPIED_TAGS; the others are of patient and study
# left out if empty; the others are required by the standard, and may be empty
OPTIONAL_TAGS = ("IssuerOfPatientID", "PatientAge", *IMAGE_TAGS)


def read_source(file: str, path: str) -> Dataset:
    """Return the attributes of a source image that its results refer to, with valid values.

    Args:
        file: the DICOM file.
        path: the name in errors.

    Raises DataError if the file has no valid UIDs, or is not a DICOM file.
    """
    header = read_header(file, [*UID_TAGS, *COPIED_TAGS])
    if header is None:
        raise DataError("cannot be read as DICOM", OTHER_EXPORT_FIX, path=path, code="E722")
    if problem := find_uid_problem(header):
        fix = OTHER_CLASS_FIX if problem == OTHER_CLASS else OTHER_EXPORT_FIX
        raise DataError(problem, fix, path=path, code="E722")
    source = Dataset()
    with suppress_decoder_warnings():
        for name in UID_TAGS:
            setattr(source, name, UID(str(header[name].value).strip()))
        for name, clean in COPIED_TAGS.items():
            value = clean(_to_text(header.get(name)))
            if value or name not in OPTIONAL_TAGS:
                setattr(source, name, value)
    return source


def _to_text(value: object) -> str:
    """Return the value of an element as text; several values are joined by the separator of DICOM."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return "" if value is None else str(value)
    return str(value) if hasattr(value, "family_name") else "\\".join(map(str, value))  # type: ignore[arg-type]


def find_uid_problem(header: Dataset) -> str:
    """Return why a result cannot refer to the image with this header; empty if it can."""
    for name in UID_TAGS:
        value = str(header.get(name) or "").strip()
        if not value:
            return f"the DICOM header has no {name}, which a result must refer to"
        # IGNORE: pydicom would quote the value in a warning
        if len(value) > MAX_UID_LENGTH or value[0] not in "012" or not UID(value, IGNORE).is_valid:
            return f"{name} of the DICOM header is not a valid UID, and a result must refer to it"
    if str(header.SOPClassUID) not in RADIOGRAPH_CLASSES:
        return OTHER_CLASS
    return ""


def list_lost_tags(header: Dataset) -> list[str]:
    """Return the names of the tags of patient and study whose values a result has not, or not completely."""
    lost = []
    with suppress_decoder_warnings():
        for name, clean in COPIED_TAGS.items():
            value = _to_text(header.get(name))
            if name not in IMAGE_TAGS and _count_characters(clean(value)) < _count_characters(value, name):
                lost.append(name)
    return sorted(lost, key=lambda name: name != "PatientID")


def _count_characters(value: str, name: str = "PatientName") -> int:
    """Return the number of letters and digits; of another value than a name at most 1, since it is not cut."""
    n_characters = sum(map(str.isalnum, value))
    return n_characters if name == "PatientName" else min(n_characters, 1)


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What the header of a source image means for its results.

    Attributes:
        problem: why the image has no results; empty if it has, or if it is unreadable, which its row states.
        sop_uid: its SOPInstanceUID; may be empty.
        lost_tags: see list_lost_tags.
    """

    problem: str = ""
    sop_uid: str = ""
    lost_tags: tuple[str, ...] = ()


def examine_file(file: ImageFile) -> SourceFacts:
    """Return the facts on a file or an image in memory."""
    if not isinstance(file, str):
        return SourceFacts(problem="an image in memory has no study that a DICOM result could refer to")
    if parse_reference(file):
        return SourceFacts(problem="a packed image has no study that a DICOM result could refer to")
    header = read_header(file, [*UID_TAGS, *COPIED_TAGS, "Rows"])
    if header is None:
        return SourceFacts(problem=_find_format_problem(file))
    if "Rows" not in header:  # there is no readable image
        return SourceFacts()
    lost_tags, sop_uid = tuple(list_lost_tags(header)), str(header.get("SOPInstanceUID") or "")
    return SourceFacts(problem=find_uid_problem(header), sop_uid=sop_uid, lost_tags=lost_tags)


def _find_format_problem(file: str) -> str:
    """Return why a file that is not read as DICOM has no results; empty if it is a damaged DICOM file."""
    try:
        with open_file(file) as opened:
            file_format = detect_format(opened.read(HEAD_BYTES))
    except ImageError:
        file_format = None
    if file_format not in (None, "DICOM"):
        return f"a {file_format} file has no study that a DICOM result could refer to"
    is_named_dicom = file_format == "DICOM" or file.lower().endswith(DICOM_SUFFIXES)
    return "" if is_named_dicom else "not a DICOM file: there is no study that a DICOM result could refer to"


def make_uid(*names: str) -> str:
    """Return the UID that is derived from these texts: equal texts give equal UIDs."""
    return f"{UID_ROOT}{uuid.uuid5(uuid.NAMESPACE_OID, '|'.join(names)).int}"


@dataclass(frozen=True)
class NewInstance:
    """UID of a new DICOM object, and its number in its series, from 1."""

    uid: str
    number: int


def import_highdicom() -> Any:
    """Return the module highdicom. Raises PackageError if it is not installed."""
    require_packages(("highdicom",), "a DICOM result")
    return importlib.import_module("highdicom")
