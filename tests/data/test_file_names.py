"""File names that identify a patient are found by the header of the file, and replaced by salted hashes."""

import pandas as pd
import pytest
from sample_images import make_dicom, make_reference, save_dicom

from fastcxr.data.file_names import contains_date, contains_name, find_identifying_paths, hash_name_columns
from fastcxr.data.manifest import read_manifest
from fastcxr.data.patients import hash_text, make_salt_id


@pytest.mark.parametrize(
    ("text", "patient_name"),
    [
        ("a/Doe_John.dcm", "DOE^JOHN"),
        ("johndoe2.dcm", "Doe^John"),
        ("DoeChest.dcm", "Doe^John"),
        ("muller-1.dcm", "Müller^Anna"),
        ("wu_li.dcm", "Wu^Li"),
        ("wuli.dcm", "Wu^Li"),
        ("王小东.dcm", "Wang^Xiaodong=王^小东"),
    ],
)
def test_a_name_in_any_order_case_and_form_is_found(text, patient_name):
    assert contains_name(text, patient_name)


@pytest.mark.parametrize(
    ("text", "patient_name"),
    [
        ("case7.dcm", "Doe^John"),
        ("adoex.dcm", "Doe^John"),
        ("li.dcm", "Wu^Li"),
        ("test/patient1.dcm", "TEST^PATIENT"),
        ("abcd-4e49.dcm", "abcd-4e49"),
        ("a.dcm", ""),
    ],
)
def test_other_words_placeholders_and_pseudonyms_are_no_names(text, patient_name):
    assert not contains_name(text, patient_name)


@pytest.mark.parametrize(
    "text", ["a_19500131.dcm", "31.01.1950", "01/31/1950/a.dcm", "1950-01-31", "31011950", "310150.dcm", "50-01-31"]
)
def test_a_date_is_found_in_any_order_with_any_separator(text):
    assert contains_date(text, "19500131")


@pytest.mark.parametrize("text", ["1195001311", "1.31.01.50.2", "19500201", "1950"])
def test_other_numbers_and_the_parts_of_a_uid_are_no_date(text):
    assert not contains_date(text, "19500131")
    assert not contains_date(text, "")


def write_named(folder, *names: str) -> list[str]:
    header = {"PatientName": "ZZDOE^ZZJOHN", "PatientBirthDate": "19500131"}
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_dicom(folder / name, make_dicom(make_reference(seed=number), **header))
    return [str(folder / name) for name in names]


def test_a_manifest_warns_of_identifying_paths_once_without_a_name(tmp_path, caplog):
    write_named(tmp_path, "a/zzdoe.dcm", "a/2.dcm", "b/1950-01-31.dcm", "b/4.dcm")
    read_manifest(tmp_path)
    assert "FCX-W215 2 images: the path contains the patient name or the birth date" in caplog.text
    assert "zzdoe" not in caplog.text.casefold() and "1950-01-31" not in caplog.text


def test_the_folder_of_a_file_is_part_of_its_name(tmp_path):
    files = write_named(tmp_path, "zzjohn/1.dcm", "other/1.dcm")
    table = pd.DataFrame({"source": ["zzjohn", "other"], "path": "1.dcm", "file": files})
    assert list(find_identifying_paths(table)) == [0]


def test_hashes_are_equal_for_equal_paths_and_salts_and_differ_otherwise(monkeypatch):
    table = pd.DataFrame({"source": "ward", "path": ["a.png", "b.png", " b.png"], "patient": ["image:a.png", "p", "q"]})
    monkeypatch.setenv("FASTCXR_SALT", "one")
    first, again = hash_name_columns(table), hash_name_columns(table)
    monkeypatch.setenv("FASTCXR_SALT", "two")
    other = hash_name_columns(table)
    assert first["path"].tolist() == again["path"].tolist()
    assert first["path"][0] == f"file-{make_salt_id(b'one')}-{hash_text('a.png', b'one')}", "its owner can repeat it"
    assert len({*first["path"], *other["path"], *first["source"]}) == 7
    assert first["patient"].tolist() == [f"image:{first['path'][0]}", "p", "q"]
