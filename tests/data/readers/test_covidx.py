"""Tests for covidx.py"""

import pytest
from public_datasets import COVIDX, make_covidx, write_image
from toy_datasets import check_message

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError


def refuse(folder) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    return check_message(caught.value)


@pytest.mark.parametrize(("lists", "images"), [("labels", ""), ("", ""), ("labels", "data")])
def test_lists_of_labels_become_a_manifest(tmp_path, lists, images):
    manifest = read_manifest(make_covidx(tmp_path, lists, images))
    assert manifest["split"].tolist() == ["test", "train", "train", "train", "train"]
    assert manifest["path"].tolist()[2] == f"{images}/train/b b.jpg".lstrip("/")
    assert manifest["patient"].tolist() == ["RSNA 1", "3", "4", "5", "6"]
    assert manifest["source"].tolist() == ["rsna", "rsna", "cohen", "fig1", "rsna"]
    assert manifest["label"].tolist() == ["normal", "normal", "COVID-19", "COVID-19", "normal"]


def test_older_lists_have_no_source(tmp_path):
    train = "\n".join(line.rsplit(" ", 1)[0] for line in COVIDX.splitlines())
    manifest = read_manifest(make_covidx(tmp_path / "x", train=train))
    assert manifest["source"].tolist() == ["rsna", *["x"] * 4]
    assert manifest["label"].tolist()[1:] == ["normal", "COVID-19", "COVID-19", "normal"]


def test_a_list_that_names_missing_images_is_refused_with_its_lines(tmp_path):
    text = refuse(make_covidx(tmp_path, train=COVIDX + "7 gone.png normal rsna\n"))
    assert (
        "1 lines name files that are not in train/ (line 5). Make the images with the collection's own script" in text
    )


def test_a_line_too_short_is_refused(tmp_path):
    text = refuse(make_covidx(tmp_path, train=COVIDX + "gone.png normal\n"))
    assert "(line 5). Give patient, file name and label on each line" in text


def test_several_versions_of_the_lists_are_refused(tmp_path):
    make_covidx(tmp_path)
    (tmp_path / "labels" / "train_COVIDx8A.txt").write_text(COVIDX)
    assert "labels/train_COVIDx5.txt, labels/train_COVIDx8A.txt. Keep one version of the lists" in refuse(tmp_path)


def test_a_text_called_train_makes_no_covidx_of_class_folders(tmp_path):
    for number, name in enumerate(["train/a/1.png", "train/a/2.png", "train/b/3.png", "test/b/4.png"]):
        write_image(tmp_path / name, number)
    (tmp_path / "train.txt").write_text("This folder holds what is trained on\n")
    assert set(read_manifest(tmp_path)["label"]) == {"a", "b"}
