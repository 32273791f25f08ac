"""Tests for mimic_cxr_jpg.py."""

import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from layouts_mimic_padchest import (
    CHEXPERT_HEADER,
    MIMIC_STUDIES,
    make_labels,
    make_mimic,
    name_dicom,
    write_radiologist_labels,
    write_table,
)
from toy_datasets import check_message

from fastcxr.data.columns import find_privacy_risk
from fastcxr.data.findings import list_findings
from fastcxr.data.readers.mimic_cxr_jpg import DATASET, read_mimic_cxr_jpg
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError, InputMissingError, RecipeError

SPLIT_TABLE, METADATA_TABLE = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
LABEL_TABLE = "mimic-cxr-2.0.0-chexpert.csv"


def read(root: Path, **options: str) -> pd.DataFrame:
    return read_mimic_cxr_jpg(root, ReaderOptions(**options))


def values(rows: pd.DataFrame, finding: str) -> list[int | None]:
    return [None if value is pd.NA else int(value) for value in rows[f"finding_{finding}"]]


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_labels_of_a_study_hold_for_each_of_its_images(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(make_mimic(tmp_path))
    assert rows["label"].tolist() == [
        "No Finding", "No Finding", "Lung Opacity|Pneumonia", "Lung Opacity|Pneumonia", "", "", "", "",
        "Pneumonia", "Pneumonia", "No Finding", "No Finding",
    ]  # fmt: skip
    assert values(rows, "Pneumonia") == [None, None, 1, 1, -1, -1, None, None, 1, 1, None, None]
    assert values(rows, "Edema") == [None, None, 0, 0, *[None] * 8]
    assert len(list_findings(rows)) == 13
    assert set(rows.filter(like="finding_").dtypes.astype(str)) == {"Int8"}
    assert "studies without labels: 1 study, 2 images: findings unknown" in caplog.text


def test_splits_patients_views_and_paths_are_those_of_the_tables(tmp_path):
    rows = read(make_mimic(tmp_path))
    assert rows["split"].tolist() == ["train"] * 6 + ["valid"] * 2 + ["test"] * 4
    assert rows["patient"].tolist()[::2] == [str(subject) for subject, *_ in MIMIC_STUDIES]
    assert rows["view"].fillna("").tolist() == ["PA", "lateral", "AP", "lateral", "", "AP AXIAL"] * 2
    assert rows["path"].iloc[1] == f"files/p10/p10000032/s50414267/{name_dicom(1)}.jpg"
    assert rows["file"].tolist() == [str(tmp_path / path) for path in rows["path"]]
    assert rows["study_id"].tolist()[0] == "50414267"
    assert rows.index.name == "row"
    assert rows.index.tolist() == list(range(12))


def test_metadata_for_filters_are_never_copied_to_outputs(tmp_path):
    rows = read(make_mimic(tmp_path))
    name = "PerformedProcedureStepDescription"
    assert set(rows[name]) == {"CHEST (PA AND LAT)"}
    assert "free text" in str(find_privacy_risk(name, rows[name]))
    assert not {"StudyDate", "StudyTime", "subject_id"} & set(rows)


def test_a_part_of_the_download_leaves_the_other_files_missing(tmp_path):
    shutil.rmtree(make_mimic(tmp_path) / "files" / "p11")
    rows = read(tmp_path)
    assert rows["file"].isna().tolist() == [False] * 8 + [True] * 4
    assert rows["path"].iloc[8] == f"files/p11/p11000935/s50578979/{name_dicom(8)}.jpg"
    assert rows["split"].notna().all()


@pytest.mark.parametrize(("suffix", "version"), [("", "2.0.0"), (".gz", "2.0.0"), ("", "2.1.0")])
def test_the_folder_may_be_named_by_its_parent_its_tables_or_its_files(tmp_path, suffix, version):
    root = make_mimic(tmp_path / "download" / "mimic-cxr-jpg", suffix, version)
    tables = [root / f"mimic-cxr-{version}-{kind}.csv{suffix}" for kind in ("split", "metadata", "negbio")]
    for path in (root, root.parent, root / "files", *tables):
        assert DATASET.detect(path) == root
    assert DATASET.detect(root / "files" / "p10") is None
    assert len(DATASET.read(root, ReaderOptions())) == 12


def test_other_data_are_not_recognised(tmp_path):
    write_table(tmp_path / SPLIT_TABLE, "path,split", [["a.png", "train"]])
    write_table(tmp_path / "mine.csv", "dicom_id,study_id,subject_id,split", [])
    (tmp_path / "files").mkdir()
    for path in (tmp_path, tmp_path / SPLIT_TABLE, tmp_path / "mine.csv", tmp_path / "files"):
        assert DATASET.detect(path) is None


def test_the_labels_of_negbio_are_chosen_by_name(tmp_path):
    rows = read(make_mimic(tmp_path), label_variant="negbio")
    assert list(DATASET.label_variants) == ["chexpert", "negbio"]
    assert values(rows, "Edema") == [*[1] * 6, None, None, *[1] * 4]
    assert rows["label"].tolist()[:2] == ["Edema", "Edema"]
    with pytest.raises(RecipeError, match="no label variant called 'negbi' .did you mean 'negbio'"):
        read(tmp_path, label_variant="negbi")


def test_a_missing_table_is_named_with_what_to_do(tmp_path):
    root = make_mimic(tmp_path, suffix="")
    (root / LABEL_TABLE).unlink()
    assert DATASET.detect(root) == root
    with pytest.raises(InputMissingError) as caught:
        read(root)
    message = check_message(caught.value)
    assert f"no {LABEL_TABLE} or {LABEL_TABLE}.gz with the columns subject_id, study_id" in message
    assert "Copy it from PhysioNet to the folder, or pass `label_variant='negbio'`" in message
    (root / METADATA_TABLE).unlink()
    with pytest.raises(InputMissingError, match="metadata.csv.gz with the columns dicom_id"):
        read(root, label_variant="negbio")


def test_labels_of_radiologists_replace_those_of_the_test_images_only(tmp_path, caplog):
    expert = make_labels(Lung_Opacity="1.0", Pneumonia="0.0")
    write_radiologist_labels(make_mimic(tmp_path), (50578979, expert), (50414267, make_labels(Edema="1.0")))
    program = read(tmp_path)
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(tmp_path, test_labels="radiologist")
    assert rows["label"].tolist()[8:] == ["Lung Opacity", "Lung Opacity", "", ""]
    assert values(rows, "Pneumonia")[8:] == [0, 0, None, None]
    assert values(rows, "Lung Opacity")[8:] == [1, 1, None, None]
    pd.testing.assert_frame_equal(rows[:8], program[:8])
    assert program["label"].tolist()[8:] == ["Pneumonia", "Pneumonia", "No Finding", "No Finding"]
    assert "test studies without labels of radiologists: 1 study, 2 images: findings unknown" in caplog.text


def test_a_finding_without_labels_of_radiologists_is_unknown_in_the_test_images(tmp_path, caplog):
    make_mimic(tmp_path)
    header = f"study_id,{CHEXPERT_HEADER}".replace(",Edema", "")
    cells = [cell for name, cell in zip(CHEXPERT_HEADER.split(","), make_labels(), strict=True) if name != "Edema"]
    write_table(tmp_path / "mimic-cxr-2.1.0-test-set-labeled.csv", header, [[50578979, *cells]])
    rows = read(tmp_path, test_labels="radiologist")
    assert values(rows, "Edema") == [None, None, 0, 0, *[None] * 8]
    assert "has no column Edema: unknown in the test images" in caplog.text


def test_missing_labels_of_radiologists_are_an_error(tmp_path):
    with pytest.raises(InputMissingError) as caught:
        read(make_mimic(tmp_path), test_labels="radiologist")
    message = check_message(caught.value)
    assert "no mimic-cxr-2.1.0-test-set-labeled.csv or" in message
    assert "or omit `test_labels`" in message


def test_sex_and_age_are_those_of_mimic_iv(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert not {"sex", "age"} & set(read(make_mimic(tmp_path)))
    assert "no sex and age: copy MIMIC-IV's patients.csv.gz to the folder to add them" in caplog.text
    patients = [
        [10000032, "F", 52, 2170, "2014 - 2016", ""],  # studies in 2180 and 2181
        [10000764, "M", 91, 2180, "2014 - 2016", ""],  # study in 2182
        [10000898, "M", 1, 2190, "2014 - 2016", ""],  # study before the birth
    ]
    header = "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod"
    write_table(tmp_path / "patients.csv.gz", header, patients)
    rows = read(tmp_path)
    assert rows["sex"].fillna("").tolist()[::2] == ["F", "F", "M", "M", "", ""]
    assert rows["age"].fillna("").tolist()[::2] == ["62", "63", "90", "", "", ""]


def test_without_dates_only_the_age_is_left_out(tmp_path, caplog):
    make_mimic(tmp_path, suffix="")
    replace_in(tmp_path / METADATA_TABLE, "StudyDate", "Other")
    write_table(tmp_path / "patients.csv", "subject_id,gender,anchor_age,anchor_year", [[10000032, "F", 52, 2170]])
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(tmp_path)
    assert rows["sex"].tolist()[0] == "F"
    assert "age" not in rows
    assert "no age: the metadata table has no column StudyDate" in caplog.text


@pytest.mark.parametrize(
    ("table", "old", "new", "problem"),
    [
        (SPLIT_TABLE, ",validate", ",other", r"2 rows have an unknown split: 'other' \(lines 8, 9\)"),
        (METADATA_TABLE, "10000898,50771383", "10000899,50771383", r"2 images have another subject_id .*\(rows 6, 7\)"),
        (METADATA_TABLE, "10000898,50771383", "10000898,50771384", "2 images have another study_id"),
        (LABEL_TABLE, "10000764,", "10000765,", "2 images have another subject_id in the split table"),
        (LABEL_TABLE, "10000032,50414267", "10000032,50414268", r"2 rows repeat a value of study_id \(lines 2, 3\)"),
        (SPLIT_TABLE, name_dicom(1), name_dicom(0), r"2 rows repeat a value of dicom_id \(lines 2, 3\)"),
        (METADATA_TABLE, name_dicom(1), name_dicom(0), "2 rows repeat a value of dicom_id"),
        (LABEL_TABLE, "-1.0", "7", r"1 cells of Pneumonia are not 1, 0, -1 or blank: '7' \(line 4\)"),
    ],
)
def test_contradictions_and_unknown_values_are_errors(tmp_path, table, old, new, problem):
    replace_in(make_mimic(tmp_path, suffix="") / table, old, new)
    with pytest.raises(DataError, match=problem) as caught:
        read(tmp_path)
    check_message(caught.value)
