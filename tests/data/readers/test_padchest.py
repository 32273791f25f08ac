"""Tests for padchest.py."""

import importlib.util
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from layouts_mimic_padchest import PADCHEST_HEADER, PADCHEST_TABLE, REPORT, make_padchest, write_table
from toy_datasets import check_message

from fastcxr.data.findings import list_findings
from fastcxr.data.readers.padchest import DATASET, read_padchest
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import DataError, InputMissingError

PNEUMONIA, EFFUSION, SCOLIOSIS = "finding_pneumonia", "finding_pleural effusion", "finding_scoliosis"


def read(root: Path) -> pd.DataFrame:
    return read_padchest(root, ReaderOptions())


def values(rows: pd.DataFrame, column: str) -> list[int | None]:
    return [None if value is pd.NA else int(value) for value in rows[column]]


def test_every_listed_label_is_a_finding_and_normal_is_no_finding(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(make_padchest(tmp_path))
    assert list_findings(rows) == ["pleural effusion", "pneumonia", "scoliosis"]
    assert str(rows[PNEUMONIA].dtype) == "Int8"
    assert rows["label"].tolist() == [
        "No Finding", "pleural effusion|pneumonia", "pneumonia", "", "No Finding", "", "", "", "", "scoliosis",
    ]  # fmt: skip
    assert "3 findings; 'normal' is read as No Finding: 2 images" in caplog.text


def test_a_report_with_a_marker_leaves_unnamed_findings_unknown_unless_normal_is_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(make_padchest(tmp_path))
    assert values(rows, PNEUMONIA) == [0, 1, 1, None, 0, None, None, None, None, 0]
    assert values(rows, EFFUSION) == [0, 1, None, None, 0, None, None, None, None, 0]
    assert values(rows, SCOLIOSIS) == [0, 0, None, None, 0, None, None, None, None, 1]
    assert rows["markers"].fillna("").tolist() == [
        "", "", "unchanged", "unchanged", "suboptimal study", "exclude", "", "", "", "",
    ]  # fmt: skip
    assert "notes on the report: unchanged (2), suboptimal study (1), exclude (1)" in caplog.text
    assert "3 images without a name in Labels: the findings are unknown" in caplog.text


def test_patient_sex_age_and_view_are_read_from_the_table(tmp_path):
    rows = read(make_padchest(tmp_path))
    assert rows["patient"].tolist()[:3] == [f"1{'0' * 38}", f"1{'0' * 38}", f"1{'0' * 37}1"]
    assert rows["view"].tolist() == ["PA", "lateral", "AP", "AP", "COSTAL", "EXCLUDE", "UNK", "PA", "PA", "PA"]
    assert rows["published_view"].tolist()[1:3] == ["L", "AP_horizontal"]
    assert rows["age"].tolist()[:3] == ["90", "84", "74"]  # 94 years is read as 90
    assert rows["age"].isna().tolist() == [False] * 9 + [True]
    assert rows["sex"].tolist()[:3] == ["M", "F", "O"]
    assert rows["MethodLabel"].tolist()[:2] == ["Physician", "RNN_model"]
    assert rows["split"].isna().all()
    assert rows.index.name == "line"
    assert rows.index.tolist() == list(range(2, 12))


def test_a_birth_after_the_study_is_no_age(tmp_path):
    table = make_padchest(tmp_path) / PADCHEST_TABLE
    table.write_text(table.read_text().replace("1920.0", "2020.0"))
    assert pd.isna(read(tmp_path)["age"].iloc[0])


def test_files_are_found_below_the_folder_and_missing_ones_keep_their_row(tmp_path):
    make_padchest(tmp_path)
    (tmp_path / "images").mkdir()
    shutil.move(tmp_path / "0", tmp_path / "images" / "0")
    shutil.rmtree(tmp_path / "1")
    rows = read(tmp_path)
    assert rows["path"].iloc[0] == f"images/0/{10**30}_000000.png"
    assert rows["file"].iloc[0] == str(tmp_path / rows["path"].iloc[0])
    assert rows["path"].iloc[1] == f"1/{10**30 + 1}_000001.png"
    assert rows["file"].isna().tolist() == [False, True] * 5


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_folder_its_parent_and_the_table_are_recognised(tmp_path, suffix):
    root = make_padchest(tmp_path / "downloads" / "padchest", suffix=suffix)
    for path in (root, root.parent, root / (PADCHEST_TABLE + suffix)):
        assert DATASET.detect(path) == root
    assert DATASET.detect(root / "0") is None
    assert len(DATASET.read(root, ReaderOptions())) == 10


def test_another_table_is_not_recognised(tmp_path):
    write_table(tmp_path / PADCHEST_TABLE, "path,label", [["a.png", "x"]])
    write_table(tmp_path / "mine.csv", PADCHEST_HEADER, [])
    assert DATASET.detect(tmp_path) is None
    assert DATASET.detect(tmp_path / "mine.csv") is None
    with pytest.raises(InputMissingError) as caught:
        read(tmp_path)
    assert f"no {PADCHEST_TABLE} with the columns ImageID" in check_message(caught.value)


def test_the_report_is_in_no_row_message_or_error(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        rows = read(make_padchest(tmp_path / "good"))
    assert not rows.map(lambda cell: "ZZREPORT" in str(cell)).any(axis=None)
    assert not {"Report", "ReportID"} & set(rows)
    damaged = make_padchest(tmp_path / "damaged") / PADCHEST_TABLE
    text = damaged.read_text()
    faults = (
        text.replace("['normal']", f"{REPORT}"),  # the cells of a row are shifted
        text.replace("['normal']", f"['{REPORT}"),
        text.replace("Physician,['normal']", "Physician,['normal'],more", 1),
        text.replace("['normal']", f'"{REPORT}" more'),
    )
    for fault in faults:
        damaged.write_text(fault)
        with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
            read(damaged.parent)
        assert "ZZREPORT" not in check_message(caught.value)
        assert "line 2" in str(caught.value)
    assert "ZZREPORT" not in caplog.text


def test_a_cell_that_is_no_list_of_names_is_an_error_with_its_line(tmp_path):
    for cell in ("normal", "[1, 2]", "{'normal': 1}", "[" * 5000, "['a'] + ['b']"):
        root = make_padchest(tmp_path, [("['normal']", "PA"), (cell, "PA")])
        with pytest.raises(DataError, match=r"1 rows have Labels that are not a list of names \(line 3\)"):
            read(root)


def test_a_repeated_image_is_an_error(tmp_path):
    table = make_padchest(tmp_path) / PADCHEST_TABLE
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"2 rows repeat a value of ImageID \(lines 2, 12\)"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.needs("torchxrayvision")
def test_counts_of_the_published_table(tmp_path, caplog):
    data = Path(importlib.util.find_spec("torchxrayvision").origin).parent / "data"
    shutil.copy(data / f"{PADCHEST_TABLE}.gz", tmp_path)
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(DATASET.detect(tmp_path))
    assert len(rows) == DATASET.n_images == 160_861
    assert rows["patient"].nunique() == DATASET.n_patients == 67_625
    assert len(list_findings(rows)) == 189
    assert "'normal' is read as No Finding: 50,616 images" in caplog.text
    assert "880 images without a name" in caplog.text  # 103 blank cells, 777 lists of an empty name
    assert "unchanged (14,334), suboptimal study (1,839), exclude (1,312)" in caplog.text
    assert rows["label"].eq("").sum() == 6_302  # 5,422 with markers only
    assert rows["view"].value_counts().to_dict() == {
        "PA": 91_728, "lateral": 49_579, "AP": 18_905, "COSTAL": 630, "EXCLUDE": 11, "UNK": 8,
    }  # fmt: skip
    assert rows[PNEUMONIA].value_counts(dropna=False).to_dict() == {0: 135_343, pd.NA: 17_565, 1: 7_953}
    assert rows["age"].isna().sum() == 6
    assert (rows["MethodLabel"] == "Physician").sum() == 39_053
