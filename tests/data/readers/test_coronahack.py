"""Tests for coronahack.py."""

import logging

import pytest
from public_datasets import make_coronahack
from toy_datasets import check_message

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError


def get_error(folder, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(folder, **options)
    return check_message(caught.value)


@pytest.mark.parametrize("nest", ["", "Coronahack-Chest-XRay-Dataset/Coronahack-Chest-XRay-Dataset"])
def test_the_table_and_its_folders_give_four_classes(tmp_path, caplog, nest):
    with caplog.at_level(logging.INFO, "fastcxr"):
        manifest = read_manifest(make_coronahack(tmp_path / "hack", nest=nest))
    assert "data format: CoronaHack (Chest_xray_Corona_Metadata.csv)" in caplog.text
    assert manifest.groupby("label")["split"].agg(set).to_dict() == dict.fromkeys(
        ["Bacteria", "COVID-19", "Normal", "Virus"], {"train", "test"}
    )
    assert set(manifest["split_origin"]) == {"given"}
    first = manifest.iloc[0]
    assert first["path"] == f"{nest}/train/IM-0001-0001.jpeg".lstrip("/")
    assert first["file"] == str(tmp_path / "hack" / first["path"])


def test_sources_follow_from_the_pattern_of_file_names(tmp_path):
    manifest = read_manifest(make_coronahack(tmp_path))
    assert manifest["source"].tolist() == ["kermany"] * 6 + ["other"] * 2


def test_patients_come_from_file_names_if_the_table_has_none(tmp_path):
    manifest = read_manifest(make_coronahack(tmp_path))
    assert manifest["patient"].tolist()[:4] == ["IM-0001", "NORMAL2-IM-0002", "person1", "person1"]
    assert manifest["patient_origin"].tolist() == ["im", "im", *["kermany"] * 4, "image", "image"]


def test_patients_of_the_table_take_precedence(tmp_path):
    names = tuple(f"p{i}" for i in range(8))
    manifest = read_manifest(make_coronahack(tmp_path, patients=names))
    assert manifest["patient"].tolist() == list(names)
    assert set(manifest["patient_origin"]) == {"column"}


def test_pathogens_are_labelled_by_type_and_rows_without_a_label_are_skipped_and_logged(tmp_path, caplog):
    rows = ["x1.jpg,Pnemonia,TRAIN,SARS,Virus", "x2.jpg,Pnemonia,TRAIN,Streptococcus,bacteria",
            "x3.jpg,Pnemonia,TRAIN,ARDS,Stress-Smoking", "x4.jpg,Pnemonia,TRAIN,,", "x5.jpg,,TRAIN,,"]  # fmt: skip
    with caplog.at_level(logging.INFO, "fastcxr"):
        data = make_coronahack(tmp_path, *rows)
        manifest = read_manifest(data, keep_columns=["Label_2_Virus_category"]).set_index("path")
    assert manifest["label"]["train/x1.jpg"] == "Virus"
    assert manifest["Label_2_Virus_category"]["train/x1.jpg"] == "SARS"
    assert manifest["label"]["train/x2.jpg"] == "Bacteria"
    assert not {f"train/x{i}.jpg" for i in (3, 4, 5)} & set(manifest.index)
    assert "labelled by their type: SARS as Virus (1), Streptococcus as Bacteria (1)" in caplog.text
    assert "skipped 3 rows without a label Normal, Bacteria, Virus or COVID-19" in caplog.text
    assert "Pnemonia Stress-Smoking ARDS (1)" in caplog.text
    assert "empty (1)" in caplog.text


def test_files_that_the_table_does_not_list_are_logged(tmp_path, caplog):
    make_coronahack(tmp_path)
    (tmp_path / "train" / "unlisted.jpeg").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert len(read_manifest(tmp_path)) == 8
    assert "skipped 1 file that the table does not list: train/unlisted.jpeg" in caplog.text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("x.jpg,Pnuemonia,TRAIN,,Virus", "'Pnuemonia' (line 10). Write Normal or Pnemonia"),
        ("x.jpg,Normal,TRAIN,,Virus", "name a pathogen (line 10). Correct the Label"),
        ("x.jpg,Normal,HOLDOUT,,", "neither TRAIN nor TEST (line 10). Write TRAIN or TEST"),
        ("IM-0001-0001.jpeg,Pnemonia,TRAIN,,Virus", "IM-0001-0001.jpeg (lines 2, 10). Keep one row per image"),
    ],
)
def test_wrong_cells_are_an_error_with_the_line_number(tmp_path, row, text):
    assert text in get_error(make_coronahack(tmp_path, row))


def test_missing_images_are_listed_in_the_error(tmp_path):
    make_coronahack(tmp_path)
    (tmp_path / "test" / "person3_virus_6.jpeg").unlink()
    text = get_error(tmp_path)
    assert "1 files are missing: 'person3_virus_6.jpeg' (line 7)" in text
    assert "Unpack the whole archive" in text


def test_the_path_may_be_the_table_and_the_format_may_be_given(tmp_path):
    make_coronahack(tmp_path)
    table = tmp_path / "Chest_xray_Corona_Metadata.csv"
    assert len(read_manifest(table)) == len(read_manifest(tmp_path, data_format="coronahack")) == 8
    text = get_error(tmp_path, data_format="cohen")
    assert "the data is not Cohen's collection" in text
    assert "omit `data_format`" in text


def test_a_folder_that_fits_two_formats_is_an_error(tmp_path):
    make_coronahack(tmp_path)
    (tmp_path / "mine.csv").write_text("path,label\ntrain/IM-0001-0001.jpeg,a\n")
    text = get_error(tmp_path)
    assert "several data formats: coronahack, csv. Pass `data_format='coronahack'` or `data_format='csv'`" in text


def test_the_real_dataset_is_read(real_data):
    manifest = read_manifest(real_data / "coronahack")
    counts = manifest.groupby(["label", "split"]).size()
    assert counts["COVID-19"].to_dict() == {"test": 16, "train": 80}
    assert counts["Normal"].to_dict() == {"test": 191, "train": 974}
    assert counts["Bacteria"].to_dict() == {"test": 347, "train": 1765}
    assert counts["Virus"].to_dict() == {"test": 200, "train": 949}
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
