"""Tests for detect.py."""

import logging

import pytest
from toy_datasets import check_message, write_file, write_files, write_two_classes

from fastcxr.data.readers.detect import detect_layout
from fastcxr.errors import DataError, FastcxrError, InputMissingError, RecipeError


def get_error(data, layout: str = "auto", kind: type = DataError) -> str:
    with pytest.raises(FastcxrError) as caught:
        detect_layout(data, layout)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def test_class_folders_are_detected_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    write_files(tmp_path, "README.md", ".git/config")
    dataset = detect_layout(tmp_path)
    assert dataset.layout == "folders"
    assert dataset.source == tmp_path.name
    assert [folder.label for folder in dataset.folders] == ["covid", "normal"]
    assert "data format: class folders covid, normal" in caplog.text
    assert "skipped 1 other files and folders: README.md" in caplog.text


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "VAL", "Testing"), ("TRAIN", "validation")])
def test_split_folders_are_detected_in_every_spelling(tmp_path, names):
    for name in names:
        write_files(tmp_path, f"{name}/covid/{name}.png", f"{name}/normal/{name}.png")
    dataset = detect_layout(tmp_path)
    assert dataset.layout == "split_folders"
    assert {folder.split for folder in dataset.folders} == set(("train", "valid", "test")[: len(names)])
    assert {folder.label for folder in dataset.folders} == {"covid", "normal"}


def test_split_and_class_folders_together_are_an_error(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "train/covid/e.png")
    text = get_error(tmp_path)
    assert "FCX-E019" in text
    assert "both splits ('train') and classes ('covid', 'normal')" in text
    assert "`data_format='split_folders'`" in text
    assert "`data_format='folders'`" in text
    assert [f.path for f in detect_layout(tmp_path, "split_folders").folders] == ["train/covid"]
    assert [f.path for f in detect_layout(tmp_path, "folders").folders] == ["covid", "normal", "train"]


def test_the_error_for_splits_without_class_folders_names_the_table(tmp_path):
    write_files(tmp_path, "train/a.png", "test/b.png")
    write_file(tmp_path / "meta.csv", "name,Label\n")
    text = get_error(tmp_path)
    assert "no class folders inside 'test', 'train'; meta.csv has the columns 'name', 'Label'" in text
    assert "Sort the images as train/<class>/, or pass a CSV with the columns path and label" in text


def test_files_outside_class_folders_are_a_warning(tmp_path, caplog):
    write_files(write_two_classes(tmp_path / "train").parent, "test/e.png")
    detect_layout(tmp_path)
    assert "skipped 1 file outside class folders: test/e.png" in caplog.text


def test_the_only_table_in_a_folder_without_class_folders_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_files(tmp_path, "images/a.png")
    write_file(tmp_path / "labels.csv", "Path;Label\n")
    write_file(tmp_path / "other.csv", "x,y\n")
    dataset = detect_layout(tmp_path)
    assert (dataset.layout, dataset.path, dataset.source) == ("csv", tmp_path / "labels.csv", "labels")
    assert "data format: the table labels.csv" in caplog.text
    write_file(tmp_path / "more.csv", "path,label\n")
    assert "several tables with path and label: 'labels.csv', 'more.csv'. Pass one of them" in get_error(tmp_path)


def test_class_folders_take_precedence_over_a_table_with_a_warning(tmp_path, caplog):
    write_two_classes(tmp_path)
    write_file(tmp_path / "labels.csv", "path,label\n")
    assert detect_layout(tmp_path).layout == "folders"
    assert "labels.csv is ignored although it has the columns path and label: pass it as `data`" in caplog.text
    assert detect_layout(tmp_path, "csv").path == tmp_path / "labels.csv"


def test_a_given_format_that_does_not_fit_is_an_error(tmp_path):
    write_two_classes(tmp_path / "data")
    table = write_file(tmp_path / "a.csv", "path,label\n")
    assert "no folder called train. Sort the images as train/<class>/" in get_error(tmp_path / "data", "split_folders")
    assert "no table with the columns path and label. Pass a CSV" in get_error(tmp_path / "data", "csv")
    assert "a file, and the data format folders needs a folder" in get_error(table, "folders")
    assert "(did you mean 'folders'?). Choose one of auto" in get_error(tmp_path / "data", "folder", RecipeError)


def test_a_similar_name_is_suggested_for_a_missing_folder(tmp_path):
    write_two_classes(tmp_path / "ozturk")
    text = get_error(tmp_path / "osturk", kind=InputMissingError)
    assert "FCX-E001" in text
    assert f"no such file or folder (did you mean '{tmp_path}/ozturk'?). Check the name given as `data`" in text
    assert "FCX-E001" in get_error(write_files(tmp_path, "file") / "file" / "x", kind=InputMissingError)


def test_an_empty_folder_and_images_outside_class_folders_are_errors(tmp_path):
    text = get_error(tmp_path, kind=InputMissingError)
    assert "FCX-E002" in text
    assert "0 images. Sort the images into one folder per class, or pass a CSV" in text
    assert "0 images in class folders; 2 files are outside" in get_error(
        write_files(tmp_path, "a.png", "b.png"), kind=InputMissingError
    )


@pytest.mark.parametrize(
    ("inner", "names", "layout"),
    [
        ("download", ("covid", "normal"), "folders"),
        ("Covid19-dataset", ("train/covid", "train/normal", "test/covid", "test/normal"), "split_folders"),
        ("TB_Database/a/b", ("x", "TB"), "folders"),
    ],
)
def test_an_only_folder_is_entered_and_logged(tmp_path, caplog, inner, names, layout):
    caplog.set_level(logging.INFO, "fastcxr")
    write_files(tmp_path, *(f"{inner}/{name}/{name.replace('/', '_')}_{i}.png" for name in names for i in range(2)))
    write_files(tmp_path, "README.txt", "masks/a.png")
    dataset = detect_layout(tmp_path)
    assert (dataset.layout, dataset.path) == (layout, tmp_path / inner)
    assert {folder.path for folder in dataset.folders} == set(names)
    assert f"data folder: {inner}, the only folder in {tmp_path}" in caplog.text
    assert "skipped 1 mask folders: masks" in caplog.text
    assert detect_layout(tmp_path, layout) == dataset
    write_files(tmp_path, "other/a.png")
    assert detect_layout(tmp_path, "folders").path == tmp_path


def test_a_table_in_an_only_folder_is_used(tmp_path):
    table = write_file(write_files(tmp_path / "a/b", "images/a.png") / "labels.csv", "path,label\n")
    assert detect_layout(tmp_path).path == table
    assert detect_layout(tmp_path, "csv").path == table


def test_an_only_folder_train_or_of_images_is_not_entered(tmp_path):
    write_files(tmp_path / "split", "train/covid/a.png", "train/normal/b.png")
    assert detect_layout(tmp_path / "split").path == tmp_path / "split"
    write_files(tmp_path / "class", "covid/images/a.png")
    assert detect_layout(tmp_path / "class", "folders").path == tmp_path / "class"


def test_the_error_for_one_class_suggests_its_subfolders(tmp_path):
    write_files(tmp_path, "covid/mild/a.png", "covid/severe/b.png")
    text = get_error(tmp_path)
    assert "FCX-E003" in text
    assert "only one class, the folder 'covid', with subfolders ('mild', 'severe')" in text
    assert f"pass `data='{tmp_path}/covid'`" in text


def test_the_error_for_one_class_names_the_columns_of_a_table(tmp_path):
    write_files(tmp_path, "images/a.png")
    write_file(tmp_path / "metadata.csv", "filename,age\n")
    assert "only one class, the folder 'images'; metadata.csv has the columns 'filename', 'age'" in get_error(tmp_path)


def test_an_image_as_data_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and more")
    assert "a PNG image, expected a folder of images or a table" in get_error(tmp_path / "a.png")
