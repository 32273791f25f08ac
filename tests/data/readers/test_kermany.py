"""Tests for kermany.py."""

import logging

import pytest
from layouts_class_folders import KERMANY_IMAGES, make_kermany, write_gray
from toy_datasets import check_message, write_files

from fastcxr.data.patients import assign_patients
from fastcxr.data.readers.kermany import DATASET
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError


def read(path):
    location = DATASET.detect(path)
    assert location is not None
    return DATASET.read(location, ReaderOptions())


@pytest.mark.parametrize("named", ["download", "download/chest_xray", "download/chest_xray/chest_xray"])
def test_the_splits_are_read_as_given_and_the_copy_is_left_out(tmp_path, caplog, named):
    caplog.set_level(logging.INFO, "fastcxr")
    make_kermany(tmp_path / "download/chest_xray")
    rows = read(tmp_path / named)
    splits = {"train": "train", "val": "valid", "test": "test"}
    expected = {(splits[name], label): n for name, n in KERMANY_IMAGES.items() for label in ("NORMAL", "PNEUMONIA")}
    assert rows.groupby(["split", "label"]).size().to_dict() == expected
    assert rows.index.name == "row"
    assert rows["path"].iloc[0] == "test/NORMAL/IM-0009-0001.jpeg"
    is_copy = named.endswith("chest_xray/chest_xray")
    assert caplog.text.count("hidden or system files") <= 1
    assert ("left out 22 files of the inner folder chest_xray" in caplog.text) is not is_copy


def test_the_patients_are_those_of_the_file_names(tmp_path):
    rows = assign_patients(read(make_kermany(tmp_path / "chest_xray")))
    assert rows["patient"].nunique() == 22
    assert set(rows["patient_origin"]) == {"kermany", "im"}


@pytest.mark.parametrize("change", ["size", "missing", "more"])
def test_an_inner_folder_with_other_files_is_an_error(tmp_path, change):
    root = make_kermany(tmp_path / "chest_xray")
    file = root / "chest_xray/train/NORMAL/IM-0001-0001.jpeg"
    if change == "size":
        file.write_bytes(file.read_bytes() + b"x")
    elif change == "missing":
        file.unlink()
    else:
        write_gray(file.with_name("IM-0100-0001.jpeg"), 100)
    with pytest.raises(DataError, match="inner folder chest_xray differs from the outer one in 1 file ") as caught:
        read(root)
    assert "IM-0" in check_message(caught.value)


def test_other_split_folders_are_not_detected(tmp_path):
    names = [f"{split}/{label}/a.png" for split in ("train", "test") for label in ("NORMAL", "PNEUMONIA")]
    assert DATASET.detect(write_files(tmp_path / "own", *names)) is None
    merged = make_kermany(tmp_path / "chest_xray")
    write_files(merged, "train/COVID19/a.png")  # a later collection with a third class
    assert DATASET.detect(merged) is None
    assert DATASET.detect(tmp_path) is None
    assert DATASET.detect(merged / "train") is None
    assert DATASET.detect(merged / "train/NORMAL/IM-0001-0001.jpeg") is None
