"""Codes of findings and of the facts in a DICOM result: standard ones where the meaning is the same, else private ones.

The standard codes are those of SNOMED CT and of DICOM (PS3.16). A class or finding without one, such as `Hernia` of
NIH ChestX-ray14 (a hernia of any organ), has a code of the private scheme 99FASTCXR that is derived from its name.
"""

import hashlib
import re

from pydicom.sr.coding import Code

SCHEME, SCHEME_NAME = "99FASTCXR", "fastcxr"  # private schemes begin with 99 (PS3.16, 8)
MAX_VALUE_LENGTH, MAX_MEANING_LENGTH = 16, 64  # characters of the VR SH, bytes of the VR LO
OWN_PREFIX, HASH_PREFIX = "FCX_", "FCX#"  # of the codes of facts, and of hashed names

# by name in lower case, with words separated by one space
FINDING_CODES = {
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "bacterial pneumonia": ("53084003", "SCT", "Bacterial pneumonia"),
    "cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "covid 19": ("840539006", "SCT", "COVID-19"),
    "edema": ("19242006", "SCT", "Pulmonary edema"),
    "emphysema": ("87433001", "SCT", "Pulmonary emphysema"),
    "fibrosis": ("51615001", "SCT", "Pulmonary fibrosis"),
    "fracture": ("125605004", "SCT", "Fracture of bone"),
    "infiltration": ("112121", "DCM", "Infiltrate"),
    "interstitial lung disease": ("233703007", "SCT", "Interstitial lung disease"),
    "lung opacity": ("112001", "DCM", "Opacity"),
    "mass": ("4147007", "SCT", "Mass"),
    "nodule": ("27925004", "SCT", "Nodule"),
    "normal": ("17621005", "SCT", "Normal"),
    "pleural effusion": ("60046008", "SCT", "Pleural effusion"),
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
    "pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "pulmonary tuberculosis": ("154283005", "SCT", "Pulmonary tuberculosis"),
    "tuberculosis": ("56717001", "SCT", "Tuberculosis"),
    "viral pneumonia": ("75570004", "SCT", "Viral pneumonia"),
}
SYNONYMS = {
    "covid": "covid 19",
    "covid19": "covid 19",
    "effusion": "pleural effusion",
    "ild": "interstitial lung disease",
    "infiltrate": "infiltration",
    "opacity": "lung opacity",
    "pulmonary edema": "edema",
    "pulmonary emphysema": "emphysema",
    "pulmonary fibrosis": "fibrosis",
    "tb": "tuberculosis",
}


def find_code(label: str) -> Code:
    """Return the code of a class or finding."""
    name = " ".join(re.split(r"[\W_]+", label.casefold())).strip()
    if standard := FINDING_CODES.get(SYNONYMS.get(name, name)):
        return Code(*standard)
    return Code(make_private_value(label), SCHEME, shorten_meaning(label))


def make_private_value(label: str) -> str:
    """Return the name as a code value if it is allowed as one, else a hash of it: different names, different values."""
    is_allowed = re.fullmatch(r"[!-\[\]-~]([ -\[\]-~]*[!-\[\]-~])?", label) and len(label) <= MAX_VALUE_LENGTH
    if is_allowed and not label.startswith((OWN_PREFIX, HASH_PREFIX)):
        return label
    return HASH_PREFIX + hashlib.sha256(label.encode("utf-8", "surrogateescape")).hexdigest()[:12].upper()


def shorten_meaning(text: str) -> str:
    """Return a text of at most 64 bytes without control characters and backslashes.

    The standard allows 64 characters of any length; validators such as dciodvfy count bytes.
    """
    text = clean_value(text).strip() or "unnamed"
    if len(text.encode()) <= MAX_MEANING_LENGTH:
        return text
    return text.encode()[: MAX_MEANING_LENGTH - len("…".encode())].decode(errors="ignore") + "…"


def clean_value(text: str) -> str:
    """Return a text with a question mark for each character that a DICOM value cannot have."""
    return "".join(c if c.isprintable() and c != "\\" and not "\ud800" <= c <= "\udfff" else "?" for c in text)


def make_fact_code(name: str, meaning: str) -> Code:
    """Return the private code of a fact that no standard code states exactly."""
    return Code(OWN_PREFIX + name, SCHEME, meaning)


PROBABILITY = Code("122157", "DCM", "Probability")
NO_UNITS = Code("1", "UCUM", "no units")
YES, NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")
PRESENT, ABSENT = Code("52101004", "SCT", "Present"), Code("272519000", "SCT", "Absent")
CHEST_RADIOGRAPH = Code("36554-4", "LN", "XR Chest Single View")  # as in IHE RAD Imaging Diagnostic Report
COMMENT = Code("121106", "DCM", "Comment")
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")
THRESHOLD = make_fact_code("THRESHOLD", "Decision threshold")
DECISION = make_fact_code("DECISION", "Decision")
REACHED = make_fact_code("REACHED", "Threshold reached")
NOT_REACHED = make_fact_code("NOT_REACHED", "Threshold not reached")
NO_DECISION = make_fact_code("NO_DECISION", "No decision: out-of-distribution image")
PREDICTED = make_fact_code("PREDICTED", "Predicted class")
IN_DISTRIBUTION = make_fact_code("IN_DIST", "In distribution")
OOD_SCORE = make_fact_code("OOD_SCORE", "Out-of-distribution score, above 1 if out")
UNCERTAIN = make_fact_code("UNCERTAIN", "Prediction is uncertain")
PRESENCE = make_fact_code("PRESENCE", "Presence of the finding by the model")
