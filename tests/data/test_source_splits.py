"""A source is held out whole: no patient and no picture of it teaches, and every class is taught by the others."""

import shutil

import pandas as pd
import pytest
from toy_datasets import make_copied
from toy_images import write_toys

from fastcxr.data.manifest import read_manifest
from fastcxr.data.splits import find_complete_sources, hold_out_source
from fastcxr.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    place = tmp_path_factory.mktemp("sources")
    write_toys(place / "clinic", per_class=16)
    write_toys(place / "ward", per_class=12, first=50)
    return place


def read(place, *names):
    return read_manifest([place / name for name in names])


def test_the_source_is_test_and_patients_of_the_others_are_dealt(two):
    table = hold_out_source(read(two, "clinic", "ward"), "ward")
    assert set(table.loc[table["source"] == "ward", "split"]) == {"test"}
    others = table[table["source"] == "clinic"]
    assert set(others["split"]) == {"train", "valid", "internal_test"}
    assert others.groupby("patient")["split"].nunique().max() == 1
    assert others[others["split"] == "train"]["label"].nunique() == 3


def test_a_patient_who_stands_in_both_teaches_nothing(two, caplog):
    table = read(two, "clinic", "ward")
    held = table.loc[table["source"] == "ward", "patient"].iloc[0]
    crossing = table.index[table["source"] == "clinic"][:2]
    table.loc[crossing, "patient"] = held
    found = hold_out_source(table, "ward")
    assert not set(found["path"][found["source"] == "clinic"]) & set(table["path"][crossing])
    assert found.groupby("patient")["split"].nunique().max() == 1
    assert "2 images of other sources left out" in caplog.text


def test_a_copy_that_stands_in_both_teaches_nothing(two, tmp_path):
    rows = []
    for name in ("clinic", "ward"):
        shutil.copytree(two / name, tmp_path / name)
        rows += [
            (f"{name}/{file.parent.name}/{file.name}", file.parent.name, name) for file in (two / name).glob("*/*")
        ]
    shutil.copy(tmp_path / rows[-1][0], tmp_path / "clinic" / rows[-1][1] / "copy.png")
    rows.append((f"clinic/{rows[-1][1]}/copy.png", rows[-1][1], "clinic"))
    pd.DataFrame(rows, columns=["path", "label", "source"]).to_csv(tmp_path / "all.csv", index=False)
    found = hold_out_source(read_manifest(tmp_path / "all.csv"), "ward")
    assert not found["path"].str.endswith("copy.png").any()


def test_sources_that_lack_classes_are_named_in_one_line(two, tmp_path):
    write_toys(tmp_path / "far", per_class=6, labels=("clear",), first=80)
    table = read_manifest([two / "ward", tmp_path / "far"])
    with pytest.raises(DataError, match="far lacks haze, opacity. Name --data of another place") as caught:
        find_complete_sources(table)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="the data names one source, 'ward'"):
        find_complete_sources(read_manifest(two / "ward"))
    whole = read_manifest([two / "clinic", two / "ward", tmp_path / "far"])
    assert find_complete_sources(whole) == ["clinic", "ward"]


def test_a_source_without_which_nothing_is_left_to_learn_from_is_refused(two, tmp_path):
    write_toys(tmp_path / "far", per_class=6, labels=("clear",), first=80)
    with pytest.raises(DataError, match="without ward no image of haze, opacity is left"):
        hold_out_source(read_manifest([two / "ward", tmp_path / "far"]), "ward")
    with pytest.raises(RecipeError, match="Hold out one of clinic, ward"):
        hold_out_source(read(two, "clinic", "ward"), "wards")


def test_copies_within_the_other_sources_share_a_split(tmp_path):
    table = make_copied(tmp_path)
    table = table.assign(source=["clinic"] * 40 + ["ward"] * 20 + ["clinic"] * 40 + ["ward"] * 20)
    found = hold_out_source(table, "ward")
    image = found["path"].str.replace("first|second", "", regex=True)
    assert found["split"].groupby(image).nunique().max() == 1
