"""Tests for folders.py: output folders of fastcxr inside the data folder."""

import logging
from pathlib import Path

import pytest
from toy_datasets import write_file, write_files, write_two_classes

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.folders import is_made_by_fastcxr, list_files_below

IMAGES = ["covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png"]
TESTS = Path(__file__).parents[2]


def make_run(folder):
    """Write the recipe and one figure of a run."""
    write_files(folder, "figures/images/0000.jpg")
    write_file(folder / "recipe.json", Recipe().to_json())
    return folder


@pytest.mark.parametrize("place", ["runs/data-1", "runs/study/variant", "mine", "covid/mine", "covid/runs/data-1"])
def test_run_folders_in_the_data_folder_are_skipped_and_logged(tmp_path, caplog, place):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    make_run(tmp_path / place)
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES
    assert " output folders of fastcxr: " in caplog.text
    assert list_files_below(tmp_path) == IMAGES


@pytest.mark.parametrize(
    "file",
    [
        *(f"fixtures/run_0_1/{name}" for name in ("recipe.json", "run.json", "explain.json")),
        *(f"fixtures/run_0_1_unfinished/{name}" for name in ("recipe.json", "run.json")),
        *(f"golden/run/{name}" for name in ("recipe.json", "run.json", "explain.json")),
    ],
)
def test_one_json_file_of_this_version_or_of_0_1_marks_an_output_folder(tmp_path, file):
    write_file(tmp_path / Path(file).name, (TESTS / file).read_text(encoding="utf-8"))
    assert is_made_by_fastcxr(str(tmp_path))


def test_a_comparison_is_an_output_folder(tmp_path):
    write_file(tmp_path / "compare.json", '{"rows": [], "n_shared_images": 0, "patients": 0}')
    assert is_made_by_fastcxr(str(tmp_path))


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"backbone": 1}', '{"text": "backbone leave_one_source_out"}'])
def test_another_recipe_json_does_not_mark_a_run(tmp_path, content):
    write_file(tmp_path / "recipe.json", content)
    assert not is_made_by_fastcxr(str(tmp_path))


def test_a_table_and_one_image_folder_stay_the_data_if_runs_are_there(tmp_path):
    write_files(tmp_path, "images/a.png", "images/b.png")
    write_file(tmp_path / "table.csv", "path,label\nimages/a.png,covid\nimages/b.png,normal\n")
    make_run(tmp_path / "runs/data-1")
    assert read_manifest(tmp_path, only_test=True)["label"].tolist() == ["covid", "normal"]


def test_an_empty_folder_named_runs_is_not_a_class(tmp_path):
    write_two_classes(tmp_path)
    (tmp_path / "runs").mkdir()
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES


def test_images_of_the_user_are_read_from_a_folder_named_runs_and_next_to_another_recipe_json(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "runs/e.png", "runs/old/f.png", "covid/run/g.png")
    write_file(tmp_path / "covid/run/recipe.json", "{}")
    make_run(tmp_path / "runs/data-1")
    paths = set(read_manifest(tmp_path)["path"])
    assert paths == {*IMAGES, "runs/e.png", "runs/old/f.png", "covid/run/g.png", "covid/run/recipe.json"}


def test_a_link_to_a_run_is_not_an_output_folder(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert is_made_by_fastcxr(str(tmp_path / "run"))
    assert not is_made_by_fastcxr(str(tmp_path / "link"))


def test_an_empty_locked_folder_is_not_a_class(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "new/.lock")
    assert read_manifest(tmp_path)["path"].tolist() == IMAGES
