"""Tests for imagefolder.py."""

import json

import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.readers.imagefolder import DATASET
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError


def read(folder):
    return DATASET.read(DATASET.detect(folder), ReaderOptions())


def write_lines(path, *rows: dict):
    return write_file(path, "".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def split_folder(tmp_path):
    write_files(tmp_path, "train/1.png", "train/2.png", "test/1.png", "validation/5.png")
    for name, files in {"train": "12", "test": "1", "validation": "5"}.items():
        body = "".join(f"{file}.png,{'covid' if file == '1' else 'normal'}\n" for file in files)
        write_file(tmp_path / name / "metadata.csv", f"file_name,label\n{body}")
    return tmp_path


def test_metadata_csv_beside_the_images(tmp_path):
    write_files(tmp_path, "images/a.png", "images/b.png")
    path = write_file(tmp_path / "metadata.csv", "file_name,label\nimages/a.png,covid\nimages/b.png,normal\n")
    rows = read(tmp_path)
    assert rows["path"].tolist() == ["images/a.png", "images/b.png"]
    assert rows["label"].tolist() == ["covid", "normal"]
    assert rows["split"].isna().all()
    assert rows.index.tolist() == [2, 3]
    assert DATASET.detect(path) == tmp_path


def test_json_lines_with_a_list_of_labels_have_several_labels_per_image(tmp_path):
    write_files(tmp_path, "a.png", "b.png")
    write_lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "labels": ["Edema", "Mass"], "age": 50},
        {"file_name": "b.png", "labels": ["No Finding"], "age": None},
    )
    rows = read(tmp_path)
    assert rows["label"].tolist() == ["Edema|Mass", "No Finding"]
    assert rows["finding_Mass"].tolist() == [1, 0]
    assert rows["age"].fillna("").tolist() == ["50", ""]


def test_a_metadata_file_in_each_split_folder_gives_the_splits(split_folder):
    rows = read(split_folder).sort_values("path")
    assert rows["path"].tolist() == ["test/1.png", "train/1.png", "train/2.png", "validation/5.png"]
    assert rows["split"].tolist() == ["test", "train", "train", "valid"]
    assert rows["label"].tolist() == ["covid", "covid", "normal", "normal"]
    assert rows["file"].tolist() == [str(split_folder / path) for path in rows["path"]]
    assert rows.index.name == "row"
    assert rows.index.is_unique


def test_one_metadata_file_above_the_split_folders_gives_the_splits_too(tmp_path):
    write_files(tmp_path, "train/1.png", "test/2.png")
    write_file(tmp_path / "metadata.csv", "file_name,label\ntrain/1.png,covid\ntest/2.png,normal\n")
    assert read(tmp_path)["split"].tolist() == ["train", "test"]


def test_the_split_folders_may_be_in_data(split_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    split_folder.rename(root / "data")
    rows = read(root)
    assert set(rows["path"]) == {"data/test/1.png", "data/train/1.png", "data/train/2.png", "data/validation/5.png"}
    assert rows["file"].notna().all()
    assert set(rows["split"]) == {"train", "valid", "test"}


def test_an_image_of_another_split_folder_is_missing(split_folder):
    write_file(split_folder / "test" / "metadata.csv", "file_name,label\n2.png,normal\n")
    rows = read(split_folder)
    assert rows.loc[rows["file"].isna(), "path"].tolist() == ["test/2.png"]


def test_metadata_files_with_different_columns_are_an_error(split_folder):
    write_file(split_folder / "test" / "metadata.csv", "file_name,class\n1.png,covid\n")
    with pytest.raises(DataError) as caught:
        read(split_folder)
    assert "metadata.csv differ. Give all metadata files the same columns" in check_message(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "filename,label\na.png,x\n"),  # Cohen's collection
        ("metadata.csv", "file_name,caption\na.png,x\n"),
        ("labels.csv", "file_name,label\na.png,x\n"),
        ("metadata.jsonl", "no json\n"),
    ],
)
def test_other_folders_are_not_detected(tmp_path, name, text):
    write_files(tmp_path, "a.png")
    write_file(tmp_path / name, text)
    assert DATASET.detect(tmp_path) is None
    assert DATASET.detect(tmp_path / name) is None
