"""A DataFrame is a dataset like a CSV, fastai's column is_valid gives splits, and options are those of a recipe."""

import logging

import numpy as np
import pandas as pd
import pytest

from fastcxr import Recipe, make_loaders, read_manifest, split_by_patient
from fastcxr.data.manifest import DATA_OPTIONS
from fastcxr.errors import DataError, RecipeError


@pytest.fixture
def frame(toy_manifest) -> pd.DataFrame:
    return toy_manifest[["path", "label"]].assign(is_valid=[number % 5 == 0 for number in range(30)])


def test_a_data_frame_gives_the_manifest_of_its_csv(frame, toy_folder, tmp_path, monkeypatch):
    table = frame.assign(
        patient=np.arange(30) // 2, source="ward", sex="F", age=np.arange(30), view="PA", split="train"
    )
    table = table.drop(columns="is_valid")
    table.loc[0, "view"] = np.nan
    table.loc[3, "split"] = "valid"
    table.assign(path=str(toy_folder) + "/" + table["path"]).to_csv(tmp_path / "toys.csv", index=False)
    expected = read_manifest(tmp_path / "toys.csv").drop(columns="path")
    found = read_manifest(table, root=toy_folder)
    assert found["path"].tolist() == table["path"].tolist()
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected)
    monkeypatch.chdir(toy_folder)
    pd.testing.assert_frame_equal(read_manifest(table), found)


def test_the_user_table_is_unchanged_and_any_index_is_accepted(frame, toy_folder):
    table = frame.set_axis([7] * len(frame))
    before = table.copy()
    assert len(read_manifest(table, root=toy_folder)) == 30
    pd.testing.assert_frame_equal(table, before)


def test_images_without_a_source_have_the_name_of_the_root(frame, toy_folder):
    assert set(read_manifest(frame, root=toy_folder)["source"]) == {toy_folder.name}


def test_numbers_of_patients_with_blank_cells_stay_whole(frame, toy_folder):
    table = frame.assign(patient=[np.nan, *range(100, 129)])
    assert read_manifest(table, root=toy_folder)["patient"].tolist()[1:3] == ["100", "101"]


@pytest.mark.parametrize("values", [(True, False), (1, 0), ("True", "False"), (1.0, 0.0)])
def test_is_valid_gives_the_splits(frame, toy_folder, tmp_path, values):
    table = frame.assign(is_valid=[values[0] if given else values[1] for given in frame["is_valid"]])
    manifest = read_manifest(table, root=toy_folder)
    assert (manifest["split"] == "valid").tolist() == frame["is_valid"].tolist()
    assert set(manifest["split"]) == {"train", "valid"}
    table.assign(path=str(toy_folder) + "/" + table["path"]).to_csv(tmp_path / "toys.csv", index=False)
    assert read_manifest(tmp_path / "toys.csv")["split"].tolist() == manifest["split"].tolist()


def test_is_valid_is_kept_by_the_split_and_reaches_the_loaders(toy_manifest, toy_folder):
    table = toy_manifest[["path", "label"]].assign(is_valid=toy_manifest["split"] == "valid")
    manifest = split_by_patient(read_manifest(table, root=toy_folder))
    loaders = make_loaders(manifest, Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=4))
    assert loaders.valid.n == table["is_valid"].sum()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename(columns={"path": "where"}), "DataFrame: no column called path"),
        (lambda t: t.rename(columns={"label": "Labeled"}), r"no column called label \(did you mean 'Labeled'\?\)"),
        (lambda t: t.assign(is_valid="perhaps"), "unknown is_valid: 'perhaps' .*Use True"),
        (lambda t: t.assign(split="train"), "the columns split and is_valid both give splits. Remove one of them"),
        (lambda t: t.assign(label=[None, *t["label"][1:]]), r"1 rows have no label \(row 0\)"),
        (lambda t: t.assign(path=["x.png", *t["path"][1:]]), r"'x.png' \(row 0\). Correct the paths .*root"),
        (lambda t: pd.concat([t, t[:1].assign(label="haze")]), r"rows 0, 30"),
    ],
)
def test_an_unusable_data_frame_is_an_error_that_names_rows_and_columns(frame, toy_folder, change, message):
    with pytest.raises(DataError, match=message):
        read_manifest(change(frame), root=toy_folder)


def test_a_data_frame_and_a_folder_are_merged(frame, toy_folder, tmp_path, caplog):
    from toy_images import write_toys

    other = write_toys(tmp_path / "other", per_class=4, first=50)
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        manifest = read_manifest([frame.drop(columns="is_valid"), other], root=toy_folder)
    assert manifest["source"].value_counts().to_dict() == {"toys": 30, "other": 12}


def test_the_options_are_those_of_a_recipe(toy_folder):
    recipe = Recipe(classes=("clear", "haze"))
    assert set(read_manifest(toy_folder, recipe)["label"]) == {"clear", "haze"}
    manifest = read_manifest(toy_folder, recipe, relabel=["haze=fog"], classes=["clear", "fog"])
    assert set(manifest["label"]) == {"clear", "fog"}
    assert all(f"{name}," in read_manifest.__doc__ or f"{name}." in read_manifest.__doc__ for name in DATA_OPTIONS)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"patient_tabel": "p.csv"}, "no option called 'patient_tabel'. Did you mean 'patient_table'"),
        ({"epochs": 3}, "read_manifest has no option called 'epochs'"),
        ({"classes": "clear"}, "classes is 'clear', it must be a tuple, as .'clear',."),
    ],
)
def test_another_option_is_an_error(toy_folder, option, message):
    with pytest.raises(RecipeError, match=message):
        read_manifest(toy_folder, **option)
