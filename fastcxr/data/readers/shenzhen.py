"""Reader of two tuberculosis datasets of the National Library of Medicine: Shenzhen and Montgomery County.

Jaeger S, Candemir S, Antani S, Wang YX, Lu PX, Thoma G. Two public chest X-ray datasets for computer-aided screening of
pulmonary diseases. Quantitative Imaging in Medicine and Surgery, 2014; 4(6):475-477.

Access: free, see https://doi.org/10.3978/j.issn.2223-4292.2014.11.20

The label is the last digit of the file name: 0 normal, 1 tuberculosis. Sex and age are in a text file per image, below
ClinicalReadings/, in two forms: "male 45yrs" with variations (Shenzhen), and "Patient's Sex: F" (Montgomery). The rest
of the text, the findings, is not read into any output.

Traps:
- A reading of Montgomery may name another image of the same patient ("same pt as MCUCXR_0162_1"). Both images get
  one patient; every other image is a patient.
- Mask folders, such as ManualMask/, have files of the same names. They are left out.
- TBX11K contains both datasets in imgs/extra.
"""

import logging
import os
import re
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.demographics import cap_age
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import DOCUMENTED_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import assign_images, find_location
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import FRAME_INDEX, to_text

log = logging.getLogger("fastcxr")
IMAGE_FOLDER, READING_FOLDER = "CXR_png", "ClinicalReadings"
LABEL_BY_DIGIT = {"0": "Normal", "1": "Tuberculosis"}
TITLES = {"shenzhen": "Shenzhen", "montgomery": "Montgomery County"}
IMAGE_NAMES = {"shenzhen": re.compile(r"CHNCXR_\d{4}_([01])"), "montgomery": re.compile(r"MCUCXR_\d{4}_([01])")}
SEX_PATTERN = re.compile(r"(?:^\s*(?=(?:fe)?mal)|patient's sex:\s*)([fm])", re.IGNORECASE)  # also "femal"
AGE_PATTERN = re.compile(r"(?:^\s*(?:fe)?male?\W*|patient's age:\s*)(\d{1,3})\s*([ymd]?)", re.IGNORECASE)
SAME_PATIENT_PATTERN = re.compile(r"same (?:pt|patient) as (MCUCXR_\d{4}_[01])")
MAX_ENTRIES = 20  # names of the image folder that the detection reads


def _read_nlm(location: Path, options: ReaderOptions, *, name: str) -> pd.DataFrame:
    """Return one row per image in CXR_png/ whose name gives its label; see PublicDataset."""
    index = FileIndex(location)
    files = [path for path in map(PurePosixPath, index.paths) if path.parts[:-1] == (IMAGE_FOLDER,)]
    digits = {path: match[1] for path in files if (match := IMAGE_NAMES[name].fullmatch(path.stem))}
    if not digits:
        fix = f"Copy the images to {IMAGE_FOLDER}/ under their published names"
        raise InputMissingError("0 images with a label in their name", fix, path=location / IMAGE_FOLDER, code="E002")
    stems = [path.stem for path in digits]
    readings = [_read_text(location / READING_FOLDER / f"{stem}.txt") for stem in stems]
    rows = pd.DataFrame({
        "label": [LABEL_BY_DIGIT[digit] for digit in digits.values()],
        "patient": _link_patients(dict(zip(stems, readings, strict=True))),
        "sex": [_parse_sex(text) for text in readings],
        "age": [_parse_age(text) for text in readings],
    }).apply(to_text).rename_axis(FRAME_INDEX)  # fmt: skip
    if n_unread := int(rows[["sex", "age"]].isna().any(axis=1).sum()):
        log.info("%s: %s without sex or age in %s/", TITLES[name], pluralize(n_unread, "image"), READING_FOLDER)
    return assign_images(rows, pd.Series(list(map(str, digits)), rows.index), index)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise DataError(problem, "Check the permissions and the disk", path=path, code="E026") from error


def _parse_sex(text: str) -> str | None:
    match = SEX_PATTERN.search(text)
    return match[1].upper() if match else None


def _parse_age(text: str) -> str | None:
    """Return an age in the form of DICOM, such as 045Y, 016M or 064D; without a unit it is in years."""
    match = AGE_PATTERN.search(text)
    return cap_age(f"{int(match[1]):03d}{match[2].upper() or 'Y'}") if match else None


def _link_patients(readings: dict[str, str]) -> list[str]:
    """Return the patient of each image: its first image, of those that the readings link."""
    pairs = [(stem, other) for stem, text in readings.items() for other in SAME_PATIENT_PATTERN.findall(text)]
    patients = {stem: stem for stem in [*readings, *(other for _, other in pairs)]}
    for pair in pairs:
        first, second = sorted(patients[stem] for stem in pair)
        patients = {stem: first if patient == second else patient for stem, patient in patients.items()}
    return [patients[stem] for stem in readings]


def _has_images(folder: Path, name: str) -> bool:
    """Return whether the first files of CXR_png/ have the names of the dataset."""
    if not (folder / IMAGE_FOLDER).is_dir():
        return False
    with os.scandir(folder / IMAGE_FOLDER) as entries:
        return any(IMAGE_NAMES[name].fullmatch(Path(entry.name).stem) for entry in islice(entries, MAX_ENTRIES))


def _detect(path: Path, *, name: str) -> Path | None:
    inner = (IMAGE_FOLDER, READING_FOLDER)
    return find_location(path, partial(_has_images, name=name), inner=inner)


def _describe(name: str, n_images: int) -> PublicDataset:
    prefix = IMAGE_NAMES[name].pattern.partition("_")[0]
    return PublicDataset(
        name=name,
        title=TITLES[name],
        required=f"{IMAGE_FOLDER}/ with files such as {prefix}_0001_0.png",
        detect=partial(_detect, name=name),
        read=partial(_read_nlm, name=name),
        labels=", ".join(LABEL_BY_DIGIT.values()),
        n_images=n_images,
        counts_from=DOCUMENTED_COUNTS,
        page="https://doi.org/10.3978/j.issn.2223-4292.2014.11.20",
        access="free",
        citation="Jaeger et al., Quantitative Imaging in Medicine and Surgery, 2014",
        files={f"{IMAGE_FOLDER}/{prefix}_*.png": "images", f"{READING_FOLDER}/{prefix}_*.txt": "sex and age"},
        overlaps={"tbx11k": "its folder imgs/extra contains the images"},
    )


SHENZHEN = _describe("shenzhen", 662)
MONTGOMERY = _describe("montgomery", 138)
