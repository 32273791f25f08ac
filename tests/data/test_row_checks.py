"""Tests for row_checks.py: rows are checked after their selection."""

import logging
from pathlib import Path

import pytest
from public_datasets import write_image

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError

ROWS = ("1.png,a,PA", "2.png,a,PA", "3.png,b,PA", "4.png,b,PA")


def make_table(folder: Path, *more: str, name: str = "x.csv") -> Path:
    for number in range(1, 5):
        write_image(folder / f"{number}.png", number)
    table = folder / name
    table.write_text("\n".join(["path,label,view", *ROWS, *more]))
    return table


def test_missing_files_and_blank_labels_of_rows_that_are_not_selected_do_not_matter(tmp_path):
    table = make_table(tmp_path, "5.png,c,PA", "6.png,a,L", "4.png,,L")
    with pytest.raises(DataError, match=r"1 rows have no label \(line 8\)"):
        read_manifest(table)
    manifest = read_manifest(table, filter=["view=PA"], classes=["a", "b"])
    assert manifest["path"].tolist() == ["1.png", "2.png", "3.png", "4.png"]


def test_skip_bad_leaves_out_rows_without_a_file_or_a_label_and_counts_them(tmp_path, caplog):
    table = make_table(tmp_path, "5.png,a,PA", "1.png,,PA")
    with caplog.at_level(logging.WARNING, "fastcxr"):
        assert len(read_manifest(table, skip_bad=True)) == 4
    assert "1 of 6 rows left out: 1 rows have no label (line 7)" in caplog.text
    assert "1 of 5 rows left out: 1 files are missing: '5.png' (line 6)" in caplog.text


def test_the_error_of_a_missing_file_names_the_option(tmp_path):
    with pytest.raises(DataError, match=r"1 files are missing: '5.png' \(line 6\).*`skip_bad=True`"):
        read_manifest(make_table(tmp_path, "5.png,a,PA"))


def test_rows_that_repeat_an_image_with_the_same_label_are_joined(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert len(read_manifest(make_table(tmp_path, "1.png,a,PA", "1.png,a,PA"))) == 4
    assert "2 rows of an image with an earlier row are left out" in caplog.text


def test_rows_that_contradict_each_other_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"different labels: 1.png \(lines 2, 6\)"):
        read_manifest(make_table(tmp_path, "1.png,b,PA"), skip_bad=True)


def test_classes_may_be_given_in_one_text_with_commas(tmp_path):
    table = make_table(tmp_path, '1.png,"a, b",PA')
    table.write_text(table.read_text().replace('1.png,"a, b",PA', "").replace("1.png,a", '1.png,"c, d"'))
    options = {"label_separator": "none"}
    assert set(read_manifest(table, classes=["a,b"], only_test=True, **options)["label"]) == {"a", "b"}
    assert set(read_manifest(table, classes=["c, d", "b"], only_test=True, **options)["label"]) == {"c, d", "b"}


def test_two_tables_that_are_named_for_splits_are_splits(tmp_path, caplog):
    make_table(tmp_path)
    (tmp_path / "train.csv").write_text("path,label\n1.png,a\n3.png,b\n")
    (tmp_path / "test.csv").write_text("path,label\n2.png,a\n4.png,b\n")
    with caplog.at_level(logging.INFO, "fastcxr"):
        manifest = read_manifest([tmp_path / "train.csv", tmp_path / "test.csv"])
    assert manifest.set_index("path")["split"].to_dict() == {
        "1.png": "train", "2.png": "test", "3.png": "train", "4.png": "test",
    }  # fmt: skip
    assert manifest["source"].nunique() == 1
    assert "train.csv is train, test.csv is test" in caplog.text


def test_two_folders_that_are_named_for_splits_are_splits(tmp_path):
    for number, name in enumerate(["train/a/1", "train/b/1", "test/a/1", "test/b/1"]):
        write_image(tmp_path / f"{name}.png", number)
    manifest = read_manifest([tmp_path / "train", tmp_path / "test"], only_test=True)
    assert manifest["split"].tolist() == ["train", "train", "test", "test"]
    assert manifest["path"].tolist() == ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"]


def test_tables_in_two_folders_that_are_named_for_splits_are_splits(tmp_path):
    for number, split in enumerate(("train", "test")):
        write_image(tmp_path / split / "0.png", number)
        (tmp_path / split / "labels.csv").write_text("path,label\n0.png,a\n")
    manifest = read_manifest([tmp_path / "train", tmp_path / "test"], only_test=True)
    assert manifest["path"].tolist() == ["train/0.png", "test/0.png"]
    assert manifest["split"].tolist() == ["train", "test"]
    assert manifest["source"].unique().tolist() == [tmp_path.name]


def test_a_split_file_gives_the_splits_of_a_dataset(tmp_path):
    table = make_table(tmp_path)
    (tmp_path / "test_list.txt").write_text("2.png\n4.png\n")
    (tmp_path / "train_list.txt").write_text("1.png\n3.png\n")
    files = [str(tmp_path / "test_list.txt"), str(tmp_path / "train_list.txt")]
    manifest = read_manifest(table, split_file=files)
    assert manifest["split"].tolist() == ["train", "test", "train", "test"]
