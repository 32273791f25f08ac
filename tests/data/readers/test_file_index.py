"""Tests for file_index.py."""

import os

import pytest
from toy_datasets import write_files

from fastcxr.data.readers.file_index import FileIndex
from fastcxr.errors import DataError

FILES = ("a/1.png", "a/2.jpg", "b/1.png", "b/1.2.840.png", "notes/3.txt", "3.png", ".hidden/4.png")


@pytest.fixture
def index(tmp_path) -> FileIndex:
    """Index of a folder called `set` with FILES, all empty: a file that is opened as an image is an error."""
    for name in FILES:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return FileIndex(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a/1.png", "a/1.png"),
        ("./a\\1.png", "a/1.png"),
        ("set/a/1.png", "a/1.png"),
        ("other/set/b/1.png", "b/1.png"),
        ("2.jpg", "a/2.jpg"),
        ("2.png", "a/2.jpg"),
        ("2", "a/2.jpg"),
        ("1.2.840", "b/1.2.840.png"),
        ("3", "3.png"),
        ("4.png", None),
        ("5", None),
        ("", None),
    ],
)
def test_a_file_is_found_by_path_by_name_or_without_its_extension(index, name, path):
    assert index.find([name]) == [path]


def test_a_name_of_several_files_is_an_error_that_names_them(index):
    with pytest.raises(DataError, match=r"several files may be '1.png': a/1.png, b/1.png"):
        index.find(["1.png"])


def test_a_name_that_differs_in_case_from_several_files_is_an_error_that_names_them(tmp_path):
    write_files(tmp_path, "x/IMG.png", "x/Img.png", "x/one.PNG")
    index = FileIndex(tmp_path)
    assert index.find(["Img.png", "ONE"]) == ["x/Img.png", "x/one.PNG"]
    with pytest.raises(DataError, match=r"several files may be 'img.png': x/IMG.png, x/Img.png. Give the path"):
        index.find(["img.png"])


def test_an_image_that_its_name_identifies_may_be_in_another_folder(index):
    assert index.find(["c/2.jpg", "b/2.jpg"]) == [None, None]
    assert index.find(["c/2.jpg", "b/2.jpg", "b/1.png"], any_folder=True) == ["a/2.jpg", "a/2.jpg", "b/1.png"]


def test_the_longest_path_that_fits_is_found(tmp_path):
    write_files(tmp_path, "a/1.png", "x/a/1.png", "y/x/b/2.png", "z/b/2.png")
    names = ["old/x/a/1.png", "old/a/1.png", "x/b/2.png"]
    assert FileIndex(tmp_path).find(names) == ["x/a/1.png", "a/1.png", "y/x/b/2.png"]


def test_only_files_that_may_be_links_are_examined(index, monkeypatch):
    examined = []
    monkeypatch.setattr("fastcxr.data.readers.folders.identify_file", lambda path: examined.append(path) or str(path))
    assert "a/1.png" in index.paths
    assert not [path for path in examined if str(path).endswith((".png", ".jpg", ".txt"))]


def test_a_file_with_two_names_is_listed_once(index):
    os.link(index.root / "a/1.png", index.root / "a/twin.png")
    (index.root / "b/twin.jpg").symlink_to(index.root / "a/2.jpg")
    assert index.paths == sorted(FILES[:-1])
