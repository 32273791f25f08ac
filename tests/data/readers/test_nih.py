"""Tests of the reader of NIH ChestX-ray14, on small copies and on the real tables."""

import csv
import gzip
import logging
import shutil
from collections import Counter
from pathlib import Path

import pytest
from public_layouts import NIH_BOX_HEADER, NIH_HEADER, make_nih, make_nih_224, make_nih_rows, write_gray, write_table
from real_tables import find_real_table
from toy_datasets import check_message

from fastcxr.data.findings import list_findings
from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.nih import DATASET, FINDINGS, read_boxes
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.splits import split_by_patient
from fastcxr.errors import DataError, FastcxrError


def read(location: Path):
    return DATASET.read(location, ReaderOptions())


def check_error(error: FastcxrError, *parts: str) -> None:
    text = check_message(error)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("table", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv.gz"])
def test_a_download_is_read_with_all_findings_people_and_official_splits(tmp_path, table):
    root = make_nih(tmp_path / "nih", table=table)
    location = DATASET.detect(root)
    assert location == root
    rows = read(location)
    assert list_findings(rows) == list(FINDINGS)
    assert len(rows) == 60
    assert rows["file"].map(lambda file: Path(file).is_file()).all()
    assert rows["path"].iloc[1] == "images_002/images/00000001_001.png"
    assert rows.index.name == "line" and rows.index[0] == 2
    first, double = rows.iloc[0], rows.iloc[30]
    assert (first["label"], double["label"]) == ("No Finding", "Infiltration|Pneumonia")
    assert first[[f"finding_{name}" for name in FINDINGS]].tolist() == [0] * 14
    assert [name for name in FINDINGS if double[f"finding_{name}"] == 1] == ["Infiltration", "Pneumonia"]
    assert first[["patient", "age", "sex", "view"]].tolist() == ["00000001", "31", "F", "PA"]
    assert (rows["split"] == "test").tolist() == [int(patient) % 3 == 0 for patient in rows["patient"]]
    assert set(rows["split"]) == {"train", "test"}


def test_the_parent_folder_and_the_table_are_the_same_dataset(tmp_path):
    root = make_nih(tmp_path / "downloads" / "nih")
    assert DATASET.detect(tmp_path / "downloads") == root
    table = root / "Data_Entry_2017.csv"
    assert DATASET.detect(table) == table
    assert read(table).equals(read(root))


def test_the_copy_of_224_px_and_images_in_one_folder_are_read(tmp_path):
    rows = read(make_nih_224(tmp_path / "small"))
    assert rows["path"].iloc[0] == "images-224/images-224/00000001_000.png"
    assert rows["split"].value_counts().to_dict() == {"train": 40, "test": 20}
    write_table(tmp_path / "flat" / "Data_Entry_2017.csv", NIH_HEADER, make_nih_rows(4))
    write_gray(tmp_path / "flat" / "images" / "00000001_000.png", 0)
    rows = read(tmp_path / "flat")
    assert rows["path"].iloc[0] == "images/00000001_000.png"


def test_a_partly_downloaded_set_keeps_its_rows_without_files(tmp_path):
    root = make_nih(tmp_path)
    shutil.rmtree(root / "images_002")
    rows = read(root)
    assert rows["file"].isna().sum() == 20
    assert rows.loc[rows["file"].isna(), "path"].iloc[0] == "00000001_001.png"


def test_the_column_of_the_sex_may_have_the_name_of_2020(tmp_path):
    header = NIH_HEADER.replace("Patient Gender", "Patient Sex")
    write_table(tmp_path / "Data_Entry_2017_v2020.csv", header, make_nih_rows(4))
    assert read(tmp_path)["sex"].tolist() == ["F", "F", "M", "M"]


def test_a_blank_label_is_unknown_and_an_unknown_label_is_an_error(tmp_path):
    rows = make_nih_rows(4)
    rows[1][1] = ""
    write_table(tmp_path / "Data_Entry_2017.csv", NIH_HEADER, rows)
    read_rows = read(tmp_path)
    assert read_rows["label"].iloc[1] == ""
    assert read_rows.iloc[1][[f"finding_{name}" for name in FINDINGS]].isna().all()
    rows[2][1] = "Pneumonia|Covid-19"
    write_table(tmp_path / "Data_Entry_2017.csv", NIH_HEADER, rows)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    check_error(caught.value, "1 rows have labels that are not NIH's 14 findings: 'Pneumonia|Covid-19' (line 4)")


def test_an_image_in_both_official_lists_is_an_error(tmp_path):
    root = make_nih(tmp_path)
    with (root / "test_list.txt").open("a") as file:
        file.write("\n00000001_000.png\n")
    with pytest.raises(FastcxrError) as caught:
        read(root)
    check_error(caught.value, "test_list.txt", "1 images are in both official lists: 00000001_000.png")


def test_names_outside_the_lists_and_outside_the_table_are_counted(tmp_path, caplog):
    root = make_nih(tmp_path)
    (root / "test_list.txt").write_text("00000003_000.png\r\n\r\n00099999_000.png\r\n")
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read(root)
    assert "Data_Entry_2017.csv: 19 of the 60 images are in neither official list" in caplog.text
    assert "Data_Entry_2017.csv: 1 names of the official lists are not in the table" in caplog.text
    assert rows["split"].isna().sum() == 19


def test_a_missing_list_is_named_and_new_splits_are_offered(tmp_path, caplog):
    make_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    manifest = read_manifest(tmp_path)
    assert "images are in neither official list; test_list.txt is missing" in caplog.text
    with pytest.raises(DataError, match="E017: .*or draw new splits with `ignore_given_splits=True`"):
        split_by_patient(manifest)
    assert split_by_patient(manifest, ignore_given_splits=True)["split"].notna().all()


def test_without_official_lists_there_are_no_splits(tmp_path, caplog):
    root = make_nih(tmp_path)
    for path in root.glob("*_list.txt"):
        path.unlink()
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert read(root)["split"].isna().all()
    assert "no official lists (train_val_list.txt and test_list.txt)" in caplog.text


def test_of_both_tables_that_of_2020_is_read_unless_the_other_is_named(tmp_path, caplog):
    for name, count in (("Data_Entry_2017.csv", 4), ("Data_Entry_2017_v2020.csv", 2)):
        write_table(tmp_path / name, NIH_HEADER, make_nih_rows(count))
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert len(read(tmp_path)) == 2
    assert "Data_Entry_2017_v2020.csv is read, and Data_Entry_2017.csv is not" in caplog.text
    assert len(read(tmp_path / "Data_Entry_2017.csv")) == 4


def test_a_folder_without_the_table_is_an_error_and_is_not_detected(tmp_path):
    write_table(tmp_path / "Data_Entry_2017.csv", "path,label", [("a.png", "x")])
    assert DATASET.detect(tmp_path) is None
    assert DATASET.detect(tmp_path / "Data_Entry_2017.csv") is None
    with pytest.raises(FastcxrError) as caught:
        read(tmp_path)
    check_error(caught.value, "Data_Entry_2017_v2020.csv", "Image Index")


def test_two_copies_in_one_folder_are_an_error(tmp_path):
    for name in ("one", "two"):
        make_nih(tmp_path / name, n=4)
    with pytest.raises(DataError) as caught:
        DATASET.detect(tmp_path)
    check_error(caught.value, "several folders contain the same dataset: one, two", "Name one of them")


def test_boxes_are_a_side_table(tmp_path):
    root = make_nih(tmp_path)
    boxes = read_boxes(root)
    assert len(boxes) == 6
    assert boxes.iloc[0].tolist() == ["images_001/images/00000028_000.png", "Pneumonia", 225.0, 547.0, 86.8, 79.2]
    rows = [["00000001_000.png", "Infiltrate", 1, 2, 3, "x", "", "", ""]]
    write_table(root / "BBox_List_2017.csv", NIH_BOX_HEADER, rows)
    with pytest.raises(DataError) as caught:
        read_boxes(root)
    check_error(caught.value, "1 rows have a box that is not four numbers (line 2)")
    (root / "BBox_List_2017.csv").unlink()
    assert len(read_boxes(root)) == 0


@pytest.mark.slow
@pytest.mark.needs("torchxrayvision")
def test_the_counts_of_the_real_table_are_those_of_a_second_count(tmp_path):
    source = find_real_table("Data_Entry_2017_v2020.csv.gz")
    shutil.copy(source, tmp_path)
    rows = read(DATASET.detect(tmp_path))
    assert (len(rows), rows["patient"].nunique()) == (DATASET.n_images, DATASET.n_patients) == (112_120, 30_805)
    with gzip.open(source, "rt") as file:
        expected = Counter(name for row in csv.DictReader(file) for name in row["Finding Labels"].split("|"))
    positives = {name: int((rows[f"finding_{name}"] == 1).sum()) for name in FINDINGS}
    assert positives == {name: expected[name] for name in FINDINGS}
    assert (positives["Infiltration"], positives["Hernia"]) == (19_894, 227)
    assert (rows["label"] == "No Finding").sum() == expected["No Finding"]
    assert rows["label"].str.contains("|", regex=False).sum() == 20_796
    assert (rows["patient"] == rows["path"].str[:8]).all()


@pytest.mark.needs("torchxrayvision")
def test_the_official_lists_are_obeyed_and_no_draw_divides_a_patient(tmp_path):
    with gzip.open(find_real_table("Data_Entry_2017_v2020.csv.gz"), "rt") as file:
        table = [next(file) for _ in range(4001)]
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text("".join(table))
    names = [line.split(",")[0] for line in table[1:]]
    in_test = {name for name in names if int(name[:8]) % 5 == 0}
    (tmp_path / "test_list.txt").write_text("\n".join(in_test))
    (tmp_path / "train_val_list.txt").write_text("\n".join(name for name in names if name not in in_test))
    manifest = read(tmp_path).drop(columns="file").assign(source="nih", split_origin="given")
    official = split_by_patient(manifest)
    assert set(official.loc[official["split"] == "test", "path"]) == in_test
    assert set(official["split"]) == {"train", "valid", "test"}
    assert (official.groupby("patient")["split"].nunique() == 1).all()
    test_sets = set()
    for seed in range(50):
        drawn = split_by_patient(manifest, seed=seed, ignore_given_splits=True)
        assert (drawn.groupby("patient")["split"].nunique() == 1).all()
        assert drawn["split"].value_counts(normalize=True)["test"] == pytest.approx(0.15, abs=0.06)  # of 4,000 images
        test_sets.add(frozenset(drawn.loc[drawn["split"] == "test", "patient"]))
    assert len(test_sets) == 50


@pytest.mark.slow
@pytest.mark.needs("torchxrayvision")
def test_the_real_boxes_are_read(tmp_path):
    for name in ("Data_Entry_2017_v2020.csv.gz", "BBox_List_2017.csv.gz"):
        shutil.copy(find_real_table(name), tmp_path)
    boxes = read_boxes(tmp_path)
    assert len(boxes) == 984
    assert set(boxes["finding"]) < set(FINDINGS)
    assert boxes["finding"].value_counts()["Infiltration"] == 123
    assert boxes.iloc[0, 2:].tolist() == pytest.approx(
        [225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661]
    )
