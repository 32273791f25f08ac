"""Tests of sex, age and view from DICOM headers: high ages are capped, and no other personal data is read."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_images import make_dicom, make_reference, save_dicom

from fastcxr.data.demographics import cap_age, parse_age, parse_cells
from fastcxr.data.imaging.dicom import read_tags
from fastcxr.data.manifest import read_manifest
from fastcxr.errors import RecipeError


@pytest.fixture
def dicoms(tmp_path):
    patients = [("F", "093Y"), ("M", "045Y"), (None, "007M"), ("F", "anon")]
    for k, (sex, age) in enumerate(patients):
        folder = tmp_path / "data" / ("clear", "haze")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        dataset = make_dicom(make_reference(seed=k), PatientID=f"ID{k}", PatientBirthDate="19300101")
        dataset.PatientSex, dataset.ViewPosition = sex or "", "AP"
        dataset.add_new("PatientAge", "AS", age) if age != "anon" else None
        save_dicom(folder / f"{k}.dcm", dataset)
    return tmp_path / "data"


def test_sex_age_and_view_are_read_from_the_header_and_a_high_age_is_capped(dicoms):
    table = read_manifest(dicoms).set_index("path")
    assert list(table["sex"].fillna("")) == ["F", "", "M", "F"]
    assert list(table["age"].fillna("")) == ["090Y", "007M", "045Y", ""]
    assert set(table["view"]) == {"AP"}
    assert "19300101" not in table.to_csv() and "ZZTEST" not in table.drop(columns="file").to_csv()


def test_values_of_the_table_take_precedence_over_the_header(dicoms):
    rows = [
        (f"{folder.parent.name}/{folder.name}", folder.parent.name, "M", "") for folder in sorted(dicoms.glob("*/*"))
    ]
    pd.DataFrame(rows, columns=["path", "label", "sex", "age"]).to_csv(dicoms / "all.csv", index=False)
    table = read_manifest(dicoms / "all.csv")
    assert set(table["sex"]) == {"M"}
    assert "045Y" in set(table["age"])


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Files whose headers were read for sex, age and view."""
    names = []

    def read(path, tags):
        names.append(path)
        return read_tags(path, tags)

    monkeypatch.setattr("fastcxr.data.imaging.dicom.read_tags", read)
    return names


def test_filters_use_header_values_and_each_header_is_read_once(dicoms, opened):
    table = read_manifest(dicoms, filter=("sex=F,", "view=AP"), only_test=True)
    assert table["path"].tolist() == ["clear/0.dcm", "clear/2.dcm", "haze/3.dcm"]
    assert set(table["sex"].fillna("")) == {"F", ""}
    assert sorted(opened) == sorted(map(str, dicoms.glob("*/*.dcm")))


def test_filters_use_age_and_keep_a_source_without_headers(dicoms, tmp_path):
    old = read_manifest(dicoms, filter=("age=045Y,090Y",), only_test=True)
    assert old["path"].tolist() == ["clear/0.dcm", "haze/1.dcm"]
    for k in range(4):
        folder = tmp_path / "png" / ("clear", "haze")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_reference(seed=10 + k)).save(folder / f"{k}.png")
    both = read_manifest([dicoms, tmp_path / "png"], filter=("sex=M",))
    assert both["source"].value_counts().to_dict() == {"png": 4, "data": 1}


def test_headers_of_rows_excluded_by_other_filters_are_not_read(dicoms, opened):
    read_manifest(dicoms, filter=("view=AP",), classes=("haze",), only_test=True)
    assert len(opened) == 2
    opened.clear()
    pd.DataFrame(
        [(f"{k % 2 * 'haze' or 'clear'}/{k}.dcm", "c", str(k < 2)) for k in range(4)], columns=["path", "label", "kept"]
    ).to_csv(dicoms / "all.csv", index=False)
    read_manifest(dicoms / "all.csv", filter=("kept=True",), only_test=True)
    assert len(opened) == 2


def test_a_filter_value_in_no_header_is_rejected_with_the_existing_values(dicoms):
    with pytest.raises(RecipeError, match="filter view: no value is called 'PA'.*Choose from AP"):
        read_manifest(dicoms, filter=("view=PA",))


def test_images_without_dicom_headers_get_no_demographic_columns(tmp_path):
    for k in range(4):
        folder = tmp_path / ("clear", "haze")[k % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20), 40 * k, np.uint8)).save(folder / f"{k}.png")
    assert not {"sex", "age", "view"} & set(read_manifest(tmp_path))


@pytest.mark.parametrize(("cell", "shown"), [("089Y", "089Y"), ("091Y", "090Y"), ("011M", "011M"), ("91", None)])
def test_cap_age_returns_a_dicom_age_or_none(cell, shown):
    assert cap_age(cell) == shown


def test_equal_cells_are_parsed_once():
    parsed = []
    cells = pd.Series(["58", "unknown", "58", None, "061Y", "58"], index=[3, 3, 5, 7, 8, 9])
    values = parse_cells(cells, lambda cell: parsed.append(cell) or parse_age(cell))
    assert values.tolist() == [58, None, 58, None, 61, 58] and values.index.tolist() == cells.index.tolist()
    assert sorted(parsed) == ["061Y", "58"]
