"""Tests for covidx.py."""

import pytest
from public_datasets import COVIDX, make_covidx, write_image
from toy_datasets import check_message

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError


def get_error(folder) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(folder)
    return check_message(caught.value)


@pytest.mark.parametrize(("lists", "images"), [("labels", ""), ("", ""), ("labels", "data")])
def test_label_lists_give_a_manifest(tmp_path, lists, images):
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


def test_lines_with_missing_images_are_an_error_with_line_numbers(tmp_path):
    text = get_error(make_covidx(tmp_path, train=COVIDX + "7 missing.png normal rsna\n"))
    assert "1 files are missing: 'missing.png' (line 5). Create the images with the dataset's script" in text
    manifest = read_manifest(tmp_path, skip_bad=True)
    assert len(manifest) == 5


def test_a_line_with_too_few_fields_is_an_error(tmp_path):
    text = get_error(make_covidx(tmp_path, train=COVIDX + "missing.png normal\n"))
    assert "(line 5). Write patient, file name and label on each line" in text


def test_several_label_lists_for_one_split_are_an_error(tmp_path):
    make_covidx(tmp_path)
    (tmp_path / "labels" / "train_COVIDx8A.txt").write_text(COVIDX)
    assert "labels/train_COVIDx5.txt, labels/train_COVIDx8A.txt. Keep one version of the lists" in get_error(tmp_path)


def test_class_folders_with_a_text_named_train_are_not_covidx(tmp_path):
    for number, name in enumerate(["train/a/1.png", "train/a/2.png", "train/b/3.png", "test/b/4.png"]):
        write_image(tmp_path / name, number)
    (tmp_path / "train.txt").write_text("This folder contains the training images\n")
    assert set(read_manifest(tmp_path)["label"]) == {"a", "b"}
