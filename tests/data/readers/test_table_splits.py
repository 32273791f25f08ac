"""Tests for table_splits.py, through the reader of tables."""

import logging

import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.readers.csv_table import read_label_table
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError


@pytest.fixture
def read(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_files(tmp_path, *(f"{i}.png" for i in range(4)))

    def read(header, *cells, columns=()):
        body = "".join(f"{i}.png,ab,{cell}\n" for i, cell in enumerate(cells))
        path = write_file(tmp_path / "own.csv", f"path,label,{header}\n{body}")
        return list_splits(read_label_table(path, ReaderOptions(columns=columns)))

    return read


def list_splits(rows):
    return rows["split"].astype("object").where(rows["split"].notna(), None).tolist()


@pytest.mark.parametrize("name", ["subset", "set", "Partition", "phase", "dataset_split", "anything"])
def test_a_column_whose_cells_name_splits_gives_the_splits(read, name, caplog):
    assert read(name, "Train", "val", "testing", "train") == ["train", "valid", "test", "train"]
    assert f"own.csv: split from {name}, whose cells name splits" in caplog.text


def test_a_column_with_other_values_is_not_used_with_a_warning(read, caplog):
    assert read("subset", "train", "train", "holdout") == [None] * 3
    text = "own.csv: the column 'subset' is not used as split, because of the values 'holdout'. "
    assert text + "Use train, valid or test in all rows" in caplog.text
    assert read("words", "test", "pilot", "other") == [None] * 3
    assert "words" not in caplog.text


def test_a_split_column_takes_precedence(read):
    assert read("set,split", "test,train", "train,test") == ["train", "test"]
    assert read("set,is_valid", "test,1", "train,0") == ["valid", "train"]


def test_two_columns_with_different_splits_are_an_error_that_names_the_option(read):
    assert read("set,subset", "train,training", "test,test") == ["train", "test"]
    with pytest.raises(DataError) as caught:
        read("set,subset", "train,train", "test,train")
    text = check_message(caught.value)
    assert "several columns may contain the split: 'set', 'subset'" in text
    assert "Pass `columns=['split=set']`" in text
    assert read("set,subset", "train,train", "test,train", columns=["split=set"]) == ["train", "test"]


def test_is_test_gives_the_splits_also_beside_is_valid(read):
    assert read("is_test", "1", "False", "0.0", "") == ["test", "train", "train", None]
    assert read("is_valid,is_test", "1,0", "0,1", "0,0") == ["valid", "test", "train"]
    with pytest.raises(DataError, match=r"E012 .*1 rows are in both test and valid \(line 3\)"):
        read("is_valid,is_test", "1,0", "1,1")
    with pytest.raises(DataError, match=r"unknown is_test: 'x' \(line 2\). Use True \(test\) or False"):
        read("is_test", "x")


def read_paths(folder, *paths):
    write_files(folder, *paths)
    table = write_file(folder / "own.csv", "path,label\n" + "".join(f"{path},ab\n" for path in paths))
    return list_splits(read_label_table(table))


def test_split_folders_in_all_paths_give_the_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    paths = ("images/train/1.png", "images/Test/2.png", "images/valid/deep/3.png")
    assert read_paths(tmp_path, *paths) == ["train", "test", "valid"]
    assert "own.csv: splits from the folders Test/, train/, valid/ of the paths" in caplog.text


def test_split_folders_in_some_paths_are_a_warning(tmp_path, caplog):
    assert read_paths(tmp_path, "train/1.png", "test/2.png", "more/3.png") == [None] * 3
    text = "own.csv: 2 paths are in the folders test/, train/, which are not used as splits"
    assert text in caplog.text


def test_one_split_folder_is_no_split(tmp_path, caplog):
    assert read_paths(tmp_path, "train/1.png", "train/2.png") == [None] * 2
    assert caplog.records == []
