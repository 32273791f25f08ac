"""Tests for split_files.py."""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message, write_file

from fastcxr.data.readers.split_files import apply_split_files, name_split
from fastcxr.errors import DataError, InputMissingError, RecipeError

PATHS = ("images_001/images/1.png", "images_001/images/2.png", "images_002/images/3.png", "1.2.3.dcm")


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame({"path": PATHS, "split": None}, dtype="str")


@pytest.fixture
def write(tmp_path):
    return lambda name, text: str(write_file(tmp_path / name, text))


def get_splits(rows, *files) -> list:
    splits = apply_split_files(rows, files)["split"]
    return splits.astype("object").where(splits.notna(), None).tolist()


def get_error(kind, rows, *files) -> str:
    with pytest.raises(kind) as caught:
        apply_split_files(rows, files)
    return check_message(caught.value)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("a/train.csv", "train"),
        ("test.tsv.gz", "test"),
        ("VAL.csv", "valid"),
        ("data/Training", "train"),
        ("valid", "valid"),
        ("my_train.csv", None),
        ("train_labels.csv", None),
        ("labels.csv", None),
    ],
)
def test_only_exact_names_of_tables_and_folders_are_splits(path, split):
    assert name_split(path) == split


def test_lists_give_the_splits_and_images_in_no_list_are_counted(rows, write, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    files = write("train_val_list.txt", "1.png\n2.png\n\n"), write("test_list.txt", "3\r\n")
    assert get_splits(rows, *files) == ["train", "train", "test", None]
    assert "splits from train_val_list.txt, test_list.txt: train 2, test 1" in caplog.text
    assert "1 image without a split: no list names them" in caplog.text


def test_a_list_with_another_name_follows_its_split(rows, write):
    holdout = write("holdout.txt", "./images_002/images/3.png\n1.2.3\n")
    assert get_splits(rows, f"test={holdout}") == [None, None, "test", "test"]
    text = get_error(RecipeError, rows, holdout)
    assert "FCX-E022: the name of holdout.txt does not begin with a split. Pass its split too, such as" in text
    assert "`split_file=['test=holdout.txt']`" in text
    assert "no split is called 'tset'. Use train, valid or test" in get_error(RecipeError, rows, f"tset={holdout}")


def test_the_names_of_a_list_are_those_of_windows_or_uids_too(rows, write):
    names = "D:\\nih\\images_001\\images\\1.png\nimages\\2.png\n1.2.3\n1.2.9\n"
    assert get_splits(rows, write("test.txt", names)) == ["test", "test", None, "test"]
    assert get_splits(rows.assign(path=["a.1.png", "b", "c", "1.2.3"]), write("test.txt", "a.1\n1.2.9\n"))[3] is None


def test_the_absolute_folder_of_a_list_may_have_moved(rows, write):
    names = "C:\\data\\x\\1.png\nC:\\data\\x\\3.png\n"
    assert get_splits(rows, write("test.txt", names)) == ["test", None, "test", None]
    assert "FCX-E032" in get_error(DataError, rows, write("test.txt", "C:\\x\\1.png\nC:\\y\\3.png\n"))


def test_a_table_with_path_and_split_is_a_list(rows, write):
    table = write("parts.csv", "Image Index,split,class,target\n1.png,Train,x,y\n3.png,val,x,y\n")
    assert get_splits(rows, table) == ["train", None, "valid", None]
    assert get_splits(rows, write("test.csv", "image\n2.png\n")) == [None, "test", None, None]
    text = get_error(DataError, rows, write("a.csv", "image,part\n1.png,x\n"))
    assert "FCX-E011" in text
    assert "no columns path and split: the columns are 'image', 'part'. Name the columns" in text
    text = get_error(DataError, rows, write("b.csv", "image,split\n1.png,x\n2.png,test\n"))
    assert "1 rows have no split or an unknown one (line 2). Use train, valid or test" in text


def test_names_that_are_not_in_the_data_are_counted_and_a_list_of_other_images_is_an_error(rows, write, caplog):
    get_splits(rows, write("test.txt", "1.png\n8.png\n9.png\n"))
    assert "test.txt: 2 names of the list are not in the data: 8.png, 9.png" in caplog.text
    text = get_error(DataError, rows, write("train.txt", "8.png\n"))
    assert "FCX-E032" in text
    assert "the split list names no image of the data: it has '8.png', the data images_001/images/1.png" in text


def test_an_image_in_two_lists_is_an_error(rows, write):
    files = write("train.txt", "1.png\n2.png\n"), write("test.txt", "images/2.png\n3.png\n")
    text = get_error(DataError, rows, *files)
    assert "FCX-E009" in text
    assert "images_001/images/2.png is train in train.txt = test in test.txt" in text
    twice = write("parts.csv", "path,split\n1.png,train\nimages/1.png,test\n")
    assert "FCX-E009" in get_error(DataError, rows, twice)


def test_a_list_that_contradicts_the_data_is_an_error(rows, write):
    given = rows.assign(split=["train", "test", None, None])
    assert get_splits(given, write("test.txt", "2.png\n3.png\n")) == ["train", "test", "test", None]
    text = get_error(DataError, given, write("train.txt", "2.png\n"))
    assert "images_001/images/2.png is train in train.txt = test in the data" in text


def test_a_name_of_two_images_or_of_another_folder_does_not_fit(rows, write):
    rows = rows.assign(path=["test/1.png", "train/1.png", "train/2.png", "train/2.jpg"])
    assert "the name '1.png' fits several images: test/1.png, train/1.png" in get_error(
        DataError, rows, write("train.txt", "1.png\n")
    )
    assert get_splits(rows, write("test.txt", "data/test/1.png\n2.jpg\n")) == ["test", None, None, "test"]
    assert "names no image" in get_error(DataError, rows, write("test.txt", "test/2.png\n"))


def test_a_missing_list_is_an_error(rows, tmp_path):
    assert "FCX-E001" in get_error(InputMissingError, rows, str(tmp_path / "train.txt"))
    assert "FCX-E001" in get_error(InputMissingError, rows, str(tmp_path / "train.csv"))
