"""Tests for covid_radiography.py, and for the same layout as class folders."""

import logging

import pytest
from layouts_class_folders import RADIOGRAPHY_LABELS, make_radiography
from toy_datasets import check_message, write_files

from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.covid_radiography import DATASET
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError


@pytest.mark.parametrize("named", ["", "COVID-19_Radiography_Dataset"])
def test_the_four_classes_are_read_and_the_masks_are_counted(tmp_path, caplog, named):
    caplog.set_level(logging.INFO, "fastcxr")
    root = make_radiography(tmp_path / "COVID-19_Radiography_Dataset")
    assert DATASET.detect(tmp_path / named) == root
    rows = DATASET.read(root, ReaderOptions())
    assert rows.groupby("label").size().to_dict() == dict.fromkeys(RADIOGRAPHY_LABELS, 5)
    assert all("/images/" in path for path in rows["path"])
    assert rows.index.name == "row"
    assert "left out 20 files in mask folders: COVID/masks, Lung_Opacity/masks" in caplog.text


def test_a_copy_of_the_dataset_inside_it_is_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    root = make_radiography(tmp_path / "data")
    copy = make_radiography(root / "COVID-19_Radiography_Dataset")
    assert DATASET.detect(root) == root
    rows = read_manifest(root)
    assert rows.groupby("label").size().to_dict() == dict.fromkeys(RADIOGRAPHY_LABELS, 5)
    assert "left out 20 files of the folder COVID-19_Radiography_Dataset, a copy" in caplog.text
    write_files(copy, "Normal/images/other.png")
    with pytest.raises(DataError, match="differs from the outer one in 1 file"):
        read_manifest(root)


def test_further_classes_are_not_left_out(tmp_path):
    root = make_radiography(tmp_path / "own")
    write_files(root, "Tuberculosis/a.png")
    assert DATASET.detect(root) is None


def test_the_masks_of_any_class_folders_are_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    root = make_radiography(tmp_path / "renamed", 3)
    (root / "COVID").rename(root / "Covid")
    write_files(root, "Lung masks/a.png", "Lung masks/b.png")
    manifest = read_manifest(root)
    assert manifest.groupby("label").size().to_dict() == dict.fromkeys(
        ("Covid", "Lung_Opacity", "Normal", "Viral Pneumonia"), 3
    )
    assert "left out 2 files in mask folders: Lung masks" in caplog.text
    assert "left out 12 files in mask folders: Covid/masks" in caplog.text


def test_one_class_folder_named_alone_is_an_error(tmp_path):
    root = make_radiography(tmp_path)
    with pytest.raises(DataError, match="'images' is a name of files") as caught:
        read_manifest(root / "COVID")
    assert "FCX-E041" in check_message(caught.value)
