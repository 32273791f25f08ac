"""Tests for csv_table.py"""

import logging
import os

import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.readers.csv_table import read_label_table
from fastcxr.errors import FastcxrError, InputMissingError

FILES = ("a.png", "b.png", "sub/c d.png", "sub/e.png")


@pytest.fixture
def table(tmp_path):
    write_files(tmp_path, *FILES)
    return lambda text: write_file(tmp_path / "labels.csv", text)


def refuse(path) -> str:
    with pytest.raises(FastcxrError) as caught:
        read_label_table(path)
    return check_message(caught.value)


def test_columns_come_in_any_order_and_further_ones_are_kept_as_text(table, tmp_path):
    path = table("age,split,label,view,path,patient,source\n063,TRAIN,covid,PA,a.png,7,x\n,val,normal,,sub/c d.png,,\n")
    rows = read_label_table(path)
    assert rows["path"].tolist() == ["a.png", "sub/c d.png"]
    assert rows["split"].tolist() == ["train", "valid"]
    assert rows["age"].tolist()[0] == "063"
    assert rows[["age", "view"]].isna().sum().tolist() == [1, 1]
    assert rows["file"].tolist() == [str(tmp_path / "a.png"), str(tmp_path / "sub/c d.png")]
    assert rows.index.tolist() == [0, 1]


def test_absolute_paths_spaces_and_backslashes_are_found(table, tmp_path):
    rows = read_label_table(table(f"path,label\n{tmp_path}/a.png,x\n b.png ,y\nsub\\c d.png,y\n"))
    assert rows["path"].tolist() == [f"{tmp_path}/a.png", "b.png", "sub/c d.png"]


def test_a_column_under_another_name_is_suggested(table):
    assert "no column called path (did you mean 'filename'?). Rename the column" in refuse(table("filename,label\n"))
    assert "no column called label (did you mean 'finding'?). Rename the column" in refuse(table("path,finding\n"))
    assert "FCX-E011" in refuse(table("x,y\n"))


def test_a_column_nearly_called_patient_or_split_is_said_loudly(table, caplog):
    rows = read_label_table(table("path,label,patiens,slit\na.png,x,1,train\nb.png,y,2,test\n"))
    assert "no column called patient (did you mean 'patiens'?) It is not used" in caplog.text
    assert "'slit'" in caplog.text
    assert "patiens" in rows


def test_a_patient_id_is_taken_as_the_patient_aloud(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    assert read_label_table(table("path,label,Patient ID\na.png,x,1\n"))["patient"].tolist() == ["1"]
    assert "the column 'Patient ID' is taken as the patient" in caplog.text
    text = refuse(table("path,label,patient_id,subject\na.png,x,1,2\n"))
    assert "several columns could be the patient: 'patient_id', 'subject'. Rename the right one" in text


def test_names_that_fastcxr_writes_itself_are_given_another(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    header = "path,label,file,error,prob_x,patient_origin,given_file\n"
    rows = read_label_table(table(header + "a.png,x,1,2,3,4,5\n"))
    assert {"given_given_file", "given_error", "given_prob_x", "given_patient_origin", "given_file"} <= set(
        rows.columns
    )
    assert rows["given_file"].tolist() == ["5"]
    assert rows["given_given_file"].tolist() == ["1"]
    assert "error to given_error" in caplog.text


def test_blank_paths_and_labels_are_named_by_line(table):
    assert "2 rows have no label (lines 2, 4). Fill in every label" in refuse(
        table("path,label\na.png,\nb.png,y\nsub/e.png,nan\n")
    )
    assert "1 rows have no path (line 3). Fill in every path" in refuse(table("path,label\na.png,x\n,y\n"))


def test_unknown_splits_are_named_by_line(table):
    text = refuse(table("path,label,split\na.png,x,train\nb.png,y,holdout\n"))
    assert "FCX-E012" in text
    assert "'holdout' (line 3). Call each train, valid or test" in text


def test_missing_files_are_all_named_by_line(table, tmp_path):
    text = refuse(table("path,label\n" + "".join(f"{i}.png,x\n" for i in range(30))))
    assert "FCX-E013" in text
    assert "30 files are not there: '0.png'" in text
    assert "lines 2, 3, 4" in text
    assert "21 and 10 more). Paths are looked up from " + str(tmp_path) in text


@pytest.mark.parametrize(
    "body",
    ["a.png,x|y\nb.png,z\n", "a.png,x;y\nb.png,z\n", 'a.png,"x, y"\nb.png,x\nsub/e.png,y\n', "a.png,x\na.png,y\n"],
)
def test_several_labels_an_image_are_refused_with_a_remedy(table, body):
    text = refuse(table("path,label\n" + body))
    assert "FCX-E015" in text
    assert "this table gives several labels an image; fastcxr trains one label an image (kind: single_label)" in text
    assert "(line" in text
    assert "Give one label column with one label in each cell" in text


def test_a_column_for_each_finding_is_refused_as_several_labels(table):
    text = refuse(table("path,covid,pneumonia,age\na.png,0,1,50\nb.png,1.0,,0\n"))
    assert "kind: single_label). No column is called label, and 'covid', 'pneumonia' hold 0 and 1" in text


def test_a_comma_in_a_label_is_no_sign_of_several(table):
    assert (
        read_label_table(table('path,label\na.png,"opacity, left"\nb.png,n/a\n'))["label"].tolist()[0]
        == "opacity, left"
    )


def test_repeated_rows_are_named_by_line(table):
    text = refuse(table("path,label\na.png,x\nb.png,y\n./a.png,x\n"))
    assert "FCX-E014" in text
    assert "2 rows repeat an image (lines 2, 4). Keep one row an image" in text


def test_one_image_under_two_names_has_one_label_and_one_split(table, tmp_path):
    os.link(tmp_path / "a.png", tmp_path / "twin.png")
    text = refuse(table("path,label\na.png,x\ntwin.png,y\n"))
    assert "FCX-E008" in text
    assert "line 2 x a.png = line 3 y twin.png" in text
    text = refuse(table("path,label,split\na.png,x,train\ntwin.png,x,test\n"))
    assert "FCX-E009" in text
    assert "line 2 train a.png = line 3 test twin.png" in text


def test_a_header_without_rows_is_no_data(table):
    with pytest.raises(InputMissingError, match="FCX-E002 .*0 images.*Give a row for each image"):
        read_label_table(table("path,label\n"))
