"""Tests for siim_acr.py."""

import logging

import pytest
from detection import check_detection, check_no_detection
from layouts_challenges import make_siim_acr, write_csv
from real_tables import copy_real_table
from toy_datasets import check_message

from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.siim_acr import DATASET, read_siim_acr
from fastcxr.errors import DataError


def test_repeated_rows_are_joined_and_files_found_below_any_folder(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_siim_acr(make_siim_acr(tmp_path), ReaderOptions())
    assert rows["label"].tolist() == ["No Pneumothorax", "Pneumothorax", "Pneumothorax"] * 2
    assert rows.index.tolist() == [2, 3, 4, 6, 7, 8], "the line of the first mask"
    name = "1.2.276.0.7230010.3.1.4.1.850819"
    assert rows["path"].iloc[1] == f"dicom-images-train/1.2.276.0.1/1.2.276.0.1.1/{name}.dcm"
    assert rows["file"].notna().all()
    assert set(rows.columns) == {"label", "path", "file", "split"}
    assert "no patient is published, so images of a patient may be in both train and test" in caplog.text
    assert "left out 1 image of dicom-images-test/, which have no published labels" in caplog.text


def test_a_blank_mask_is_no_pneumothorax_and_images_may_be_missing(tmp_path):
    write_csv(tmp_path / "train-rle.csv", "ImageId, EncodedPixels", "1.2.3,", "1.2.4, 5 6")
    rows = read_siim_acr(tmp_path, ReaderOptions())
    assert rows["label"].tolist() == ["No Pneumothorax", "Pneumothorax"]
    assert rows["file"].isna().all()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("1.2.3, -1", "1.2.3, 5 6"), "2 rows give one image both a mask and -1 .lines 2, 3"),
        (("1.2.3, yes",), "1 rows have no run-length encoded mask and no -1 .line 2"),
    ],
)
def test_contradictions_and_unknown_values_are_errors(tmp_path, lines, message):
    write_csv(tmp_path / "train-rle.csv", "ImageId, EncodedPixels", *lines)
    with pytest.raises(DataError, match=message) as caught:
        read_siim_acr(tmp_path, ReaderOptions())
    check_message(caught.value)


def test_the_dataset_is_found_from_each_path_a_user_may_name(tmp_path):
    inner = ("dicom-images-train", "dicom-images-test", "train-rle.csv")
    check_detection(DATASET, make_siim_acr(tmp_path / "siim"), *inner)


def test_other_data_is_not_the_dataset(tmp_path):
    ships = write_csv(tmp_path / "ships" / "train.csv", "ImageId,EncodedPixels", "a.jpg,1 2")
    own = write_csv(tmp_path / "own" / "train-rle.csv", "path,label", "a.png,x")
    check_no_detection(DATASET, ships, ships.parent, own, own.parent)


@pytest.mark.needs("torchxrayvision")
def test_12954_rows_of_the_real_table_are_12047_images(tmp_path):
    copy_real_table("siim-pneumothorax-train-rle.csv.gz", tmp_path / "train-rle.csv.gz")
    assert DATASET.detect(tmp_path) == tmp_path
    rows = read_siim_acr(tmp_path, ReaderOptions())
    assert rows["label"].value_counts().to_dict() == {"No Pneumothorax": 9_378, "Pneumothorax": 2_669}
    assert len(rows) == DATASET.n_images
    assert rows["path"].is_unique
