"""Tests of held-out sources: none of their patients or images is used for training."""

import shutil

import pandas as pd
import pytest
from toy_datasets import make_copied
from toy_images import write_toys

from fastcxr.data.manifest import read_manifest
from fastcxr.data.splits import find_complete_sources, hold_out_source
from fastcxr.errors import DataError, RecipeError


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    write_toys(root / "clinic", per_class=16)
    write_toys(root / "ward", per_class=12, first=50)
    return root


def read(root, *names):
    return read_manifest([root / name for name in names])


def test_the_held_out_source_is_test_and_other_patients_are_split(two_sources):
    table = hold_out_source(read(two_sources, "clinic", "ward"), "ward")
    assert set(table.loc[table["source"] == "ward", "split"]) == {"test"}
    others = table[table["source"] == "clinic"]
    assert set(others["split"]) == {"train", "valid", "internal_test"}
    assert others.groupby("patient")["split"].nunique().max() == 1
    assert others[others["split"] == "train"]["label"].nunique() == 3


def test_patients_of_the_held_out_source_are_not_used_for_training(two_sources, caplog):
    table = read(two_sources, "clinic", "ward")
    held = table.loc[table["source"] == "ward", "patient"].iloc[0]
    crossing = table.index[table["source"] == "clinic"][:2]
    table.loc[crossing, "patient"] = held
    found = hold_out_source(table, "ward")
    assert not set(found["path"][found["source"] == "clinic"]) & set(table["path"][crossing])
    assert found.groupby("patient")["split"].nunique().max() == 1
    assert "2 images of other sources left out" in caplog.text


def test_duplicates_of_the_held_out_source_are_not_used_for_training(two_sources, tmp_path):
    rows = []
    for name in ("clinic", "ward"):
        shutil.copytree(two_sources / name, tmp_path / name)
        rows += [
            (f"{name}/{file.parent.name}/{file.name}", file.parent.name, name)
            for file in (two_sources / name).glob("*/*")
        ]
    shutil.copy(tmp_path / rows[-1][0], tmp_path / "clinic" / rows[-1][1] / "copy.png")
    rows.append((f"clinic/{rows[-1][1]}/copy.png", rows[-1][1], "clinic"))
    pd.DataFrame(rows, columns=["path", "label", "source"]).to_csv(tmp_path / "all.csv", index=False)
    found = hold_out_source(read_manifest(tmp_path / "all.csv"), "ward")
    assert not found["path"].str.endswith("copy.png").any()


def test_sources_without_every_class_are_named_in_one_line(two_sources, tmp_path):
    write_toys(tmp_path / "far", per_class=6, labels=("clear",), first=80)
    table = read_manifest([two_sources / "ward", tmp_path / "far"])
    with pytest.raises(DataError, match="far lacks haze, opacity.*. Add `data` of another source") as caught:
        find_complete_sources(table)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="the data has one source, 'ward'"):
        find_complete_sources(read_manifest(two_sources / "ward"))
    all_sources = read_manifest([two_sources / "clinic", two_sources / "ward", tmp_path / "far"])
    assert find_complete_sources(all_sources) == ["clinic", "ward"]


def test_a_source_is_rejected_if_a_class_has_no_other_training_images(two_sources, tmp_path):
    write_toys(tmp_path / "far", per_class=6, labels=("clear",), first=80)
    with pytest.raises(DataError, match="without ward, no image of haze, opacity is left"):
        hold_out_source(read_manifest([two_sources / "ward", tmp_path / "far"]), "ward")
    with pytest.raises(RecipeError, match="Hold out one of clinic, ward"):
        hold_out_source(read(two_sources, "clinic", "ward"), "wards")


def test_exact_duplicates_in_the_other_sources_share_a_split(tmp_path):
    table = make_copied(tmp_path)
    table = table.assign(source=["clinic"] * 40 + ["ward"] * 20 + ["clinic"] * 40 + ["ward"] * 20)
    found = hold_out_source(table, "ward")
    image = found["path"].str.replace("first|second", "", regex=True)
    assert found["split"].groupby(image).nunique().max() == 1
