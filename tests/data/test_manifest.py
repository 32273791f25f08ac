"""Tests of reading, describing and writing manifests."""

import io
import logging
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_datasets import check_message, make_manifest, write_file, write_files, write_two_classes

from fastcxr.data.manifest import MANIFEST_COLUMNS, describe_manifest, drop_unreadable, read_manifest
from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.data.splits import split_by_patient
from fastcxr.errors import DataError, FastcxrError, ImageError, InputMissingError, OutputError, RecipeError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


def catch_error(data, kind: type = DataError, **choices) -> str:
    with pytest.raises(FastcxrError) as caught:
        read_manifest(data, **choices)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def test_class_folders_are_read_into_a_manifest(tmp_path):
    manifest = read_manifest(write_two_classes(tmp_path / "dataset"))
    assert manifest.columns.tolist() == [*MANIFEST_COLUMNS, "file"]
    assert isinstance(manifest.index, pd.RangeIndex)
    assert manifest["path"].tolist() == ["covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png"]
    assert manifest["label"].tolist() == ["covid", "covid", "normal", "normal"]
    assert set(manifest["source"]) == {"dataset"}
    assert manifest["file"].tolist() == [str(tmp_path / "dataset" / path) for path in manifest["path"]]
    assert manifest["patient"].tolist() == [f"image:{path}" for path in manifest["path"]]
    assert set(manifest["patient_origin"]) == {"image"}
    assert manifest[["split", "split_origin"]].isna().all(axis=None)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_no_image_is_opened_to_read_and_split_a_table(tmp_path, monkeypatch, suffix):
    lines = [f"{n}{suffix},{'xy'[n % 2]},p{n // 2},F,0{n}0Y,PA" for n in range(8)]
    write_file(tmp_path / "mine.csv", "\n".join(["path,label,patient,sex,age,view", *lines]))
    for n in range(8):
        (tmp_path / f"{n}{suffix}").write_bytes(bytes(n))
    open_any = io.open

    def open_table(file, *args, **options):
        assert not str(file).endswith(suffix), f"{file} is opened"
        return open_any(file, *args, **options)

    monkeypatch.setattr("builtins.open", open_table)
    monkeypatch.setattr(io, "open", open_table)  # of pathlib
    manifest = split_by_patient(read_manifest(tmp_path / "mine.csv"))
    assert manifest["split"].notna().all() and manifest["view"].tolist() == ["PA"] * 8
    with pytest.raises(AssertionError, match="is opened"):
        (tmp_path / f"0{suffix}").read_bytes()


def test_split_folders_are_read_as_given_splits(tmp_path):
    paths = [f"{split}/{label}/{split}.png" for split in ("train", "val", "test") for label in ("covid", "normal")]
    manifest = read_manifest(write_files(tmp_path, *paths))
    assert manifest["split"].tolist() == ["test", "test", "train", "train", "valid", "valid"]
    assert set(manifest["split_origin"]) == {"given"}
    assert manifest["path"].tolist() == sorted(paths)


def test_a_table_is_read_into_a_manifest_with_its_additional_columns_at_the_end(tmp_path):
    write_two_classes(tmp_path)
    body = (
        "covid/a.png,covid,7,063,\ncovid/b.png,covid,,,hospital\nnormal/c.png,normal,8.0,,\nnormal/d.png,normal,8,,\n"
    )
    manifest = read_manifest(write_file(tmp_path / "mine.csv", "path,label,patient,age,source\n" + body))
    assert manifest.columns.tolist() == [*MANIFEST_COLUMNS, "age", "file"]
    assert manifest["source"].tolist() == ["mine", "hospital", "mine", "mine"]
    assert manifest["patient"].tolist() == ["7", "image:covid/b.png", "8", "8"]
    assert manifest["patient_origin"].tolist() == ["column", "image", "column", "column"]


def test_a_relative_folder_is_read_with_absolute_file_paths(tmp_path, monkeypatch):
    write_two_classes(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path / "dataset")
    manifest = read_manifest(".")
    assert set(manifest["source"]) == {"dataset"}
    assert all(Path(file).is_absolute() and Path(file).exists() for file in manifest["file"])


def test_the_data_folder_is_never_written_to(tmp_path):
    write_two_classes(tmp_path)
    write_file(tmp_path / "p.csv", "filename,patient\na.png,1\nb.png,2\n")
    before = {str(file): file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]}
    drop_unreadable(read_manifest(tmp_path, patient_table=tmp_path / "p.csv"), [])
    assert {str(file): file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]} == before


def test_no_images_one_class_and_a_class_of_one_image_are_rejected(tmp_path):
    text = catch_error(write_files(tmp_path / "a", "covid/", "normal/"), InputMissingError)
    assert "FCX-E002" in text
    assert "0 images. Pass PNG, JPEG, TIFF, BMP or DICOM files in one folder per class" in text
    text = catch_error(write_files(tmp_path / "b", "covid/a.png", "covid/b.png"))
    assert "FCX-E003" in text
    assert "one class only, 'covid'. Pass images of at least two classes" in text
    text = catch_error(write_files(write_two_classes(tmp_path / "c"), "rare/x.png"))
    assert "FCX-E004" in text
    assert "'rare' (1 image of 1 patient). Add images (at least 2, better 20)" in text


def test_a_class_of_one_image_is_accepted_with_given_splits(tmp_path):
    write_files(tmp_path, "train/covid/a.png", "train/normal/b.png", "test/covid/c.png")
    assert len(read_manifest(tmp_path)) == 3
    assert "'rare'" in catch_error(write_files(tmp_path, "test/rare/d.png"))


@pytest.mark.parametrize("similar", ["COVID", "covid ", "co vid", "ｃovid"])
def test_class_names_that_differ_only_in_case_or_spaces_are_rejected(tmp_path, similar):
    write_two_classes(tmp_path)
    write_files(tmp_path, f"{similar}/x.png", f"{similar}/y.png")
    text = catch_error(tmp_path)
    assert "FCX-E006" in text
    assert "only in case, spaces or Unicode normalization" in text
    assert "Give each class one name" in text


def test_class_names_that_differ_only_in_unicode_normalization_are_rejected(tmp_path):
    write_two_classes(tmp_path)
    for form in ("NFC", "NFD"):
        write_files(tmp_path, *(unicodedata.normalize(form, f"pneumonía/{form}{i}.png") for i in range(2)))
    assert "'pneumoni\\u0301a' and 'pneumon\\xeda'" in catch_error(tmp_path)


def test_images_without_any_patient_cause_a_warning(tmp_path, caplog):
    write_files(tmp_path, "covid/p1/a.png", "covid/p2/b.png", "normal/p3/c.png", "normal/p3/d.png")
    manifest = read_manifest(tmp_path)
    assert describe_manifest(manifest) == "2 classes, 4 images"
    assert "no patient identifiers found" in caplog.text
    assert "If folders such as 'p1' are patients, pass `patient_regex='^[^/]+/([^/]+)/'`" in caplog.text
    caplog.clear()
    manifest = read_manifest(tmp_path, patient_regex="^[^/]+/([^/]+)/")
    assert describe_manifest(manifest) == "2 classes, 4 images, 3 patients from the pattern in the path"
    assert not caplog.records


def test_the_description_names_every_origin():
    manifest = make_manifest([("a", "x"), ("a", "y"), ("b", "x"), ("image:y/00003.png", "y")])
    manifest = manifest.assign(patient_origin=["nih", "nih", "table", "image"])
    text = "2 classes, 4 images, 1 patient from the joined table, 1 patient from NIH file names, "
    assert describe_manifest(manifest) == text + "1 image without a patient, treated as a separate patient"


def test_the_description_of_findings_has_their_counts(tmp_path):
    write_files(tmp_path, "a.png", "b.png", "c.png")
    table = write_file(tmp_path / "t.csv", "path,patient,Edema,Mass\na.png,1,1,1\nb.png,1,1,0\nc.png,2,-1,\n")
    summary = describe_manifest(read_manifest(table, only_test=True))
    assert summary == "2 findings, 3 images, 2 patients from the patient column"
    assert summary.counts.to_dict("index") == {
        "Edema": {"present": 2, "absent": 0, "blank": 0, "uncertain": 1, "unknown": 0, "patients": 1},
        "Mass": {"present": 1, "absent": 1, "blank": 0, "uncertain": 0, "unknown": 1, "patients": 1},
    }
    assert ">finding</th>" in summary._repr_html_()


def test_dropping_unreadable_images_fails_if_a_class_becomes_too_small(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    manifest = read_manifest(write_files(write_two_classes(tmp_path), "covid/e.png"))

    def bad(*paths):
        return [ImageError("empty", "Remove it", path=tmp_path / path, code="E101") for path in paths]

    kept = drop_unreadable(manifest, bad("covid/a.png"))
    assert kept["path"].tolist() == ["covid/b.png", "covid/e.png", "normal/c.png", "normal/d.png"]
    assert kept.index.tolist() == [0, 1, 2, 3]
    assert "left out 1 of 5 images" in caplog.text
    assert len(manifest) == 5
    with pytest.raises(DataError, match="FCX-E004.*too few images for train and test in class 'normal'.*at least 2"):
        drop_unreadable(manifest, bad("normal/c.png"))
    with pytest.raises(DataError, match="no readable image is left of 'normal'. Repair images"):
        drop_unreadable(manifest, bad("normal/c.png", "normal/d.png"))


def test_a_written_manifest_is_read_unchanged(tmp_path):
    write_files(
        tmp_path, "covid/a b.png", "covid/new\nline.png", "covid/back\rward.png", "normal/☢️.png", "normal/'q\",.png"
    )
    write_files(tmp_path, "normal/00000013_005.png")
    manifest = read_manifest(tmp_path)
    manifest = manifest.assign(
        split=["train", "test", None, "valid", None, "train"], age=[None, "063", "NA", "1.0", "", "2"]
    )
    write_manifest(manifest, tmp_path / "manifest.csv")
    written = read_written_manifest(tmp_path / "manifest.csv")
    expected = manifest.drop(columns="file").assign(age=manifest["age"].replace("", None)).astype(written.dtypes)
    pd.testing.assert_frame_equal(written, expected)
    assert str(tmp_path) not in (tmp_path / "manifest.csv").read_text()
    assert "00000013" in set(written["patient"])


@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_arbitrary_text_in_a_manifest_is_read_unchanged(tmp_path_factory, cells):
    manifest = make_manifest([(patient, "x") for patient, _ in cells]).assign(note=[note for _, note in cells])
    path = tmp_path_factory.mktemp("run") / "manifest.csv"
    write_manifest(manifest, path)
    written = read_written_manifest(path)
    assert written["patient"].tolist() == manifest["patient"].tolist()
    assert written["note"].fillna("").tolist() == manifest["note"].tolist()


def test_a_manifest_has_the_same_bytes_in_parts_of_rows(tmp_path, monkeypatch):
    manifest = make_manifest([("a", "x"), ("b", "y"), ("c\r", "x")])
    manifest = manifest.assign(finding_Edema=pd.array([1, None, -1], "Int8"))
    write_manifest(manifest, tmp_path / "whole.csv")
    monkeypatch.setattr("fastcxr.data.manifest_file.ROWS_AT_A_TIME", 1)
    write_manifest(manifest, tmp_path / "parts.csv")
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert read_written_manifest(tmp_path / "parts.csv")["finding_Edema"].tolist() == [1, pd.NA, -1]


def test_a_manifest_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "manifest.csv"
    write_manifest(make_manifest([("a", "x")]), path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_manifest(make_manifest([("b", "y")]), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.csv"]


def test_a_table_that_is_not_a_manifest_is_rejected(tmp_path):
    with pytest.raises(
        DataError, match="not a manifest of fastcxr: .*'source'.* are missing. Pass the manifest.csv of a run"
    ):
        read_written_manifest(write_file(tmp_path / "manifest.csv", "path,label\n"))


@pytest.mark.parametrize("data", ["", ["", "x"], []])
def test_an_empty_name_is_not_the_current_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(write_two_classes(tmp_path))
    assert "Pass a folder, a CSV or a packed dataset" in catch_error(data, RecipeError)


def test_the_ozturk_dataset_is_described_with_and_without_a_patient_table(real_data):
    manifest = read_manifest(real_data / "ozturk")
    assert describe_manifest(manifest) == (
        "3 classes, 1,124 images, 682 patients from NIH file names, 124 images without a patient, each treated as a "
        "separate patient"
    )
    manifest = read_manifest(real_data / "ozturk", patient_table=real_data / "cohen/metadata.csv")
    assert describe_manifest(manifest) == (
        "3 classes, 1,124 images, 65 patients from the joined table, 682 patients from NIH file names, "
        "30 images without a patient, each treated as a separate patient"
    )
    assert (manifest["patient_origin"] == "table").sum() == 94


def test_coronahack_file_names_and_table_give_the_same_patients(real_data, tmp_path):
    table = pd.read_csv(real_data / "coronahack/Chest_xray_Corona_Metadata.csv", dtype=str)
    folder = (real_data / "coronahack").absolute()
    table = table.assign(path=f"{folder}/" + table["Dataset_type"].str.lower() + "/" + table["X_ray_image_name"])
    table_path = tmp_path / "coronahack.csv"
    table.assign(label=table["Label"], split=table["Dataset_type"])[["path", "label", "split"]].to_csv(table_path)
    manifest = read_manifest(table_path)
    named = manifest["patient_origin"].isin(["kermany", "im"])
    assert named.sum() > 4000
    assert (manifest["patient"] == table["patient_id"])[named].all()
    assert (manifest["split"] == table["Dataset_type"].str.lower()).all()
