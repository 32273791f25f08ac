"""Tests for patients.py: tables of patients"""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message, write_file

from fastcxr.data.patients import join_patients, normalize_ids
from fastcxr.errors import DataError


def join(tmp_path, text: str, *paths: str) -> list[str | None]:
    found = join_patients(pd.Series(paths), write_file(tmp_path / "patients.csv", text))
    return [None if pd.isna(patient) else patient for patient in found]


def refuse(tmp_path, text: str, *paths: str) -> str:
    with pytest.raises(DataError) as caught:
        join(tmp_path, text, *paths)
    return check_message(caught.value)


@pytest.mark.parametrize(
    "header",
    ["filename,patient", "path,patientid", "Image Index,Patient ID", "X_ray_image_name,patient_id", "file,Subject"],
)
def test_columns_may_be_called_as_collections_call_them(tmp_path, header):
    assert join(tmp_path, header + "\nc/a.png,7\n", "c/a.png") == ["7"]


def test_a_whole_path_goes_before_a_name_and_a_name_before_a_stem(tmp_path):
    text = "filename,patient\nc/a.png,1\na.png,2\nb.jpg,3\nx/d.png,4\nn/e.tif,5\n"
    assert join(tmp_path, text, "c/a.png", "n/b.png", "y/d.png", "n/e.png", "n/f.png") == ["1", "3", "4", "5", None]


def test_names_with_dots_and_backslashes_and_decomposed_letters_are_the_same_names(tmp_path):
    text = "filename,patient\nfig.webp-day1.png,1\nsub\\a.png,2\n./sub/b.png,3\ncafe\u0301.png,4\n"
    paths = ("c/fig.webp-day1.jpg", "sub/a.png", "sub/b.png", "caf\u00e9.png")
    assert join(tmp_path, text, *paths) == ["1", "2", "3", "4"]


def test_a_name_that_several_images_share_joins_none_of_them_and_is_said_loudly(tmp_path, caplog):
    assert join(tmp_path, "filename,patient\n1.png,7\n2.png,8\n", "a/1.png", "b/1.png", "a/2.png") == [None, None, "8"]
    assert "these have no patient from it: a/1.png, b/1.png. Give whole paths" in caplog.text


def test_a_path_that_was_joined_does_not_stand_for_its_namesake(tmp_path, caplog):
    assert join(tmp_path, "filename,patient\na/1.png,7\n", "a/1.png", "b/1.png") == ["7", None]
    assert not caplog.records


def test_a_stem_of_two_patients_joins_nobody(tmp_path):
    assert join(tmp_path, "filename,patient\n1.png,7\n1.tif,8\n2.png,9\n", "a/1.jpg", "a/2.jpg") == [None, "9"]


def test_numbers_are_text_and_blanks_are_nobody(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    text = "filename,patient\n1.png,2.0\n2.png,2\n3.png,NaN\n4.png,\n5.png,007\n"
    assert join(tmp_path, text, *(f"{i}.png" for i in range(1, 6))) == ["2", "2", None, None, "007"]
    assert "3 images have their patient from patients.csv" in caplog.text
    assert normalize_ids(pd.Series(["2.5", " P1 ", None, "-"])).dropna().tolist() == ["2.5", "P1"]


def test_a_file_with_two_patients_is_refused_by_line(tmp_path):
    text = refuse(tmp_path, "filename,patient\na.png,1\nb.png,2\na.png,3\n", "a.png")
    assert "FCX-E016" in text
    assert "1 files have more than one patient (lines 2, 4). Give every file one patient" in text


def test_a_table_of_other_files_is_refused(tmp_path):
    text = refuse(tmp_path, "filename,patient\nz.png,1\n", "a.png")
    assert "none of its file names belongs to an image (it says 'z.png', the images 'a.png'). Give a table of" in text
    assert "it says nothing" in refuse(tmp_path, "filename,patient\n", "a.png")


def test_missing_columns_are_named_with_those_that_there_are(tmp_path):
    text = refuse(tmp_path, "name,who\na.png,1\n", "a.png")
    assert "no column called filename; there are 'name', 'who'. Rename the column that holds it to filename" in text
    assert "no column called patient;" in refuse(tmp_path, "filename,who\n", "a.png")
