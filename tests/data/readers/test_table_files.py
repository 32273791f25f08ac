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


def test_a_file_in_another_folder_than_the_one_named_is_missing(folder):
    assert find_table_files(["test/1.png", "test/2.png", "nowhere.png"], folder) == [None, "test/2.jpg", None]


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
    with pytest.raises(
        DataError, match=r"several names in the table may be the file images/b.png: 'x/b.png', 'y/b.png'"
    ):
        find_table_files(["x/b.png", "y/b.png"], folder)
    with pytest.raises(DataError, match=r"'images/b.png', 'b'"):
        find_table_files(["images/b.png", "b"], folder)
