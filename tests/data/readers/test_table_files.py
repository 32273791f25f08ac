"""Tests for table_files.py."""

import pytest
from toy_datasets import check_message, write_files

from fastcxr.data.readers import table_files
from fastcxr.data.readers.table_files import find_table_files
from fastcxr.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return write_files(tmp_path, "a.png", "images/b.png", "images/1.2.3.dcm", "train/1.png", "test/2.jpg", "own.csv")


def test_a_path_is_found_without_listing_the_folder(folder, monkeypatch):
    monkeypatch.setattr(table_files, "FileIndex", None)
    cells = ["a.png", " images/b.png ", "images\\b.png", str(folder / "a.png")]
    assert find_table_files(cells, folder) == ["a.png", "images/b.png", "images/b.png", str(folder / "a.png")]


def test_a_name_is_found_below_the_folder_with_another_or_no_extension(folder):
    assert find_table_files(["b.png"], folder) == ["images/b.png"]
    assert find_table_files(["b", "1.2.3", "2.png"], folder) == ["images/b.png", "images/1.2.3.dcm", "test/2.jpg"]
    assert find_table_files([f"{folder}/images/b.jpg"], folder) == ["images/b.png"]
    assert find_table_files(["/other/data/images/b.png"], folder) == ["images/b.png"]
    assert find_table_files([f"/other/{folder.name}/a.jpg"], folder) == ["a.png"]
    assert find_table_files(["A.PNG", "IMAGES\\B.png"], folder) == ["a.png", "images/b.png"]


def test_a_file_in_another_folder_than_the_one_named_is_missing(folder):
    assert find_table_files(["test/1.png", "test/2.png", "nowhere.png"], folder) == [None, "test/2.jpg", None]
    assert find_table_files(["test\\1.png", "2/b.png"], folder) == [None, None]


@pytest.mark.parametrize("name", ["siteB", "old/siteB", "/data/siteB/siteA2"])
def test_a_folder_that_does_not_exist_is_not_replaced_by_another(tmp_path, name):
    write_files(tmp_path, *(f"{site}/{i}.png" for site in ("siteA", "siteC") for i in (1, 2)))
    assert find_table_files([f"{name}/1.png", f"{name}/9.png", "siteA/2.png"], tmp_path) == [None, None, "siteA/2.png"]


def test_images_of_a_relative_folder_that_does_not_exist_are_missing(tmp_path):
    write_files(tmp_path, "siteA/1.png", "siteA/2.png")
    assert find_table_files(["siteB/1.png", "siteB/2.png"], tmp_path) == [None, None]


def test_the_absolute_folder_of_all_paths_may_have_moved_with_a_warning(tmp_path, caplog):
    write_files(tmp_path, "images/1.png", "images/2.png")
    cells = ["C:\\data\\x\\1.png", "C:\\data\\x\\2.png", "C:\\data\\x\\3.png"]
    assert find_table_files(cells, tmp_path) == ["images/1.png", "images/2.png", None]
    text = f"the folder C:/data/x of all paths does not exist: 2 files found by their names in {tmp_path}/images"
    assert [record.message for record in caplog.records] == [text]


@pytest.mark.parametrize(
    "cells",
    [
        ["/x/1.png", "/x/8.png", "/x/9.png"],  # most are missing
        ["/x/1.png", "/y/2.png"],  # of two folders
        ["/x/1.png", "/x/3.png"],  # in two folders now
    ],
)
def test_the_folder_of_the_paths_matters_if_the_files_may_be_others(tmp_path, cells, caplog):
    write_files(tmp_path, "images/1.png", "images/2.png", "more/3.png")
    assert find_table_files(cells, tmp_path) == [None] * len(cells)
    assert caplog.records == []


def test_a_mask_is_found_only_by_its_folder(tmp_path):
    write_files(tmp_path, "images/0.jpg", "masks/0.png", "masks/1.png")
    assert find_table_files(["0.png", "1.png"], tmp_path) == ["images/0.jpg", None]
    assert find_table_files(["0", "masks/1.png"], tmp_path) == ["images/0.jpg", "masks/1.png"]


def test_only_the_extension_of_an_image_is_cut(tmp_path):
    write_files(tmp_path, "x/img0.png", "x/1.2.840.113.1.5", "x/1.2.840.6.dcm")
    assert find_table_files(["img0.2", "1.2.840.113.1.9", "1.2.840.113.1"], tmp_path) == [None] * 3
    found = find_table_files(["img0.dcm", "1.2.840.113.1.5.dcm", "1.2.840.6"], tmp_path)
    assert found == ["x/img0.png", "x/1.2.840.113.1.5", "x/1.2.840.6.dcm"]


def test_a_folder_is_no_file(folder):
    assert find_table_files(["images"], folder) == [None]


def test_a_name_of_two_files_is_an_error_that_names_both(folder):
    write_files(folder, "more/b.png")
    with pytest.raises(DataError) as caught:
        find_table_files(["b"], folder)
    text = check_message(caught.value)
    assert "FCX-E013" in text
    assert "several files may be 'b': images/b.png, more/b.png. Give the path" in text


def test_two_names_of_one_file_are_an_error_that_names_both(folder):
    text = r"several names in the table may be the file images/b.png: '/x/images/b.png', '/y/images/b.png'"
    with pytest.raises(DataError, match=text):
        find_table_files(["/x/images/b.png", "/y/images/b.png"], folder)
    with pytest.raises(DataError, match=r"'images/b.png', 'b'"):
        find_table_files(["images/b.png", "b"], folder)
