"""Sex, age and view of DICOM files reach the manifest; no great age, and nothing else of the person, does."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_images import make_dicom, make_reference, save_dicom

from fastcxr.data.demographics import cap_age
from fastcxr.data.imaging.dicom import read_tags
from fastcxr.data.manifest import read_manifest
from fastcxr.errors import RecipeError


@pytest.fixture
def dicoms(tmp_path):
    people = [("F", "093Y"), ("M", "045Y"), (None, "007M"), ("F", "anon")]
    for k, (sex, age) in enumerate(people):
        place = tmp_path / "data" / ("clear", "haze")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        dataset = make_dicom(make_reference(seed=k), PatientID=f"ID{k}", PatientBirthDate="19300101")
        dataset.PatientSex, dataset.ViewPosition = sex or "", "AP"
        dataset.add_new("PatientAge", "AS", age) if age != "anon" else None
        save_dicom(place / f"{k}.dcm", dataset)
    return tmp_path / "data"


def test_the_header_says_sex_age_and_view_and_a_great_age_is_capped(dicoms):
    table = read_manifest(dicoms).set_index("path")
    assert list(table["sex"].fillna("")) == ["F", "", "M", "F"]
    assert list(table["age"].fillna("")) == ["090Y", "007M", "045Y", ""]
    assert set(table["view"]) == {"AP"}
    assert "19300101" not in table.to_csv() and "ZZTEST" not in table.drop(columns="file").to_csv()


def test_what_a_table_says_goes_before_the_header(dicoms):
    rows = [(f"{place.parent.name}/{place.name}", place.parent.name, "M", "") for place in sorted(dicoms.glob("*/*"))]
    pd.DataFrame(rows, columns=["path", "label", "sex", "age"]).to_csv(dicoms / "all.csv", index=False)
    table = read_manifest(dicoms / "all.csv")
    assert set(table["sex"]) == {"M"}
    assert "045Y" in set(table["age"])


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files whose headers were read for sex, age and view."""
    names = []

    def read(path, tags):
        names.append(path)
        return read_tags(path, tags)

    monkeypatch.setattr("fastcxr.data.imaging.dicom.read_tags", read)
    return names


def test_rows_are_chosen_by_what_headers_say_and_each_header_is_read_once(dicoms, opened):
    table = read_manifest(dicoms, filter=("sex=F,", "view=AP"), only_test=True)
    assert table["path"].tolist() == ["clear/0.dcm", "clear/2.dcm", "haze/3.dcm"]
    assert set(table["sex"].fillna("")) == {"F", ""}
    assert sorted(opened) == sorted(map(str, dicoms.glob("*/*.dcm")))


def test_rows_are_chosen_by_age_and_by_headers_of_one_of_two_sources(dicoms, tmp_path):
    old = read_manifest(dicoms, filter=("age=045Y,090Y",), only_test=True)
    assert old["path"].tolist() == ["clear/0.dcm", "haze/1.dcm"]
    for k in range(4):
        place = tmp_path / "png" / ("clear", "haze")[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_reference(seed=10 + k)).save(place / f"{k}.png")
    both = read_manifest([dicoms, tmp_path / "png"], filter=("sex=M",))
    assert both["source"].value_counts().to_dict() == {"png": 4, "data": 1}


def test_headers_of_rows_that_other_choices_leave_out_are_not_read(dicoms, opened):
    read_manifest(dicoms, filter=("view=AP",), classes=("haze",), only_test=True)
    assert len(opened) == 2
    opened.clear()
    pd.DataFrame(
        [(f"{k % 2 * 'haze' or 'clear'}/{k}.dcm", "c", str(k < 2)) for k in range(4)], columns=["path", "label", "kept"]
    ).to_csv(dicoms / "all.csv", index=False)
    read_manifest(dicoms / "all.csv", filter=("kept=True",), only_test=True)
    assert len(opened) == 2


def test_a_value_that_no_header_holds_is_refused_with_those_there_are(dicoms):
    with pytest.raises(RecipeError, match="filter view: no value is called 'PA'.*There are AP"):
        read_manifest(dicoms, filter=("view=PA",))


def test_other_pictures_get_no_such_columns(tmp_path):
    for k in range(4):
        place = tmp_path / ("clear", "haze")[k % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 20), 40 * k, np.uint8)).save(place / f"{k}.png")
    assert not {"sex", "age", "view"} & set(read_manifest(tmp_path))


@pytest.mark.parametrize(("cell", "shown"), [("089Y", "089Y"), ("091Y", "090Y"), ("011M", "011M"), ("91", None)])
def test_ages_are_dicoms_own_or_none(cell, shown):
    assert cap_age(cell) == shown
