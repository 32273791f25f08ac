"""Tests for folders.py: run folders inside the data"""

import logging

import pytest
from toy_datasets import write_file, write_files, write_two_classes

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.folders import is_made_by_fastcxr, list_files_below

IMAGES = ["covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png"]


def make_run(folder):
    """What a run leaves, as far as a walk through images sees it."""
    write_files(folder, "figures/images/0000.jpg")
    write_file(folder / "recipe.json", Recipe().to_json())
    return folder


@pytest.mark.parametrize("place", ["runs/data-1", "runs/study/arm", "mine", "covid/mine", "covid/runs/data-1"])
def test_runs_that_stand_in_the_data_are_left_out_and_said(tmp_path, caplog, place):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    make_run(tmp_path / place)
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES
    assert "left out, for fastcxr made them: " in caplog.text
    assert list_files_below(tmp_path) == IMAGES


def test_a_table_beside_one_folder_of_images_stays_the_data_when_runs_stand_there(tmp_path):
    write_files(tmp_path, "images/a.png", "images/b.png")
    write_file(tmp_path / "table.csv", "path,label\nimages/a.png,covid\nimages/b.png,normal\n")
    make_run(tmp_path / "runs/data-1")
    assert read_manifest(tmp_path, only_test=True)["label"].tolist() == ["covid", "normal"]


def test_an_empty_folder_called_runs_is_no_class(tmp_path):
    write_two_classes(tmp_path)
    (tmp_path / "runs").mkdir()
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES


def test_images_of_a_person_are_never_taken_for_ours(tmp_path, caplog):
    write_two_classes(tmp_path)
    write_files(tmp_path, "runs/e.png", "runs/old/f.png", "covid/run/g.png")
    write_file(tmp_path / "covid/run/recipe.json", "{}")
    make_run(tmp_path / "runs/data-1")
    paths = set(read_manifest(tmp_path)["path"])
    assert paths == {*IMAGES, "runs/e.png", "runs/old/f.png", "covid/run/g.png", "covid/run/recipe.json"}


def test_a_link_to_a_run_is_no_folder_of_ours(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert is_made_by_fastcxr(str(tmp_path / "run"))
    assert not is_made_by_fastcxr(str(tmp_path / "link"))


def test_a_folder_that_is_about_to_be_written_to_is_no_class(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "new/.lock")
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES
