"""Tests for shenzhen.py."""

import logging

import pytest
from detection import check_detection, check_no_detection
from layouts_tuberculosis import make_montgomery, make_shenzhen
from toy_datasets import check_message, write_two_classes

from fastcxr.data.demographics import parse_age, parse_sex
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.shenzhen import MONTGOMERY, SHENZHEN
from fastcxr.errors import InputMissingError


def read(dataset, path):
    return dataset.read(dataset.detect(path), ReaderOptions())


def test_labels_come_from_the_names_and_masks_are_left_out(tmp_path):
    rows = read(SHENZHEN, make_shenzhen(tmp_path))
    assert rows["label"].tolist() == ["Normal"] * 3 + ["Tuberculosis"] * 5
    assert rows["path"].iloc[0] == "CXR_png/CHNCXR_0001_0.png"
    assert rows["file"].notna().all()
    assert rows["split"].isna().all()
    assert rows["patient"].tolist() == [path[8:-4] for path in rows["path"]]


def test_sex_and_age_are_read_in_every_spelling(tmp_path):
    rows = read(SHENZHEN, make_shenzhen(tmp_path))
    assert rows["sex"].tolist() == ["M", "F", "F", "M", "F", "M", "F", "M"]
    assert rows["age"].tolist() == ["045Y", "032Y", "024Y", "029Y", "028Y", "016M", "064D", "090Y"]
    assert rows["sex"].map(parse_sex).notna().all() and rows["age"].map(parse_age).notna().all()
    rows = read(MONTGOMERY, make_montgomery(tmp_path))
    assert rows["sex"].fillna("").tolist() == ["F", "", "M", "M", "M", "M"]
    assert rows["age"].tolist() == ["027Y", "005Y", "084Y", "085Y", "049Y", "049Y"]


def test_images_that_a_reading_names_as_the_same_patient_have_one_patient(tmp_path):
    rows = read(MONTGOMERY, make_montgomery(tmp_path))
    names = ["0001_0", "0002_0", "0113_1", "0113_1", "0162_1", "0162_1"]
    assert rows["patient"].tolist() == [f"MCUCXR_{name}" for name in names]
    assert rows["label"].tolist() == ["Normal"] * 2 + ["Tuberculosis"] * 4


def test_references_in_both_directions_and_chains_link_all_images(tmp_path):
    readings = make_montgomery(tmp_path) / "MontgomerySet" / "ClinicalReadings"
    (readings / "MCUCXR_0001_0.txt").write_text("normal (same pt as MCUCXR_0166_1)")
    (readings / "MCUCXR_0162_1.txt").write_text("active (same pt as MCUCXR_0166_1 and same pt as MCUCXR_0999_1)")
    rows = read(MONTGOMERY, tmp_path)
    assert rows["patient"].iloc[[0, 4, 5]].unique().tolist() == ["MCUCXR_0001_0"]


@pytest.mark.parametrize(("dataset", "make"), [(SHENZHEN, make_shenzhen), (MONTGOMERY, make_montgomery)])
def test_the_text_of_the_readings_is_in_no_column(tmp_path, caplog, dataset, make):
    with caplog.at_level(logging.DEBUG, "fastcxr"):
        rows = read(dataset, make(tmp_path))
    for word in ("PTB", "upper field", "film", "REPORT", "bilateral"):
        assert not rows.map(lambda cell, word=word: word in str(cell)).any(axis=None)
        assert word not in caplog.text


def test_missing_and_unreadable_readings_are_counted(tmp_path, caplog):
    folder = make_shenzhen(tmp_path) / "ChinaSet_AllFiles" / "ClinicalReadings"
    (folder / "CHNCXR_0001_0.txt").unlink()
    (folder / "CHNCXR_0002_0.txt").write_bytes(b"\xff\xfe nothing known")
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(SHENZHEN, tmp_path)
    assert rows["sex"].isna().sum() == rows["age"].isna().sum() == 2
    assert "Shenzhen: 2 images without sex or age in ClinicalReadings/" in caplog.text


def test_images_without_published_names_are_an_error(tmp_path):
    (tmp_path / "CXR_png").mkdir()
    with pytest.raises(InputMissingError, match="0 images with a label in their name") as caught:
        SHENZHEN.read(tmp_path, ReaderOptions())
    check_message(caught.value)


def test_the_datasets_are_found_from_each_path_a_user_may_name(tmp_path):
    inner = ("CXR_png", "ClinicalReadings")
    check_detection(SHENZHEN, make_shenzhen(tmp_path / "a"), *inner, location="ChinaSet_AllFiles")
    check_detection(MONTGOMERY, make_montgomery(tmp_path / "b"), *inner, location="MontgomerySet")


def test_other_data_is_not_the_dataset(tmp_path):
    shenzhen = make_shenzhen(tmp_path / "a")
    check_no_detection(MONTGOMERY, shenzhen, shenzhen / "ChinaSet_AllFiles")
    own = write_two_classes(tmp_path / "own")
    masks = make_montgomery(tmp_path / "b") / "MontgomerySet" / "ManualMask"
    for dataset in (SHENZHEN, MONTGOMERY):
        check_no_detection(dataset, own, masks, masks / "leftMask", tmp_path / "absent")
