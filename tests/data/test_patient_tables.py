"""Tests of patient tables."""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message, write_file

from fastcxr.data.patients import join_patients, normalize_ids
from fastcxr.errors import DataError


def join(tmp_path, text: str, *paths: str) -> list[str | None]:
    found = join_patients(pd.Series(paths), write_file(tmp_path / "patients.csv", text))
    return [None if pd.isna(patient) else patient for patient in found]


def catch_error(tmp_path, text: str, *paths: str) -> str:
    with pytest.raises(DataError) as caught:
        join(tmp_path, text, *paths)
    return check_message(caught.value)


@pytest.mark.parametrize(
    "header",
    ["filename,patient", "path,patientid", "Image Index,Patient ID", "X_ray_image_name,patient_id", "file,Subject"],
)
def test_column_names_of_public_collections_are_recognized(tmp_path, header):
    assert join(tmp_path, header + "\nc/a.png,7\n", "c/a.png") == ["7"]


def test_a_full_path_takes_precedence_over_a_name_and_a_name_over_a_stem(tmp_path):
    text = "filename,patient\nc/a.png,1\na.png,2\nb.jpg,3\nx/d.png,4\nn/e.tif,5\n"
    assert join(tmp_path, text, "c/a.png", "n/b.png", "y/d.png", "n/e.png", "n/f.png") == ["1", "3", "4", "5", None]


def test_names_match_with_dots_backslashes_and_decomposed_letters(tmp_path):
    text = "filename,patient\nfig.webp-day1.png,1\nsub\\a.png,2\n./sub/b.png,3\nZu\u0308rich.png,4\n"
    paths = ("c/fig.webp-day1.jpg", "sub/a.png", "sub/b.png", "Z\u00fcrich.png")
    assert join(tmp_path, text, *paths) == ["1", "2", "3", "4"]


def test_a_name_shared_by_several_images_gives_no_patient_and_causes_a_warning(tmp_path, caplog):
    assert join(tmp_path, "filename,patient\n1.png,7\n2.png,8\n", "a/1.png", "b/1.png", "a/2.png") == [None, None, "8"]
    assert "these get no patient: a/1.png, b/1.png. Use full paths" in caplog.text


def test_a_matched_path_is_not_used_for_another_image_with_its_name(tmp_path, caplog):
    assert join(tmp_path, "filename,patient\na/1.png,7\n", "a/1.png", "b/1.png") == ["7", None]
    assert not caplog.records


def test_a_stem_with_two_patients_gives_no_patient(tmp_path):
    assert join(tmp_path, "filename,patient\n1.png,7\n1.tif,8\n2.png,9\n", "a/1.jpg", "a/2.jpg") == [None, "9"]


def test_numbers_are_text_and_blanks_are_missing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    text = "filename,patient\n1.png,2.0\n2.png,2\n3.png,NaN\n4.png,\n5.png,007\n"
    assert join(tmp_path, text, *(f"{i}.png" for i in range(1, 6))) == ["2", "2", None, None, "007"]
    assert "3 images with a patient from patients.csv" in caplog.text
    assert normalize_ids(pd.Series(["2.5", " P1 ", None, "-"])).dropna().tolist() == ["2.5", "P1"]


def test_a_file_with_two_patients_is_rejected_with_line_numbers(tmp_path):
    text = catch_error(tmp_path, "filename,patient\na.png,1\nb.png,2\na.png,3\n", "a.png")
    assert "FCX-E016" in text
    assert "1 files have more than one patient (lines 2, 4). Give every file one patient" in text


def test_a_table_of_other_files_is_rejected(tmp_path):
    text = catch_error(tmp_path, "filename,patient\nz.png,1\n", "a.png")
    assert "no file name matches an image (the table has 'z.png', the images are 'a.png'). Pass a table of" in text
    assert "the table has nothing" in catch_error(tmp_path, "filename,patient\n", "a.png")


def test_a_missing_column_is_rejected_with_the_existing_names(tmp_path):
    text = catch_error(tmp_path, "name,who\na.png,1\n", "a.png")
    assert "no column is called filename, only 'name', 'who'. Rename the matching column to filename" in text
    assert "no column is called patient," in catch_error(tmp_path, "filename,who\n", "a.png")
