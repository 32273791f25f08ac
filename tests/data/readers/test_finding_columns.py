"""Tests for finding_columns.py, through the reader of tables."""

import logging

import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.readers.csv_table import is_label_table, read_label_table
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.row_checks import check_rows
from fastcxr.errors import DataError


@pytest.fixture
def read(tmp_path):
    write_files(tmp_path, "a.png", "b.png", "c.png")
    return lambda text, *columns: read_label_table(write_file(tmp_path / "own.csv", text), ReaderOptions(columns))


def list_values(rows, finding):
    return rows[f"finding_{finding}"].astype("object").where(rows[f"finding_{finding}"].notna(), None).tolist()


def test_a_column_per_finding_gives_several_labels_and_a_blank_is_unknown(read, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    rows = read("image,No Finding,Edema,Mass,age\na.png,1,0,0.0,50\nb.png,0,1,-1,1\nc.png,0,1,,0\n")
    assert list_values(rows, "Edema") == [0, 1, 1]
    assert list_values(rows, "Mass") == [0, -1, None]
    assert rows["label"].tolist() == ["No Finding", "Edema", "Edema"]
    assert "finding_No Finding" not in rows
    assert "Edema" not in rows
    assert rows["age"].tolist() == ["50", "1", "0"]
    assert "own.csv: findings from Edema, Mass" in caplog.text


def test_rows_without_any_known_finding_are_kept(read, tmp_path):
    rows = read("image,Edema,Mass\na.png,1,0\nb.png,,\nc.png,0,0\n")
    assert rows["label"].tolist() == ["Edema", "", ""]
    assert len(check_rows(rows, tmp_path)) == 3


def test_columns_with_one_1_per_row_are_classes(read, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    rows = read("image,Normal,Pneumonia\na.png,1,0\nb.png,0,1\nc.png,1,0\n")
    assert rows["label"].tolist() == ["Normal", "Pneumonia", "Normal"]
    assert rows.columns.tolist() == ["path", "label", "split", "file"]
    assert "own.csv: classes from the columns Normal, Pneumonia, with one 1 per row" in caplog.text


@pytest.mark.parametrize(
    "cells", ["1,0\nb.png,0,1\nc.png,1,1", "1,0\nb.png,0,1\nc.png,1,", "1,0\nb.png,0,1\nc.png,0,0"]
)
def test_two_ones_a_blank_or_no_1_in_a_row_are_several_labels(read, cells):
    assert "finding_Mass" in read(f"image,Edema,Mass\na.png,{cells}\n")


def test_truth_values_are_0_and_1(read):
    rows = read("image,Edema,Mass\na.png,True,FALSE\nb.png,true,True\n")
    assert rows["finding_Mass"].tolist() == [0, 1]


def test_columns_of_another_kind_are_no_findings_and_are_named(read, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    rows = read("path,sex,is_valid,fold,marker,Hernia,Edema\na.png,0,1,0,0,0,1\nb.png,1,0,1,0,0,0\n")
    assert [name for name in rows.columns if name.startswith("finding_")] == ["finding_Hernia", "finding_Edema"]
    assert rows["split"].tolist() == ["valid", "train"]
    assert rows["sex"].tolist() == ["0", "1"]
    assert "no findings by their name, or have one value: sex, is_valid, fold, marker" in caplog.text


def test_a_label_column_takes_precedence_with_a_log_line(read, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    rows = read("path,class,Edema,Mass\na.png,x,1,1\nb.png,y,0,1\nc.png,y,0,0\n")
    assert rows["label"].tolist() == ["x", "y", "y"]
    assert rows["Edema"].tolist() == ["1", "0", "0"]
    assert "own.csv: the label is class; not used: the columns Edema, Mass" in caplog.text


def test_a_finding_in_a_row_of_no_finding_is_a_warning_with_its_line(read, caplog):
    rows = read("path,No Finding,Edema,Support Devices\na.png,1,1,0\nb.png,1,,1\nc.png,,1,1\n")
    assert rows["label"].tolist() == ["No Finding|Edema", "No Finding|Support Devices", "Edema|Support Devices"]
    assert "own.csv: 1 row with a finding and a label such as No Finding or Normal (line 2)" in caplog.text


def test_a_wrong_value_of_a_finding_is_an_error_with_its_line(read):
    body = "a.png,1,0\nb.png,0,1\n" * 10 + "c.png,7,0\n"
    with pytest.raises(DataError) as caught:
        read(f"path,Edema,Mass\n{body}")
    assert "1 cells of Edema are not 1, 0, -1 or blank: '7' (line 22)" in check_message(caught.value)


DOUBTFUL = "path,died,Intubated,Diagnose\na.png,1,0,covid\nb.png,0,1,flu\nc.png,1,1,covid\nd.png,0,0,flu\n"


def test_a_column_of_texts_beside_unknown_findings_is_an_error_that_names_both_readings(read):
    with pytest.raises(DataError) as caught:
        read(DOUBTFUL)
    text = check_message(caught.value)
    assert "FCX-E029" in text
    assert "the labels may be the column 'Diagnose' or the findings died, Intubated" in text
    assert "Pass `columns=['label=Diagnose']` or `columns=['label=died,Intubated']`" in text


def test_the_user_chooses_the_label_or_the_findings(read):
    assert read(DOUBTFUL, "label=Diagnose")["label"].tolist() == ["covid", "flu", "covid", "flu"]
    rows = read(DOUBTFUL, "path=path,label=died,intubated")
    assert rows["label"].tolist() == ["died", "Intubated", "died|Intubated", ""]
    assert rows["finding_died"].tolist() == [1, 0, 1, 0]
    rows = read(DOUBTFUL.replace("Diagnose", "label"), "label=died,Intubated")
    assert rows["label"].tolist() == ["died", "Intubated", "died|Intubated", ""]


@pytest.mark.parametrize(
    "text",
    [
        DOUBTFUL.replace("died", "Edema").replace("Intubated", "pleural effusion"),  # known findings
        DOUBTFUL.replace("Diagnose", "view"),
        DOUBTFUL.replace("covid", "2020-01-02").replace("flu", "7"),
        DOUBTFUL.replace("c.png,1,1,covid", "c.png,1,1,other"),  # a text of one row is a remark
    ],
)
def test_findings_without_another_reading_are_read(read, text):
    assert len([name for name in read(text).columns if name.startswith("finding_")]) == 2


def test_one_column_of_0_and_1_is_no_label(read):
    with pytest.raises(DataError, match="E011 .*no column called label and no columns of 0 and 1 for several findings"):
        read("path,covid\na.png,1\nb.png,0\n")


def test_a_manifest_with_findings_is_read_as_it_was_written(read):
    rows = read("path,label,finding_Edema,finding_Mass\na.png,Edema,1,\nb.png,No Finding,0,0\nc.png,,-1,0\n")
    assert list_values(rows, "Edema") == [1, 0, -1]
    assert list_values(rows, "Mass") == [None, 0, 0]
    assert rows["label"].tolist() == ["Edema", "No Finding", ""]


def test_another_column_with_the_prefix_of_findings_is_renamed(read):
    rows = read("path,label,finding_text\na.png,x,words\n")
    assert rows["given_finding_text"].tolist() == ["words"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image_id,class\n", True),
        ("path,Edema,Mass\na.png,1,0\nb.png,1,1\nc.png,0,1\n", True),
        ("path,age,fold\na.png,1,0\nb.png,0,1\n", False),
        ("class,Edema\n", False),
        ("", False),
        ('path,x\n"a', False),
    ],
)
def test_a_label_table_has_a_path_and_a_label_or_findings(tmp_path, text, expected):
    assert is_label_table(write_file(tmp_path / "own.csv", text)) == expected
    assert not is_label_table(write_file(tmp_path / "own.txt", text))
