"""Tests of the readers of CheXpert and CheXlocalize, on small copies and on the real table."""

import csv
import gzip
import logging
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from public_layouts import (
    CHEXPERT_FINDINGS,
    CHEXPERT_HEADER,
    make_chexlocalize,
    make_chexpert,
    make_chexpert_rows,
    write_gray,
    write_table,
)
from real_tables import find_real_table
from toy_datasets import check_message

from fastcxr.data.findings import list_findings
from fastcxr.data.readers import chexlocalize, chexpert
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.errors import FastcxrError

FOLDER = "CheXpert-v1.0-small"


def read(location: Path, dataset=chexpert.DATASET) -> pd.DataFrame:
    return dataset.read(location, ReaderOptions())


def catch(location: Path) -> str:
    with pytest.raises(FastcxrError) as caught:
        read(location)
    return check_message(caught.value)


def write_rows(root: Path, *paths: str, findings: dict | None = None, **cells: str) -> Path:
    """Write train.csv with these paths and the same cells in each row."""
    values = dict.fromkeys(CHEXPERT_HEADER, "") | {name.replace("_", "/"): cell for name, cell in cells.items()}
    rows = [list((values | (findings or {}) | {"Path": path}).values()) for path in paths]
    write_table(root / "train.csv", CHEXPERT_HEADER, rows)
    return root


def test_both_tables_are_read_with_four_values_patients_and_views(tmp_path):
    root = make_chexpert(tmp_path)
    location = chexpert.DATASET.detect(root)
    assert location == root / FOLDER == chexpert.DATASET.detect(root / FOLDER)
    rows = read(location)
    assert list_findings(rows) == list(CHEXPERT_FINDINGS)
    assert rows["split"].value_counts().to_dict() == {"train": 50, "valid": 20}
    assert rows["file"].map(lambda file: Path(file).is_file()).all()
    assert rows["path"].iloc[0] == "train/patient00001/study1/view1_frontal.jpg"
    assert rows["patient"].nunique() == 35
    assert rows.index.is_unique and rows.index.name == "row"
    normal, ill = rows.iloc[0], rows.iloc[28]
    assert (normal["label"], normal["patient"], normal["sex"], normal["age"]) == (
        "No Finding", "patient00001", "Female", "41",
    )  # fmt: skip
    assert (ill["finding_Pneumonia"], ill["finding_Pleural Effusion"]) == (-1, -1)
    assert ill[["finding_Edema", "finding_Lung Opacity"]].isna().all() and ill["label"] == ""
    assert rows["view"].fillna("").tolist()[:6] == ["AP", "PA", "AP", "PA", "lateral", "PA"]
    assert rows["Frontal/Lateral"].iloc[4] == "Lateral"


def test_a_renamed_folder_and_one_table_are_read(tmp_path):
    make_chexpert(tmp_path)
    renamed = (tmp_path / FOLDER).rename(tmp_path / "my data")
    assert chexpert.DATASET.detect(tmp_path) == renamed
    assert read(renamed)["file"].notna().all()
    table = chexpert.DATASET.detect(renamed / "valid.csv")
    assert table == renamed / "valid.csv"
    rows = read(table)
    assert (len(rows), set(rows["split"]), rows.index.name) == (20, {"valid"}, "line")


def test_the_image_of_another_patient_is_never_taken_for_a_missing_one(tmp_path):
    paths = [f"{FOLDER}/train/patient{number:05d}/study1/view3_frontal.jpg" for number in (1, 2)]
    write_rows(tmp_path, *paths)
    write_gray(tmp_path / "train" / "patient00002" / "study1" / "view3_frontal.jpg", 1)
    rows = read(tmp_path)
    assert rows["file"].isna().tolist() == [True, False]
    assert rows["path"].iloc[0] == "train/patient00001/study1/view3_frontal.jpg"


def test_two_files_of_one_image_are_an_error(tmp_path):
    path = "train/patient00001/study1/view1_frontal.jpg"
    write_rows(tmp_path, f"CheXpert-v1.0/{path}")
    for folder in ("full", "small"):
        write_gray(tmp_path / folder / path, 1)
    assert f"two files may be the same image: full/{path} and small/{path}" in catch(tmp_path)


def test_views_are_ap_pa_or_lateral_and_an_unknown_sex_is_missing(tmp_path):
    cells = [
        ("Frontal", "AP"),
        ("Frontal", "PA"),
        ("Frontal", "LL"),
        ("Frontal", "RL"),
        ("Frontal", ""),
        ("Lateral", ""),
    ]
    rows = make_chexpert_rows("train")[: len(cells)]
    for row, (direction, position) in zip(rows, cells, strict=True):
        row[1:5] = ["Unknown", "70", direction, position]
    write_table(tmp_path / "train.csv", CHEXPERT_HEADER, rows)
    rows = read(tmp_path)
    assert rows["view"].fillna("").tolist() == ["AP", "PA", "", "", "", "lateral"]
    assert rows["AP/PA"].fillna("").tolist() == ["AP", "PA", "LL", "RL", "", ""]
    assert rows["sex"].isna().all()


def test_a_finding_with_another_value_is_an_error(tmp_path):
    write_rows(tmp_path, "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg", findings={"Edema": "7"})
    assert "1 cells of Edema are not 1, 0, -1 or blank: '7' (line 2)" in catch(tmp_path)


def test_an_image_in_two_tables_and_a_row_without_a_path_are_errors(tmp_path):
    rows = make_chexpert_rows("train")
    for name in ("train.csv", "valid.csv"):
        write_table(tmp_path / name, CHEXPERT_HEADER, rows[:2])
    assert "2 images are in two tables: train/patient00001/study1/view1_frontal.jpg" in catch(tmp_path)
    assert "1 rows have no path (line 2)" in catch(write_rows(tmp_path, " ", Sex="Male"))


def test_test_labels_beside_the_tables_of_chexpert_are_its_test_split(tmp_path):
    root = make_chexpert(tmp_path) / FOLDER
    labels = make_chexlocalize(tmp_path / "localize") / "CheXpert"
    shutil.copy(labels / "test_labels.csv", root)
    shutil.copytree(labels / "test", root / "test")
    assert chexpert.DATASET.detect(root) == root
    assert chexlocalize.DATASET.detect(root) is None
    rows = read(root)
    assert rows["split"].value_counts().to_dict() == {"train": 50, "valid": 20, "test": 8}
    assert rows["file"].notna().all()
    assert rows[rows["split"] == "test"]["view"].fillna("").tolist() == ["", "lateral"] * 4


def test_other_tables_called_train_are_not_detected(tmp_path):
    for name in ("train.csv", "val_labels.csv"):
        write_table(tmp_path / name, "Path,label", [("a.png", "x")])
        assert chexpert.DATASET.detect(tmp_path / name) is None
    assert chexpert.DATASET.detect(tmp_path) is chexlocalize.DATASET.detect(tmp_path) is None
    assert "no train.csv, valid.csv, test.csv, test_labels.csv with the columns Path" in catch(tmp_path)


def test_chexlocalize_has_a_valid_and_a_test_split(tmp_path, caplog):
    root = make_chexlocalize(tmp_path)
    location = chexlocalize.DATASET.detect(root)
    assert location == root / "CheXpert"
    assert chexpert.DATASET.detect(root) is None
    with caplog.at_level(logging.WARNING, "fastcxr"):
        rows = read(location, chexlocalize.DATASET)
    assert caplog.text == ""
    assert rows["split"].value_counts().to_dict() == {"valid": 12, "test": 8}
    assert rows["path"].iloc[0] == "val/patient64541/study1/view1_frontal.jpg"
    assert rows["file"].notna().all()
    assert rows["label"].value_counts().to_dict() == {"Edema": 10, "No Finding": 10}
    assert rows[rows["split"] == "test"]["sex"].isna().all()
    assert len(read(location / "test_labels.csv", chexlocalize.DATASET)) == 8


@pytest.mark.slow
@pytest.mark.needs("torchxrayvision")
def test_the_counts_of_the_real_table_are_those_of_a_second_count(tmp_path):
    source = find_real_table("chexpert_train.csv.gz")
    shutil.copy(source, tmp_path / "train.csv.gz")
    rows = read(chexpert.DATASET.detect(tmp_path))
    assert (len(rows), rows["patient"].nunique()) == (223_414, 64_540)
    with gzip.open(source, "rt") as file:
        cells = Counter(
            (name, row[name]) for row in csv.DictReader(file) for name in (*CHEXPERT_FINDINGS, "No Finding")
        )
    for name in CHEXPERT_FINDINGS:
        counts = rows[f"finding_{name}"].value_counts(dropna=False)
        found = [int(counts.get(value, 0)) for value in (1, 0, -1, pd.NA)]
        assert found == [cells[name, cell] for cell in ("1.0", "0.0", "-1.0", "")]
        if name == "Atelectasis":
            assert found == [33_376, 1_328, 33_739, 154_971]
    is_normal = rows["label"].str.startswith("No Finding")
    assert is_normal.sum() == cells["No Finding", "1.0"] == 22_381
    assert rows["view"].value_counts().to_dict() == {"AP": 161_590, "lateral": 32_387, "PA": 29_420}
    assert rows["sex"].isna().sum() == 1
