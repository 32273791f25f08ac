"""Tests for folders.py."""

import logging
import os
import socket

import pytest
from toy_datasets import check_message, write_files, write_two_classes

from fastcxr.data.readers.folders import ClassFolder, list_class_images
from fastcxr.errors import DataError


def list_all(root, *names: str) -> list[str]:
    return list_class_images(root, [ClassFolder(name, name) for name in names])["path"].tolist()


def get_error(root, *folders: ClassFolder) -> str:
    with pytest.raises(DataError) as caught:
        list_class_images(root, list(folders))
    return check_message(caught.value)


def test_files_are_listed_at_any_depth_sorted_by_path(tmp_path):
    write_files(tmp_path, "b/x.png", "a/2.png", "a/10.png", "a/p1/scan", "a/p1/deep/er/B.PNG", "a/notes.txt")
    assert list_all(tmp_path, "b", "a") == [
        "a/10.png", "a/2.png", "a/notes.txt", "a/p1/deep/er/B.PNG", "a/p1/scan", "b/x.png"
    ]  # fmt: skip


def test_loops_of_links_list_each_file_once(tmp_path):
    write_two_classes(tmp_path / "data")
    for name, target in {"up": "..", "self": ".", "other": "../normal", "root": tmp_path, "far": "/"}.items():
        (tmp_path / "data/covid" / name).symlink_to(target)
    (tmp_path / "data/loop").symlink_to(".")
    (tmp_path / "data/above").symlink_to("..")
    expected = ["covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png"]
    assert list_all(tmp_path / "data", "above", "covid", "loop", "normal") == expected


def test_links_to_other_folders_are_followed_once(tmp_path):
    data = write_two_classes(tmp_path / "data")
    write_files(tmp_path / "store", "deep/e.png", "f.png")
    (tmp_path / "store/deep/back").symlink_to("..")
    (data / "covid/one").symlink_to(tmp_path / "store/deep")
    (data / "covid/two").symlink_to(tmp_path / "store/deep")
    (data / "covid/z.png").symlink_to(tmp_path / "store/f.png")
    (data / "covid/again.png").symlink_to("a.png")
    assert list_all(data, "covid", "normal") == [
        "covid/a.png", "covid/b.png", "covid/one/e.png", "covid/z.png", "normal/c.png", "normal/d.png"
    ]  # fmt: skip


def test_class_folders_may_be_links(tmp_path):
    write_files(tmp_path / "store", "sick/a.png", "well/b.png", "junk/c.png")
    (tmp_path / "store/sick/up").symlink_to("..")
    data = write_files(tmp_path / "data", "./")
    for name in ("sick", "well"):
        (data / name).symlink_to(tmp_path / "store" / name)
    assert list_all(data, "sick", "well") == ["sick/a.png", "well/b.png"]


def test_special_files_are_skipped_with_a_warning(tmp_path, caplog, monkeypatch):
    write_two_classes(tmp_path)
    os.mkfifo(tmp_path / "covid/pipe.png")
    (tmp_path / "covid/broken.png").symlink_to("nowhere.png")
    (tmp_path / "covid/loop.png").symlink_to("loop.png")
    (tmp_path / "covid/zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("covid/socket.png")
        assert len(list_all(tmp_path, "covid", "normal")) == 4
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "skipped 5 special files" in record.getMessage()
    for name in ("pipe", "broken", "loop", "zero", "socket"):
        assert f"covid/{name}.png" in record.getMessage()


def test_hidden_and_system_files_are_skipped_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    write_files(tmp_path, "covid/.DS_Store", "normal/.DS_Store", "covid/Thumbs.db", "covid/__MACOSX/x.png",
         "covid/.ipynb_checkpoints/a.png", "covid/desktop.ini")  # fmt: skip
    assert len(list_all(tmp_path, "covid", "normal")) == 4
    assert "skipped 6 hidden or system files and folders: .DS_Store (2), .ipynb_checkpoints, Thumbs.db" in caplog.text


def test_one_file_in_two_classes_is_an_error_with_the_pair(tmp_path):
    write_two_classes(tmp_path)
    os.link(tmp_path / "covid/a.png", tmp_path / "normal/e.png")
    text = get_error(tmp_path, ClassFolder("covid", "covid"), ClassFolder("normal", "normal"))
    assert "FCX-E008" in text
    assert "the same image has two labels in 1 pairs (covid/a.png = normal/e.png). Keep one image of each pair" in text


def test_one_file_in_two_splits_is_an_error_with_the_pair(tmp_path):
    write_files(tmp_path, "train/covid/a.png", "test/covid/")
    (tmp_path / "test/covid/b.png").symlink_to(tmp_path / "train/covid/a.png")
    train, test = (ClassFolder(f"{split}/covid", "covid", split) for split in ("train", "test"))
    text = get_error(tmp_path, train, test)
    assert "FCX-E009" in text
    assert "train/covid/a.png = test/covid/b.png" in text
    assert "must not be used for training" in text


def test_a_class_folder_and_a_link_to_it_are_an_error(tmp_path):
    write_two_classes(tmp_path)
    (tmp_path / "sick").symlink_to("covid")
    text = get_error(tmp_path, ClassFolder("covid", "covid"), ClassFolder("sick", "sick"))
    assert "covid = sick" in text


def test_an_empty_class_folder_is_an_error(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "sick/deep/", "sick/.DS_Store")
    text = get_error(tmp_path, *(ClassFolder(name, name) for name in ("covid", "normal", "sick")))
    assert "FCX-E005" in text
    assert "'sick'. Add images, or remove the folders" in text


def test_unusual_names_work_and_names_that_are_not_utf_8_are_an_error(tmp_path):
    odd = ["covid/a b.png", "covid/new\nline.png", "covid/☢️.png", "covid/é.png", "covid/=cmd.png"]
    write_files(tmp_path, *odd)
    assert list_all(tmp_path, "covid") == sorted(odd)
    (tmp_path / os.fsdecode(b"covid/\xff.png")).write_bytes(b"x")
    text = get_error(tmp_path, ClassFolder("covid", "covid"))
    assert r"not UTF-8: b'covid/\xff.png'. Rename the files" in text


def test_a_folder_without_permission_is_an_error(tmp_path, monkeypatch):
    write_two_classes(tmp_path)

    def deny(*_):  # root may list every folder
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    assert "Permission denied). Change its permissions" in get_error(tmp_path, ClassFolder("covid", "covid"))
