"""Tests for csv_table.py."""

import gzip
import logging
import os

import pandas as pd
import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.readers.csv_table import is_label_table, make_label_rows, read_label_table
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.row_checks import check_rows
from fastcxr.errors import DataError, FastcxrError, InputMissingError
from fastcxr.io.tables import make_text_table

FILES = ("a.png", "b.png", "sub/c d.png", "sub/e.png")


@pytest.fixture
def table(tmp_path):
    write_files(tmp_path, *FILES)
    return lambda text: write_file(tmp_path / "labels.csv", text)


def read_checked(path) -> pd.DataFrame:
    return check_rows(read_label_table(path), path)


def get_error(path) -> str:
    with pytest.raises(FastcxrError) as caught:
        read_checked(path)
    return check_message(caught.value)


def test_columns_may_have_any_order_and_other_columns_are_kept_as_text(table, tmp_path):
    path = table("age,split,label,view,path,patient,source\n063,TRAIN,covid,PA,a.png,7,x\n,val,normal,,sub/c d.png,,\n")
    rows = read_label_table(path)
    assert rows["path"].tolist() == ["a.png", "sub/c d.png"]
    assert rows["split"].tolist() == ["train", "valid"]
    assert rows["age"].tolist()[0] == "063"
    assert rows[["age", "view"]].isna().sum().tolist() == [1, 1]
    assert rows["file"].tolist() == [str(tmp_path / "a.png"), str(tmp_path / "sub/c d.png")]
    assert rows.index.tolist() == [2, 3]
    assert rows.index.name == "line"


def test_absolute_paths_and_paths_with_spaces_or_backslashes_are_found(table, tmp_path):
    rows = read_label_table(table(f"path,label\n{tmp_path}/a.png,x\n b.png ,y\nsub\\c d.png,y\n"))
    assert rows["path"].tolist() == [f"{tmp_path}/a.png", "b.png", "sub/c d.png"]


def test_a_column_with_a_similar_name_is_suggested(table):
    text = get_error(table("pathh,label\n"))
    assert "no column called path (did you mean 'pathh'?); the columns are 'pathh', 'label'. Rename the column" in text
    text = get_error(table("path,labelled\na.png,x\n"))
    assert "no column called label (did you mean 'labelled'?) and no columns of 0 and 1 for several findings" in text
    assert "for several findings; the columns are 'path', 'labelled'. Rename" in text
    assert "or pass `columns=['label=NAME']`" in text
    assert "FCX-E011" in get_error(table("x,y\n"))


def test_a_column_with_a_name_similar_to_patient_or_split_is_a_warning(table, caplog):
    rows = read_label_table(table("path,label,patiens,slit\na.png,x,1,train\nb.png,y,2,test\n"))
    assert "no column called patient (did you mean 'patiens'?); the similar column is ignored" in caplog.text
    assert "'slit'" in caplog.text
    assert "patiens" in rows


def test_columns_that_the_user_chooses_replace_those_with_the_names_of_the_manifest(table):
    path = table("image,path,label,cls\na.png,1,x,u\nb.png,2,x,v\n")
    rows = read_label_table(path, ReaderOptions(columns=("path=image", "label=cls")))
    assert rows["path"].tolist() == ["a.png", "b.png"]
    assert rows["label"].tolist() == ["u", "v"]
    assert rows["given_path"].tolist() == ["1", "2"]
    assert rows["given_label"].tolist() == ["x", "x"]


def test_a_separator_of_the_user_gives_several_labels(table):
    path = table('file_name,Finding Labels\na.png,"Edema, Mass"\nb.png,No Finding\n')
    assert "FCX-E015" in get_error(path)
    rows = read_label_table(path, ReaderOptions(label_separator=","))
    assert rows["label"].tolist() == ["Edema|Mass", "No Finding"]
    assert rows["finding_Mass"].tolist() == [1, 0]
    rows = read_label_table(path, ReaderOptions(label_separator="none"))
    assert rows["label"].tolist() == ["Edema, Mass", "No Finding"]
    assert "finding_Mass" not in rows


def test_lists_in_a_data_frame_are_several_labels_per_image(table, tmp_path):
    frame = pd.DataFrame({"image": ["a", "b"], "labels": [["Edema", "Mass"], ["Mass"]]})
    rows = make_label_rows(make_text_table(frame, tmp_path / "DataFrame"), tmp_path / "DataFrame")
    assert rows["label"].tolist() == ["Edema|Mass", "Mass"]
    assert rows["path"].tolist() == ["a.png", "b.png"]
    assert rows.index.name == "row"


def test_a_compressed_table_is_read_as_the_plain_one(table, tmp_path):
    path = table("path,label\na.png,x\nb.png,y\n")
    compressed = write_file(tmp_path / "labels.csv.gz", gzip.compress(path.read_bytes()))
    pd.testing.assert_frame_equal(read_label_table(compressed), read_label_table(path))
    assert is_label_table(compressed)


def test_a_table_in_utf_16_is_recognised(table, tmp_path):
    path = write_file(tmp_path / "labels.csv", "path;label\na.png;Ödem\nb.png;y\n".encode("utf-16"))
    assert is_label_table(path)
    assert read_label_table(path)["label"].tolist() == ["Ödem", "y"]


def test_reserved_column_names_are_renamed(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    header = "path,label,file,error,prob_x,patient_origin,given_file\n"
    rows = read_label_table(table(header + "a.png,x,1,2,3,4,5\n"))
    assert {"given_given_file", "given_error", "given_prob_x", "given_patient_origin", "given_file"} <= set(
        rows.columns
    )
    assert rows["given_file"].tolist() == ["5"]
    assert rows["given_given_file"].tolist() == ["1"]
    assert "error to given_error" in caplog.text


def test_blank_paths_are_an_error_and_blank_labels_are_rejected_after_the_selection(table):
    assert "1 rows have no path (line 3). Fill in every path" in get_error(table("path,label\na.png,x\n,y\n"))
    rows = read_label_table(path := table("path,label\na.png,\nb.png,y\nsub/e.png,nan\n"))
    assert rows["label"].tolist() == ["", "y", ""]
    with pytest.raises(DataError, match=r"FCX-E012 .*2 rows have no label \(lines 2, 4\). Fill in every label"):
        check_rows(rows, path)
    assert len(check_rows(rows[rows["label"] == "y"], path)) == 1


def test_unknown_splits_are_an_error_with_line_numbers(table):
    text = get_error(table("path,label,split\na.png,x,train\nb.png,y,holdout\n"))
    assert "FCX-E012" in text
    assert "'holdout' (line 3). Use train, valid or test" in text


def test_missing_files_keep_their_name_and_are_rejected_after_the_selection(table, tmp_path):
    rows = read_label_table(path := table("path,label\nb.png,y\n" + "".join(f"{i}.png,x\n" for i in range(30))))
    assert rows["file"].isna().tolist() == [False, *[True] * 30]
    assert rows["path"].tolist()[:3] == ["b.png", "0.png", "1.png"]
    with pytest.raises(DataError) as caught:
        check_rows(rows, path)
    text = check_message(caught.value)
    assert "FCX-E013" in text
    assert "30 files are missing: '0.png'" in text
    assert "lines 3, 4, 5" in text
    assert "22 and 10 more). Correct the paths (relative to " + str(tmp_path) in text
    assert len(check_rows(rows[rows["label"] == "y"], path)) == 1


def test_rows_of_an_image_with_different_labels_are_an_error(table):
    text = get_error(table("path,label\na.png,x\na.png,y\n"))
    assert "FCX-E015" in text
    assert "images have several rows with different labels: a.png (lines 2, 3). Keep one row per image" in text


def test_rows_that_agree_are_joined_and_counted(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    rows = read_checked(
        table("path,label,patient,box\na.png,x,1,5\nb.png,y,2,6\n./a.png,x,1,7\nsub/e.png,x,,\nsub/e.png,x,,\n")
    )
    assert rows.index.tolist() == [2, 3, 5]
    assert rows["path"].tolist() == ["a.png", "b.png", "sub/e.png"]
    assert rows["box"].tolist()[0] == "5"
    assert "2 rows of an image with an earlier row are left out: label, split and patient are the same" in caplog.text


def test_rows_of_an_image_with_two_patients_or_two_values_of_a_finding_are_an_error(table):
    text = get_error(table("path,label,patient\na.png,x,1\nb.png,y,2\na.png,x,2\n"))
    assert "FCX-E014" in text
    assert "2 rows repeat an image with different values of patient (lines 2, 4). Keep one row per image" in text
    text = get_error(table("path,Edema,Mass\na.png,1,0\nb.png,0,1\na.png,1,\n"))
    assert "different values of Mass (lines 2, 4)" in text
    rows = read_checked(table("path,Edema,Mass\na.png,1,0\nb.png,,1\na.png,1,0\n"))
    assert rows["finding_Mass"].tolist() == [0, 1]


def test_an_image_with_two_names_must_have_one_label_and_one_split(table, tmp_path):
    os.link(tmp_path / "a.png", tmp_path / "twin.png")
    text = get_error(table("path,label\na.png,x\ntwin.png,y\n"))
    assert "FCX-E008" in text
    assert "line 2 x a.png = line 3 y twin.png" in text
    text = get_error(table("path,label,split\na.png,x,train\ntwin.png,x,test\n"))
    assert "FCX-E009" in text
    assert "line 2 train a.png = line 3 test twin.png" in text


def test_a_header_without_rows_is_an_error(table):
    with pytest.raises(InputMissingError, match="FCX-E002 .*0 images.*Add one row per image"):
        read_label_table(table("path,label\n"))
