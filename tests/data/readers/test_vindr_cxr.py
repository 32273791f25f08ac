"""Tests for vindr_cxr.py."""

import logging

import pytest
from detection import check_detection, check_no_detection
from layouts_challenges import make_vinbigdata, make_vindr_cxr, write_csv
from real_tables import copy_real_table
from toy_datasets import check_message

from fastcxr.data.imaging.read import read_image
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.vindr_cxr import (
    VINBIGDATA,
    VINDR_CXR,
    read_vinbigdata,
    read_vinbigdata_boxes,
    read_vindr_cxr,
    read_vindr_cxr_boxes,
)
from fastcxr.errors import DataError

# Cardiomegaly, ILD and label of the six training images under each rule
JOINED = {
    "majority": ["00 No Finding", "10 Cardiomegaly", "10 Cardiomegaly", "00 No Finding", "00 ", "11 Cardiomegaly|ILD"],
    "any": ["00 No Finding", "10 Cardiomegaly", "10 Cardiomegaly", "10 Cardiomegaly", "11 Cardiomegaly|ILD",
            "11 Cardiomegaly|ILD"],
    "all": ["00 No Finding", "10 Cardiomegaly", "00 ", "00 ", "00 ", "01 ILD"],
}  # fmt: skip


def describe(rows):
    values = rows["finding_Cardiomegaly"].astype(str) + rows["finding_ILD"].astype(str)
    return (values + " " + rows["label"]).tolist()


@pytest.mark.parametrize("variant", JOINED)
def test_readers_are_joined_by_the_rule_of_the_variant(tmp_path, variant):
    options = ReaderOptions(label_variant=variant)
    assert describe(read_vinbigdata(make_vinbigdata(tmp_path / "kaggle"), options)) == JOINED[variant]
    rows = read_vindr_cxr(make_vindr_cxr(tmp_path) / "1.0.0", options)
    assert describe(rows[rows["split"] == "train"]) == JOINED[variant]
    assert describe(rows[rows["split"] == "test"]) == ["10 Cardiomegaly", "00 Other diseases", "00 No Finding"]


def test_the_majority_is_the_default_and_disagreement_is_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_vinbigdata(make_vinbigdata(tmp_path), ReaderOptions())
    assert describe(rows) == JOINED["majority"]
    assert "VinBigData: a finding is present if more than half of the readers report it, two of three" in caplog.text
    assert "VinBigData: the readers disagree on 4 of 6 images" in caplog.text
    assert "VinBigData: 1 image with neither a finding nor 'No finding'" in caplog.text
    assert "left out 1 image of test/" in caplog.text
    assert rows.columns.tolist() == ["finding_Cardiomegaly", "finding_ILD", "label", "path", "file", "split"]
    assert rows["finding_ILD"].dtype == "Int8"
    assert rows.index.tolist() == [2, 5, 8, 11, 14, 17], "the first line of each image"
    assert rows["split"].isna().all()
    assert read_image(rows["file"].iloc[0]).shape == (64, 64)


def test_both_parts_of_vindr_cxr_are_read_with_their_splits(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_vindr_cxr(make_vindr_cxr(tmp_path) / "1.0.0", ReaderOptions())
    assert caplog.text.count("more than half of the readers") == 1, "not for the consensus of the test images"
    assert rows["split"].value_counts().to_dict() == {"train": 6, "test": 3}
    assert set(rows["source"]) == {"vindr_cxr"}, "and not 1.0.0, the name of the folder"
    assert rows.index.is_unique
    assert rows["path"].iloc[-1] == f"test/{'c' * 32}.dicom"
    assert rows["file"].notna().all()
    assert "finding_No finding" not in rows


@pytest.mark.parametrize(("removed", "n_images"), [("test", 6), ("train", 3)])
def test_one_part_alone_has_no_split(tmp_path, removed, n_images):
    folder = make_vindr_cxr(tmp_path) / "1.0.0"
    (folder / "annotations" / f"image_labels_{removed}.csv").unlink()
    rows = read_vindr_cxr(folder, ReaderOptions())
    assert len(rows) == n_images
    assert rows["split"].isna().all()


def test_converted_images_are_found(tmp_path):
    root = make_vinbigdata(tmp_path)
    for file in (root / "train").iterdir():
        file.rename(file.with_suffix(".png"))
    assert read_vinbigdata(root, ReaderOptions())["path"].str.fullmatch(r"train/\w+\.png").all()


def test_boxes_of_all_readers_are_read_in_pixels(tmp_path):
    boxes = read_vinbigdata_boxes(make_vinbigdata(tmp_path / "kaggle"))
    assert boxes["finding"].value_counts().to_dict() == {"Cardiomegaly": 9, "ILD": 5}
    assert boxes.iloc[0].tolist() == [f"train/{'1' * 32}.dicom", "Cardiomegaly", 10.0, 20.0, 30.0, 40.0]
    boxes = read_vindr_cxr_boxes(make_vindr_cxr(tmp_path) / "1.0.0")
    assert boxes.columns.tolist() == ["path", "finding", "x", "y", "width", "height"]
    assert boxes.iloc[0, 2:].tolist() == [1.0, 2.0, 10.0, 30.0]


def test_without_box_tables_there_is_no_box(tmp_path):
    folder = make_vindr_cxr(tmp_path) / "1.0.0"
    (folder / "annotations" / "annotations_train.csv").unlink()
    assert read_vindr_cxr_boxes(folder).shape == (0, 6)


def test_a_repeated_reader_an_image_in_both_parts_and_an_unknown_value_are_errors(tmp_path):
    folder = make_vindr_cxr(tmp_path) / "1.0.0"
    train, test = (folder / "annotations" / f"image_labels_{split}.csv" for split in ("train", "test"))
    for path, line, message in (
        (train, f"{'0' * 32},R8,0,0,0,1", "2 rows repeat an image and its reader .lines 2, 20"),
        (test, f"{'0' * 32},0,0,0,1", f"1 image in both label tables: {'0' * 32}"),
        (test, f"{'d' * 32},7,0,0,0", "1 cells of Cardiomegaly are not 1, 0, -1 or blank: '7'"),
    ):
        before = path.read_text()
        path.write_text(before + line + "\n")
        with pytest.raises(DataError, match=message) as caught:
            read_vindr_cxr(folder, ReaderOptions())
        check_message(caught.value)
        path.write_text(before)


def test_a_row_without_a_class_is_an_error(tmp_path):
    table = make_vinbigdata(tmp_path) / "train.csv"
    table.write_text(table.read_text() + f"{'e' * 32},,14,R9,,,,\n")
    with pytest.raises(DataError, match="1 rows have no class_name"):
        read_vinbigdata(tmp_path, ReaderOptions())


def test_the_datasets_are_found_from_each_path_a_user_may_name(tmp_path):
    names = ("image_labels_train", "image_labels_test", "annotations_train", "annotations_test")
    tables = [f"annotations/{name}.csv" for name in names]
    (make_vindr_cxr(tmp_path / "vindr") / "1.0.0" / tables[-1]).write_text("image_id,class_name\n")
    check_detection(VINDR_CXR, tmp_path / "vindr", "annotations", "train", "test", *tables, location="1.0.0")
    check_detection(VINBIGDATA, make_vinbigdata(tmp_path / "kaggle" / "vinbigdata"), "train", "test", "train.csv")


def test_other_data_is_not_the_dataset(tmp_path):
    own = write_csv(tmp_path / "own" / "train.csv", "image_id,class_name,class_id", "a,x,1")
    labels = write_csv(tmp_path / "two" / "annotations" / "image_labels_train.csv", "image_id,label", "a,1")
    kaggle = make_vinbigdata(tmp_path / "kaggle")
    check_no_detection(VINBIGDATA, own, own.parent, labels, labels.parent, next((kaggle / "train").iterdir()))
    check_no_detection(VINDR_CXR, own, own.parent, labels, labels.parent, labels.parents[1], kaggle)


@pytest.mark.slow
@pytest.mark.needs("torchxrayvision")
def test_the_real_table_has_15000_images_of_three_readers(tmp_path, caplog):
    copy_real_table("vinbigdata-train.csv.gz", tmp_path / "train.csv.gz")
    assert VINBIGDATA.detect(tmp_path) == tmp_path
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_vinbigdata(tmp_path, ReaderOptions())
    assert len(rows) == VINBIGDATA.n_images
    assert sum(name.startswith("finding_") for name in rows) == 14
    assert (rows["label"] == "No Finding").sum() == 10_606
    assert (rows["label"] == "").sum() == 42
    assert "the readers disagree on 3,683 of 15,000 images" in caplog.text
