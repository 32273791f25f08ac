"""Tests for patients.py"""

import uuid

import pandas as pd
import pytest
from sample_images import make_dicom, make_reference, save_dicom
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.patients import assign_patients
from fastcxr.errors import DataError, FastcxrError, RecipeError

PICTURE = make_reference()


@pytest.fixture(autouse=True)
def salt(monkeypatch):
    monkeypatch.setenv("FASTCXR_SALT", "a secret of the tests")


def name(*paths: str, patient: list | None = None, **choices) -> list[tuple[str, str]]:
    rows = pd.DataFrame({"path": list(paths), "file": [f"/nowhere/{path}" for path in paths]})
    rows = rows if patient is None else rows.assign(patient=patient)
    rows = assign_patients(rows, **choices)
    return list(zip(rows["patient"], rows["patient_origin"], strict=True))


def name_files(folder, **choices) -> pd.DataFrame:
    files = sorted(folder.iterdir())
    return assign_patients(pd.DataFrame({"path": [f.name for f in files], "file": list(map(str, files))}), **choices)


@pytest.mark.parametrize(
    ("path", "patient", "origin"),
    [
        ("No_findings/00000013_005.jpg", "00000013", "nih"),
        ("00030805_000.png", "00030805", "nih"),
        ("00000013_005 (1).png", "00000013", "nih"),
        ("00000013_005_flipped.png", "00000013", "nih"),
        ("person112_bacteria_539.jpeg", "person112", "kermany"),
        ("train/x/person1_virus_6.jpeg", "person1", "kermany"),
        ("IM-0115-0001.jpeg", "IM-0115", "im"),
        ("IM-0533-0001-0002.jpeg", "IM-0533", "im"),
        ("NORMAL2-IM-0383-0001.jpeg", "NORMAL2-IM-0383", "im"),
    ],
)
def test_file_names_of_known_collections_hold_the_patient(path, patient, origin):
    assert name(path) == [(patient, origin)]


@pytest.mark.parametrize(
    "path",
    [
        "20200123_001.png",
        "00000013.png",
        "00000013_0055.png",
        "x00000013_005.png",
        "00000013_005a.png",
        "000000013_005.png",
        "00000013_005/a.png",
        "person_bacteria_1.png",
        "person112_covid_539.png",
        "myperson112_bacteria_539.png",
        "IM-0115.png",
        "SIM-0115-0001.png",
        "ABNORMAL2-IM-0383-0001.png",
        "00012345-0000-4000-8000-000000000000.png",
        "covid-19-pneumonia-28.png",
    ],
)
def test_other_names_do_not_match_by_accident(path):
    assert name(path) == [(f"image:{path}", "image")]


def test_no_uuid_is_a_patient():
    paths = [f"{uuid.UUID(int=i * 7919**9 % 2**128)}.png" for i in range(500)]
    assert {origin for _, origin in name(*paths)} == {"image"}


def test_sources_are_asked_in_their_order(tmp_path):
    table = write_file(tmp_path / "p.csv", "filename,patient\nk/00000001_000.png,t1\nk/00000002_000.png,t2\n")
    paths = [f"k/0000000{i}_000.png" for i in range(1, 5)] + ["k/x.png"]
    named = name(*paths, patient=["c1", " ", None, "NA", ""], table=table, regex=r"(0000003)_")
    assert named == [
        ("c1", "column"), ("t2", "table"), ("0000003", "regex"), ("00000004", "nih"), ("image:k/x.png", "image")
    ]  # fmt: skip


def test_numbers_in_the_column_are_text():
    assert name("a.png", "b.png", patient=["2.0", "00000013"]) == [("2", "column"), ("00000013", "column")]


def test_an_image_that_an_earlier_manifest_took_as_its_own_stays_its_own():
    assert name("a.png", "b.png", patient=["image:a.png", "7"]) == [("image:a.png", "image"), ("7", "column")]


def test_the_users_pattern_takes_its_named_group_or_its_first():
    assert name("c/p7/1.png", regex="(p[0-9])/([0-9])") == [("p7", "regex")]
    assert name("c/p7/1.png", regex="(c)/(?P<patient>p[0-9])") == [("p7", "regex")]
    assert name("c/p7/1.png", "c/x.png", regex="/(?:p([0-9])/)?")[1] == ("image:c/x.png", "image")


def refuse(*paths: str, kind: type, **choices) -> str:
    with pytest.raises(FastcxrError) as caught:
        name(*paths, **choices)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def test_a_pattern_that_cannot_work_says_why():
    assert "is no regular expression" in refuse("a.png", kind=RecipeError, regex="(")
    text = refuse("a.png", kind=RecipeError, regex="p[0-9]+")
    assert "has no group. Put the part that is the patient in brackets, e.g. '(p[0-9]+)'" in text
    text = refuse("c/a.png", kind=DataError, regex="(p[0-9]+)")
    assert "finds none in 1 paths, such as 'c/a.png'. Mend it: it is searched in the path below" in text


def test_the_patient_of_a_dicom_file_is_written_as_a_hash_only(tmp_path):
    for file, who in {"a.dcm": "ZZTESTID", "b.png": "ZZTESTID", "1.2.84": "ZZOTHER"}.items():
        save_dicom(tmp_path / file, make_dicom(PICTURE, PatientID=who))
    write_files(tmp_path, "c.png", "d.dcm")
    rows = name_files(tmp_path).set_index("path")
    assert rows["patient_origin"].to_dict() == {
        "1.2.84": "dicom", "a.dcm": "dicom", "b.png": "dicom", "c.png": "image", "d.dcm": "image"
    }  # fmt: skip
    assert rows.loc["a.dcm", "patient"] == rows.loc["b.png", "patient"] != rows.loc["1.2.84", "patient"]
    assert not rows.drop(columns="file").to_csv().count("ZZ")


def test_another_tag_can_name_the_patient(tmp_path):
    save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, PatientID="1", StudyID="s"))
    save_dicom(tmp_path / "b.dcm", make_dicom(PICTURE, PatientID="2", StudyID="s"))
    assert name_files(tmp_path)["patient"].nunique() == 2
    assert name_files(tmp_path, tag="StudyID")["patient"].nunique() == 1
    with pytest.raises(DataError, match="holds AccessionNumber. Leave --patient-tag out, or name a tag that"):
        name_files(tmp_path, tag="AccessionNumber")


def test_what_an_anonymizer_left_is_no_patient(tmp_path, caplog):
    for i, who in enumerate(("Anonymous", "0000", "N/A", "", "P7")):
        save_dicom(tmp_path / f"{i}.dcm", make_dicom(PICTURE, PatientID=who))
    assert name_files(tmp_path)["patient_origin"].tolist() == ["image"] * 4 + ["dicom"]
    assert "3 DICOM files hold a placeholder for their patient" in caplog.text


def test_no_salt_is_made_where_no_dicom_file_is(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTCXR_SALT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    name("a.png")
    assert not (tmp_path / "config").exists()
