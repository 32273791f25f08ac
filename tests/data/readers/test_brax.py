"""Tests for brax.py."""

import logging

import pandas as pd
import pytest
from layouts_mimic_padchest import BRAX_TABLE, make_brax, write_table
from toy_datasets import check_message

from fastcxr.data.demographics import parse_age
from fastcxr.data.findings import list_findings
from fastcxr.data.readers.brax import DATASET, read_brax
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError, InputMissingError


def read(root) -> pd.DataFrame:
    return read_brax(root, ReaderOptions())


def test_labels_keep_uncertain_and_unknown_values(tmp_path):
    rows = read(make_brax(tmp_path))
    assert rows["label"].tolist() == ["No Finding", "", "Pneumonia"]
    assert rows["finding_Pneumonia"].tolist() == [pd.NA, -1, 1]
    assert rows["finding_Edema"].tolist() == [pd.NA, 0, pd.NA]
    assert len(list_findings(rows)) == 13
    assert rows.index.tolist() == [2, 3, 4]


def test_patient_sex_age_and_view_are_read_from_the_table(tmp_path):
    rows = read(make_brax(tmp_path))
    assert rows["patient"].tolist() == ["id_0000", "id_0000", "id_0001"]
    assert rows["sex"].tolist() == ["M", "F", "M"]
    assert rows["age"].tolist() == ["85", "60", "35"]
    assert [parse_age(age) for age in rows["age"]] == [85, 60, 35]
    assert rows["view"].fillna("").tolist() == ["lateral", "PA", ""]
    assert rows["Manufacturer"].tolist() == ["Vendor"] * 3
    assert not {"AccessionNumber", "StudyDate", "DicomPath"} & set(rows)
    assert rows["split"].isna().all()


def test_thin_strips_are_left_out_and_counted(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert len(read(make_brax(tmp_path))) == 3
    assert "left out 1 image with a ratio of the sides above 10" in caplog.text


def test_a_missing_file_keeps_its_row(tmp_path):
    root = make_brax(tmp_path)
    path = "images/id_0000/Study_1/Series_1/image-1.png"
    (root / path).unlink()
    rows = read(root)
    assert rows["file"].isna().tolist() == [False, True, False]
    assert rows["path"].iloc[1] == path


def test_a_file_of_the_same_name_in_another_series_is_another_image(tmp_path):
    root = make_brax(tmp_path)
    here, other = (root / f"images/id_0000/Study_{n}/Series_1/image-0.png" for n in (0, 9))
    other.parent.mkdir(parents=True)
    here.rename(other)
    assert read(root)["file"].isna().tolist() == [True, False, False]


def test_the_folder_may_be_named_by_its_parent_its_table_or_its_images(tmp_path):
    root = make_brax(tmp_path / "brax" / "1.1.0")
    for path in (root, root.parent, root / BRAX_TABLE, root / "images"):
        assert DATASET.detect(path) == root
    assert DATASET.detect(root / "images" / "id_0000") is None


def test_another_table_is_not_recognised_and_is_an_error(tmp_path):
    write_table(tmp_path / BRAX_TABLE, "path,label", [["a.png", "x"]])
    assert DATASET.detect(tmp_path) is None
    assert DATASET.detect(tmp_path / BRAX_TABLE) is None
    with pytest.raises(InputMissingError) as caught:
        read(tmp_path)
    assert f"no {BRAX_TABLE} with the columns PngPath" in check_message(caught.value)


def test_a_repeated_image_is_an_error(tmp_path):
    table = make_brax(tmp_path) / BRAX_TABLE
    table.write_text(table.read_text() + table.read_text().splitlines()[2] + "\n")
    with pytest.raises(DataError, match=r"2 rows repeat a value of PngPath \(lines 3, 6\)"):
        read(tmp_path)
