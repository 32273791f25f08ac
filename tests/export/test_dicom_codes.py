"""Codes of findings: standard ones that pydicom's dictionaries confirm, and private ones within the length limits."""

import pytest
from pydicom.sr._concepts_dict import concepts

from fastcxr.export import dicom_codes as module
from fastcxr.export.dicom_codes import FINDING_CODES, SCHEME, SYNONYMS, Code, find_code

# codes that are in no context group of DICOM: from the SNOMED CT browser, and from an example of IHE (LOINC)
NOT_IN_DICOM = {
    "46621007", "53084003", "8186001", "95436008", "840539006", "87433001", "51615001", "125605004", "233703007",
    "233604007", "154283005", "56717001", "75570004", "36554-4",
}  # fmt: skip
CODES = [Code(*row) for row in FINDING_CODES.values()]
FACTS = [value for value in vars(module).values() if isinstance(value, Code)]


@pytest.mark.parametrize("code", [*CODES, *FACTS], ids=lambda code: code.meaning)
def test_a_standard_code_is_in_the_dictionaries_of_pydicom_with_its_meaning(code):
    rows = [rows for rows in concepts.get(code.scheme_designator, {}).values() if code.value in rows]
    if code.scheme_designator == SCHEME or code.value in NOT_IN_DICOM:
        assert not rows
    else:
        assert code.meaning.lower() in {row[code.value][0].lower() for row in rows}


def test_no_two_facts_have_the_same_code_and_all_fit_into_their_vr():
    assert len({(code.scheme_designator, code.value) for code in FACTS}) == len(FACTS)
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in [*CODES, *FACTS])
    assert set(SYNONYMS.values()) <= set(FINDING_CODES)


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("Covid-19", "840539006"), ("COVID", "840539006"), ("Pleural Effusion", "60046008"), ("Effusion", "60046008"),
        ("Lung_Opacity", "112001"), ("PNEUMONIA", "233604007"), ("Edema", "19242006"), ("ILD", "233703007"),
        ("No Finding", "No Finding"), ("Hernia", "Hernia"), ("no pneumonia", "no pneumonia"),
    ],
)  # fmt: skip
def test_a_label_has_the_code_of_its_meaning(label, value):
    assert find_code(label).value == value


LABELS = [
    "x" * 16, "x" * 17, "x" * 70, "x" * 71, "x" * 69 + "y", "a b", "a_b", "a-b", " a b", "a b ", "a\\b", "a?b", "a\nb",
    "Übergroß", "肺炎", "肺炎 " * 20, "FCX_DECISION", "FCX#000000000000", "\udcff", "😀", "Pneumonia 2",
]  # fmt: skip


def test_different_labels_have_different_private_codes_within_the_limits():
    found = [find_code(label) for label in LABELS]
    assert len({code.value for code in found}) == len(LABELS)
    for code in found:
        assert code.scheme_designator == SCHEME and code.value.isascii() and code.value.isprintable()
        assert 0 < len(code.value) <= 16 and code.value == code.value.strip() and "\\" not in code.value
        assert 0 < len(code.meaning.encode()) <= 64 and "\\" not in code.meaning and code.meaning.isprintable()
    assert not {code.value for code in found} & {code.value for code in FACTS}
