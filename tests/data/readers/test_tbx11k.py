"""Tests for tbx11k.py."""

import json
import logging

import pytest
from detection import check_detection, check_no_detection
from layouts_tuberculosis import make_tbx11k
from toy_datasets import check_message, write_two_classes

from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.tbx11k import DATASET, read_tbx11k, read_tbx11k_boxes
from fastcxr.errors import DataError


@pytest.fixture
def tbx11k(tmp_path):
    return make_tbx11k(tmp_path / "TBX11K")


def edit_list(root, part, edit):
    path = root / "annotations" / "json" / f"TBX11K_{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_classes_come_from_the_folders_and_splits_from_the_lists(tbx11k, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_tbx11k(tbx11k, ReaderOptions())
    assert rows["label"].tolist() == [
        "Healthy", "Healthy", "Sick but Non-TB", "Tuberculosis", "Tuberculosis",
        "Healthy", "Sick but Non-TB", "Tuberculosis",
    ]  # fmt: skip
    assert rows["split"].tolist() == ["train"] * 5 + ["valid"] * 3
    assert rows["path"].iloc[3] == "imgs/tb/tb0001.png"
    assert rows["file"].notna().all()
    assert rows["tb_type"].dropna().to_dict() == {3: "active", 4: "active|obsolete"}, "tb0003 has no box"
    assert "left out 3 images without a published label in its lists: extra (1), test (2)" in caplog.text


def test_the_joint_list_alone_gives_no_split(tbx11k):
    for part in ("train", "val"):
        (tbx11k / "annotations" / "json" / f"TBX11K_{part}.json").unlink()
    rows = read_tbx11k(tbx11k, ReaderOptions())
    assert len(rows) == 8
    assert rows["split"].isna().all()


def test_boxes_are_read_in_pixels(tbx11k):
    boxes = read_tbx11k_boxes(tbx11k)
    assert boxes["path"].tolist() == ["imgs/tb/tb0001.png", "imgs/tb/tb0002.png", "imgs/tb/tb0002.png"]
    assert boxes["finding"].tolist() == ["ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "ActiveTuberculosis"]
    assert boxes.iloc[0, 2:].tolist() == [214.5, 120.5, 99.0, 40.0]


def test_listed_images_of_other_datasets_are_left_out_and_missing_files_are_kept(tbx11k):
    extra = {"id": 90, "file_name": "extra/mc+shenzhen/train/CHNCXR_0001_0.png"}
    edit_list(tbx11k, "train", lambda content: content["images"].append(extra))
    (tbx11k / "imgs" / "tb" / "tb0001.png").unlink()
    rows = read_tbx11k(tbx11k, ReaderOptions())
    assert len(rows) == 8
    assert rows.index[rows["file"].isna()].tolist() == [3]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content["images"].append({"id": 9, "file_name": "tb/tb0003.png"}),
         "1 image listed twice: tb/tb0003.png"),
        (lambda content: content["images"].append({"id": 9, "file_name": "other/o1.png"}),
         "1 rows name other folders: 'other'"),
        (lambda content: content.pop("images"), "not a COCO file with images, annotations and categories .KeyError"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2]), "not a COCO file .* .ValueError"),
    ],
)  # fmt: skip
def test_contradictory_and_damaged_lists_are_errors(tbx11k, edit, message):
    edit_list(tbx11k, "train", edit)
    with pytest.raises(DataError, match=message) as caught:
        read_tbx11k(tbx11k, ReaderOptions())
    check_message(caught.value)


def test_the_dataset_is_found_from_each_path_a_user_may_name(tbx11k):
    check_detection(DATASET, tbx11k, "imgs", "annotations", "annotations/json/TBX11K_train.json")


def test_class_folders_are_not_the_dataset(tmp_path, tbx11k):
    check_no_detection(DATASET, write_two_classes(tmp_path / "own"), tbx11k / "imgs" / "tb", tmp_path / "absent")
