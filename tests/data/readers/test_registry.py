"""Tests for registry.py: facts of the public datasets, and the images that they share."""

import logging

import pytest
from layouts_class_folders import make_radiography
from public_datasets import make_cohen, make_coronahack

from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.detect import detect_layout
from fastcxr.data.readers.download_check import check_download
from fastcxr.data.readers.registry import PUBLIC_DATASETS, describe_overlaps, find_public_dataset
from fastcxr.data.readers.tables import find_dataset_folder


@pytest.mark.parametrize("name", PUBLIC_DATASETS)
def test_a_dataset_shares_images_with_datasets_of_the_registry(name):
    dataset = PUBLIC_DATASETS[name]
    assert dataset.name == name
    assert set(dataset.overlaps) <= PUBLIC_DATASETS.keys() - {name}


@pytest.mark.parametrize("name", PUBLIC_DATASETS)
def test_a_dataset_states_its_labels_and_its_page_and_is_not_detected_in_an_empty_folder(name, tmp_path):
    dataset = PUBLIC_DATASETS[name]
    assert dataset.title
    assert dataset.labels
    assert dataset.required
    assert dataset.page.startswith("https://")
    assert bool(dataset.n_images) == bool(dataset.counts_from)  # a number is shown with its source
    assert dataset.detect(tmp_path) is None


def test_a_dataset_in_only_folders_is_found_and_checked(tmp_path):
    root = make_radiography(tmp_path / "a/b/c")
    assert find_public_dataset("covid_radiography", tmp_path) == root
    assert detect_layout(tmp_path).path == root
    assert detect_layout(tmp_path, "covid_radiography").path == root
    assert check_download("covid_radiography", tmp_path).location == root
    (tmp_path / "a/labels.csv").write_text("path,label\n")
    assert find_public_dataset("covid_radiography", tmp_path) is None


@pytest.mark.parametrize(("n_folders", "n_searched"), [(50, 51), (51, 1)])
def test_more_than_50_folders_are_not_searched_for_a_dataset(tmp_path, n_folders, n_searched):
    for i in range(n_folders):
        (tmp_path / f"patient{i}").mkdir()
    searched = []
    assert find_dataset_folder(tmp_path, lambda path: bool(searched.append(path))) is None
    assert len(searched) == n_searched


def test_an_overlap_is_found_from_both_sides_and_once():
    assert describe_overlaps(["cohen"], ["coronahack"]) == describe_overlaps(["coronahack"], ["cohen"])
    assert describe_overlaps(["coronahack", "cohen"], ["coronahack", "cohen"]) == [
        "CoronaHack shares images with Cohen's collection: its COVID-19 images"
    ]
    assert describe_overlaps(["folders", "csv"], ["cohen"]) == []


def test_merging_datasets_that_share_images_is_a_warning_that_names_them(tmp_path, caplog):
    make_cohen(tmp_path / "cohen")
    make_coronahack(tmp_path / "coronahack")
    with caplog.at_level(logging.WARNING, "fastcxr"):
        read_manifest([tmp_path / "cohen", tmp_path / "coronahack"])
    assert "CoronaHack shares images with Cohen's collection: its COVID-19 images" in caplog.text
