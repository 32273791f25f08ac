"""Tests of cross-validation folds: each image is held out once, and patients are never divided."""

import pytest
from toy_datasets import make_copied, make_manifest

from fastcxr.data.splits import select_fold, split_into_folds
from fastcxr.errors import DataError, RecipeError


def make_patients():
    return make_manifest([(f"{label}{p}", label) for label in "xyz" for p in range(20) for _ in range(1 + p % 3)])


def test_every_image_is_held_out_once_and_no_patient_is_in_two_splits():
    manifest = split_into_folds(make_patients(), 5)
    held_out = []
    for fold in range(1, 6):
        fold_manifest = select_fold(manifest, fold)
        held_out += fold_manifest.index[fold_manifest["split"] == "test"].tolist()
        assert fold_manifest.groupby("patient")["split"].nunique().max() == 1
        assert set(fold_manifest["split"]) == {"train", "valid", "test"}
    assert sorted(held_out) == manifest.index.tolist()


def test_folds_are_stratified():
    manifest = split_into_folds(make_patients(), 5).drop_duplicates("patient")
    assert manifest.groupby(["fold", "label"]).size().unstack().to_numpy().tolist() == [[4, 4, 4]] * 5


def test_folds_do_not_depend_on_the_order_of_rows_and_follow_the_seed():
    manifest = make_patients()
    one, two = (split_into_folds(table, 4).set_index("path")["fold"] for table in (manifest, manifest[::-1]))
    assert one.sort_index().equals(two.sort_index())
    assert not one.equals(split_into_folds(manifest, 4, seed=1).set_index("path")["fold"])


def test_the_valid_split_of_a_fold_has_15_of_85_patients():
    fold_manifest = select_fold(split_into_folds(make_patients(), 5), 1)
    patients = fold_manifest.drop_duplicates("patient")["split"].value_counts()
    assert patients["test"] == 12
    assert patients["valid"] in (8, 9)


def test_image_level_folds_ignore_patients():
    manifest = split_into_folds(make_patients(), 5, unit="image")
    assert manifest.groupby("patient")["fold"].nunique().max() > 1


def test_a_class_with_fewer_patients_than_folds_is_rejected():
    with pytest.raises(DataError, match="Pass `folds=20` or fewer"):
        split_into_folds(make_patients(), 21)


def test_an_unknown_fold_is_rejected():
    with pytest.raises(RecipeError, match="only 1 to 3. Pass `fold` with one of these"):
        select_fold(split_into_folds(make_patients(), 3), 4)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_exact_duplicates_share_a_fold_and_a_split(tmp_path, unit):
    folds = split_into_folds(make_copied(tmp_path), 5, unit=unit)
    fold_manifest = select_fold(folds, 1, unit=unit)
    image = folds["path"].str.replace("first|second", "", regex=True)
    assert folds["fold"].groupby(image).nunique().max() == 1
    assert fold_manifest["split"].groupby(image).nunique().max() == 1


def test_a_class_with_fewer_distinct_images_than_folds_is_rejected(tmp_path):
    with pytest.raises(DataError, match="Pass `folds=4` or fewer"):
        split_into_folds(make_copied(tmp_path, images=4), 5, unit="image")
