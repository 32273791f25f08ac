"""Tests for detect.py"""

import logging

import pytest
from toy_datasets import check_message, write_file, write_files, write_two_classes

from fastcxr.data.readers.detect import detect_layout
from fastcxr.errors import DataError, FastcxrError, InputMissingError, RecipeError


def refuse(data, layout: str = "auto", kind: type = DataError) -> str:
    with pytest.raises(FastcxrError) as caught:
        detect_layout(data, layout)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def test_class_folders_are_recognised_and_said_aloud(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    write_files(tmp_path, "README.md", ".git/config")
    cohort = detect_layout(tmp_path)
    assert cohort.layout == "folders"
    assert cohort.source == tmp_path.name
    assert [folder.label for folder in cohort.folders] == ["covid", "normal"]
    assert "data format: class folders covid, normal" in caplog.text
    assert "left out beside the images (1): README.md" in caplog.text


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "VAL", "Testing"), ("TRAIN", "validation")])
def test_split_folders_are_recognised_in_every_spelling(tmp_path, names):
    for name in names:
        write_files(tmp_path, f"{name}/covid/{name}.png", f"{name}/normal/{name}.png")
    cohort = detect_layout(tmp_path)
    assert cohort.layout == "split_folders"
    assert {folder.split for folder in cohort.folders} == set(("train", "valid", "test")[: len(names)])
    assert {folder.label for folder in cohort.folders} == {"covid", "normal"}


def test_train_beside_classes_is_an_error_that_names_both_ways_out(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "train/covid/e.png")
    text = refuse(tmp_path)
    assert "FCX-E019" in text
    assert "'train' look like splits, 'covid', 'normal' like classes" in text
    assert "--data-format split_folders" in text
    assert "--data-format folders" in text
    assert [f.path for f in detect_layout(tmp_path, "split_folders").folders] == ["train/covid"]
    assert [f.path for f in detect_layout(tmp_path, "folders").folders] == ["covid", "normal", "train"]


def test_splits_without_class_folders_name_the_table_that_lies_there(tmp_path):
    write_files(tmp_path, "train/a.png", "test/b.png")
    write_file(tmp_path / "meta.csv", "name,Label\n")
    text = refuse(tmp_path)
    assert "no class folders inside 'test', 'train'; meta.csv has the columns 'name', 'Label'" in text
    assert "Sort the images as train/<class>/, or give a CSV with the columns path and label" in text


def test_loose_files_in_a_split_are_said_loudly(tmp_path, caplog):
    write_files(tmp_path, "train/covid/a.png", "train/normal/b.png", "test/c.png")
    detect_layout(tmp_path)
    assert "1 files lie in no class folder and are left out: test/c.png" in caplog.text


def test_the_only_table_in_a_folder_without_class_folders_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_files(tmp_path, "images/a.png")
    write_file(tmp_path / "labels.csv", "Path;Label\n")
    write_file(tmp_path / "other.csv", "x,y\n")
    cohort = detect_layout(tmp_path)
    assert (cohort.layout, cohort.path, cohort.source) == ("csv", tmp_path / "labels.csv", "labels")
    assert "data format: the table labels.csv" in caplog.text
    write_file(tmp_path / "more.csv", "path,label\n")
    assert "several tables with path and label: 'labels.csv', 'more.csv'. Give the right one" in refuse(tmp_path)


def test_class_folders_win_over_a_table_and_say_so_loudly(tmp_path, caplog):
    write_two_classes(tmp_path)
    write_file(tmp_path / "labels.csv", "path,label\n")
    assert detect_layout(tmp_path).layout == "folders"
    assert "labels.csv is left out, though it has the columns path and label: give it as --data" in caplog.text
    assert detect_layout(tmp_path, "csv").path == tmp_path / "labels.csv"


def test_a_layout_that_cannot_be_forced_says_why(tmp_path):
    write_two_classes(tmp_path / "data")
    table = write_file(tmp_path / "a.csv", "path,label\n")
    assert "no folder called train. Sort the images as train/<class>/" in refuse(tmp_path / "data", "split_folders")
    assert "no table with the columns path and label. Give a CSV" in refuse(tmp_path / "data", "csv")
    assert "a file, and the data format folders needs a folder" in refuse(table, "folders")
    assert "(did you mean 'folders'?). Choose one of auto" in refuse(tmp_path / "data", "folder", RecipeError)


def test_a_missing_folder_suggests_its_neighbour(tmp_path):
    write_two_classes(tmp_path / "ozturk")
    text = refuse(tmp_path / "osturk", kind=InputMissingError)
    assert "FCX-E001" in text
    assert f"no such file or folder (did you mean '{tmp_path}/ozturk'?). Check the name given as --data" in text
    assert "FCX-E001" in refuse(write_files(tmp_path, "file") / "file" / "x", kind=InputMissingError)


def test_an_empty_folder_and_loose_images_say_what_is_wanted(tmp_path):
    text = refuse(tmp_path, kind=InputMissingError)
    assert "FCX-E002" in text
    assert "0 images. Sort the images into one folder a class, or give a CSV" in text
    assert "0 images in class folders; 2 files lie loose" in refuse(
        write_files(tmp_path, "a.png", "b.png"), kind=InputMissingError
    )


def test_a_folder_too_high_points_to_the_one_below(tmp_path):
    write_two_classes(tmp_path / "download")
    text = refuse(tmp_path)
    assert "FCX-E003" in text
    assert "one class only, the folder 'download', with folders inside ('covid', 'normal')" in text
    assert f"give --data {tmp_path}/download" in text


def test_one_folder_and_a_table_without_labels_name_its_columns(tmp_path):
    write_files(tmp_path, "images/a.png")
    write_file(tmp_path / "metadata.csv", "filename,finding\n")
    assert "one class only, the folder 'images'; metadata.csv has the columns 'filename', 'finding'" in refuse(tmp_path)


def test_an_image_given_as_data_is_told_so(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and more")
    assert "a PNG image, and data is a folder of images or a table" in refuse(tmp_path / "a.png")
