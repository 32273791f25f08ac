"""Tests of the assignment of patients to images."""

import uuid

import pandas as pd
import pytest
from sample_images import make_dicom, make_reference, save_dicom
from toy_datasets import check_message, write_file, write_files

from fastcxr.data import patients
from fastcxr.data.patients import assign_patients, suggest_regex
from fastcxr.errors import DataError, FastcxrError, RecipeError

IMAGE = make_reference()


@pytest.fixture(autouse=True)
def salt(monkeypatch):
    monkeypatch.setenv("FASTCXR_SALT", "a secret of the tests")


def assign(*paths: str, patient: list | None = None, **choices) -> list[tuple[str, str]]:
    rows = pd.DataFrame({"path": list(paths), "file": [f"/nowhere/{path}" for path in paths]})
    rows = rows if patient is None else rows.assign(patient=patient)
    rows = assign_patients(rows, **choices)
    return list(zip(rows["patient"], rows["patient_origin"], strict=True))


def assign_files(folder, **choices) -> pd.DataFrame:
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
        ("train/patient00001/study1/view1_frontal.jpg", "patient00001", "chexpert"),
        ("edema/patient64741/study12/view2_lateral_flipped.png", "patient64741", "chexpert"),
        ("files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg", "10000032", "mimic"),
        ("p19999987/s58621812/a.jpg", "19999987", "mimic"),
    ],
)
def test_paths_of_known_collections_contain_the_patient(path, patient, origin):
    assert assign(path) == [(patient, origin)]


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
        "patient00001/study1/a.png",
        "patient1/study1/view1_frontal.jpg",
        "mypatient00001/study1/view1_frontal.jpg",
        "p10/p10000032/a.jpg",
        "p10/p1000003/s50414267/a.jpg",
        "p10000032/s50414267.jpg",
    ],
)
def test_other_paths_do_not_match(path):
    assert assign(path) == [(f"image:{path}", "image")]


def test_a_uuid_is_not_a_patient():
    paths = [f"{uuid.UUID(int=i * 7919**9 % 2**128)}.png" for i in range(500)]
    assert {origin for _, origin in assign(*paths)} == {"image"}


def test_origins_have_a_fixed_precedence(tmp_path):
    table = write_file(tmp_path / "p.csv", "filename,patient\nk/00000001_000.png,t1\nk/00000002_000.png,t2\n")
    paths = [f"k/0000000{i}_000.png" for i in range(1, 5)] + ["k/x.png"]
    named = assign(*paths, patient=["c1", " ", None, "NA", ""], table=table, regex=r"(0000003)_")
    assert named == [
        ("c1", "column"), ("t2", "table"), ("0000003", "regex"), ("00000004", "nih"), ("image:k/x.png", "image")
    ]  # fmt: skip


def test_numbers_in_the_patient_column_are_text():
    assert assign("a.png", "b.png", patient=["2.0", "00000013"]) == [("2", "column"), ("00000013", "column")]


def test_an_image_without_a_patient_in_an_earlier_manifest_has_no_patient():
    assert assign("a.png", "b.png", patient=["image:a.png", "7"]) == [("image:a.png", "image"), ("7", "column")]


def test_the_user_pattern_uses_its_named_group_or_its_first():
    assert assign("c/p7/1.png", regex="(p[0-9])/([0-9])") == [("p7", "regex")]
    assert assign("c/p7/1.png", regex="(c)/(?P<patient>p[0-9])") == [("p7", "regex")]
    assert assign("c/p7/1.png", "c/x.png", regex="/(?:p([0-9])/)?")[1] == ("image:c/x.png", "image")


def catch_error(*paths: str, kind: type, **choices) -> str:
    with pytest.raises(FastcxrError) as caught:
        assign(*paths, **choices)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def test_an_unusable_pattern_is_rejected_with_the_reason():
    assert "is not a regular expression" in catch_error("a.png", kind=RecipeError, regex="(")
    text = catch_error("a.png", kind=RecipeError, regex="p[0-9]+")
    assert "has no group. Put the part that names the patient in brackets, e.g. '(p[0-9]+)'" in text
    text = catch_error("c/a.png", kind=DataError, regex="(p[0-9]+)")
    assert "matches none of 1 paths, such as 'c/a.png'. Correct the pattern: it is searched in the path below" in text


def test_the_patient_of_a_dicom_file_is_stored_only_as_a_hash(tmp_path):
    for file, patient_id in {"a.dcm": "ZZTESTID", "b.bin": "ZZTESTID", "1.2.84": "ZZOTHER"}.items():
        save_dicom(tmp_path / file, make_dicom(IMAGE, PatientID=patient_id))
    write_files(tmp_path, "c.png", "d.dcm")
    rows = assign_files(tmp_path).set_index("path")
    assert rows["patient_origin"].to_dict() == {
        "1.2.84": "dicom", "a.dcm": "dicom", "b.bin": "dicom", "c.png": "image", "d.dcm": "image"
    }  # fmt: skip
    assert rows.loc["a.dcm", "patient"] == rows.loc["b.bin", "patient"] != rows.loc["1.2.84", "patient"]
    assert not rows.drop(columns="file").to_csv().count("ZZ")


def test_files_with_an_image_suffix_are_not_opened_to_look_for_a_dicom_patient(tmp_path, monkeypatch):
    monkeypatch.setattr(patients, "open_file", lambda file: pytest.fail(f"opened {file}"))
    write_files(tmp_path, "a.png", "b.JPG", "c.jpeg")
    assert assign_files(tmp_path)["patient_origin"].tolist() == ["image"] * 3


def test_another_dicom_tag_may_identify_the_patient(tmp_path):
    save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, PatientID="1", StudyID="s"))
    save_dicom(tmp_path / "b.dcm", make_dicom(IMAGE, PatientID="2", StudyID="s"))
    assert assign_files(tmp_path)["patient"].nunique() == 2
    assert assign_files(tmp_path, tag="StudyID")["patient"].nunique() == 1
    with pytest.raises(DataError, match="has the tag AccessionNumber. Leave out `patient_tag`, or pass a tag of"):
        assign_files(tmp_path, tag="AccessionNumber")


def test_placeholders_of_anonymization_tools_are_not_patients(tmp_path, caplog):
    for i, patient_id in enumerate(("Anonymous", "0000", "N/A", "", "P7")):
        save_dicom(tmp_path / f"{i}.dcm", make_dicom(IMAGE, PatientID=patient_id))
    assert assign_files(tmp_path)["patient_origin"].tolist() == ["image"] * 4 + ["dicom"]
    assert "3 DICOM files have a placeholder instead of a patient" in caplog.text


def test_no_salt_is_created_without_dicom_files(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTCXR_SALT")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assign("a.png")
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize(
    ("paths", "folder", "pattern"),
    [
        (["a/p1/x.png", "b/p2/x.png"], "p1", "^[^/]+/([^/]+)/"),
        (["a/p1/study1/x.png", "b/p2/study1/x.png"], "p1", "^[^/]+/([^/]+)/"),
        (["a/images/p1/x.png", "b/masks/p2/x.png"], "p1", "^[^/]+/[^/]+/([^/]+)/"),
        (["a/images_001/images/case 7/x.png"], "case 7", "^[^/]+/[^/]+/[^/]+/([^/]+)/"),
    ],
)
def test_folders_in_a_class_are_suggested_as_patients(paths, folder, pattern):
    text = f". If folders such as {folder!r} are patients, pass `patient_regex={pattern!r}`"
    assert suggest_regex(pd.Series(paths), "folders") == text
    assert "^[^/]+/" + pattern[1:] in suggest_regex("train/" + pd.Series(paths), "split_folders")


@pytest.mark.parametrize(
    "folder",
    [
        "s50414267",
        "study1",
        "study_2",
        "images_001",
        "images",
        "masks",
        "PNG",
        "train",
        "train_images",
        "Test",
        "part 3",
    ],
)
def test_a_study_a_part_and_an_image_folder_are_never_suggested_as_patients(folder):
    assert suggest_regex(pd.Series([f"a/{folder}/x.png", f"b/{folder}/y.png"]), "folders") == ""
    assert suggest_regex(pd.Series([f"a/{folder}/x.png", "b/p1/y.png"]), "folders") == ""


def test_nothing_is_suggested_without_folders_in_the_classes_and_for_tables():
    assert suggest_regex(pd.Series(["a/x.png"]), "folders") == ""
    assert suggest_regex(pd.Series(["a/p1/x.png"]), "csv") == ""
