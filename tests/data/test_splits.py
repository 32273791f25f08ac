"""Tests of the assignment of images to splits."""

import logging

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_datasets import check_message, make_copied, make_manifest

from fastcxr.audit.manifest_checks import check_duplicates
from fastcxr.data.manifest import read_manifest
from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.data.patients import pseudonymize
from fastcxr.data.splits import describe_split, find_shared_patients, select_fold, split_by_patient, split_into_folds
from fastcxr.errors import DataError, FastcxrError, RecipeError

FRACTIONS = {"train": 0.70, "valid": 0.15, "test": 0.15}


@st.composite
def manifests(draw) -> pd.DataFrame:
    """1 to 8 classes, patients with 1 to 50 images of one or two classes, and images without a patient."""
    labels = [f"class {i}" for i in range(draw(st.integers(1, 8)))]
    rows = []
    for patient in range(draw(st.integers(1, 40))):
        own = draw(st.lists(st.sampled_from(labels), min_size=1, max_size=2))
        rows += [(f"patient {patient}", own[i % len(own)]) for i in range(draw(st.integers(1, 50)))]
    rows += [(f"image:{i}", draw(st.sampled_from(labels))) for i in range(draw(st.integers(0, 20)))]
    return make_manifest(draw(st.permutations(rows)) if len(rows) < 60 else rows)


def make_patients(patients: int = 100, images: int = 2, labels: tuple[str, ...] = ("x", "y")) -> pd.DataFrame:
    return make_manifest([(f"{label}{p}", label) for label in labels for p in range(patients) for _ in range(images)])


def assign_given(manifest: pd.DataFrame, splits: list) -> pd.DataFrame:
    return manifest.assign(split=splits, split_origin="given")


def map_splits(manifest: pd.DataFrame, key: str = "patient") -> dict[str, str]:
    return dict(zip(manifest[key], manifest["split"], strict=True))


def split_or_get_error(manifest: pd.DataFrame, **choices) -> pd.DataFrame | str:
    try:
        return split_by_patient(manifest, **choices)
    except DataError as error:
        return check_message(error)


def catch_error(manifest: pd.DataFrame, **choices) -> str:
    with pytest.raises(FastcxrError) as caught:
        split_by_patient(manifest, **choices)
    return check_message(caught.value)


@given(manifests(), st.integers(0, 3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_patient_is_in_two_splits_for_arbitrary_manifests(manifest, seed):
    split = split_or_get_error(manifest, seed=seed)
    if isinstance(split, str):
        assert split.startswith(("FCX-E004", "FCX-E030"))
        return
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert split["split"].isin(FRACTIONS).all()
    assert set(split.loc[split["split"] == "train", "label"]) == set(manifest["label"])
    assert set(split["split_origin"]) == {"patient"}
    pd.testing.assert_frame_equal(split[["path", "label", "patient"]], manifest[["path", "label", "patient"]])


@given(manifests())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_the_order_of_rows_does_not_change_the_splits(manifest):
    split = split_or_get_error(manifest)
    if isinstance(split, str):
        return
    shuffled = split_by_patient(manifest.sample(frac=1, random_state=1).reset_index(drop=True))
    assert map_splits(shuffled, "path") == map_splits(split, "path")


@given(manifests(), st.permutations(range(8)), st.sampled_from(["patient", "image"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_renamed_labels_and_the_order_of_rows_change_neither_splits_nor_folds(manifest, new_numbers, unit):
    renamed = manifest.assign(label=["other " + str(new_numbers[int(name[6:])]) for name in manifest["label"]])
    renamed = renamed.sample(frac=1, random_state=1).reset_index(drop=True)
    split, other = split_or_get_error(manifest, unit=unit), split_or_get_error(renamed, unit=unit)
    if isinstance(split, str):
        assert split.split()[0] == other.split()[0], "the same error code"
        return
    assert map_splits(other, "path") == map_splits(split, "path")
    folds, other_folds = (split_into_folds(table, 2, unit=unit) for table in (manifest, renamed))
    assert dict(zip(other_folds["path"], other_folds["fold"], strict=True)) == dict(
        zip(folds["path"], folds["fold"], strict=True)
    )
    fold, other_fold = (select_fold(table, 1, unit=unit) for table in (folds, other_folds))
    assert map_splits(other_fold, "path") == map_splits(fold, "path")


def test_each_class_is_split_by_patient_into_70_15_and_15_percent():
    split = split_by_patient(make_patients(200, images=3, labels=("x", "y", "z")))
    patients = split.drop_duplicates("patient")
    for _, rows in patients.groupby("label"):
        fractions = rows["split"].value_counts(normalize=True)
        assert all(abs(fractions[name] - fraction) < 0.01 for name, fraction in FRACTIONS.items())


@pytest.mark.parametrize("patients", [3, 4, 5])
def test_three_patients_of_a_class_are_in_three_splits(patients):
    split = split_by_patient(make_patients(patients))
    assert (split.groupby("label")["split"].nunique() == 3).all()


def test_two_patients_of_a_class_are_in_train_and_test_with_a_warning(caplog):
    split = split_by_patient(pd.concat([make_patients(20), make_manifest([("a", "z"), ("b", "z")])]))
    assert set(split.loc[split["label"] == "z", "split"]) == {"train", "test"}
    assert "no image of 'z' is in valid: this split has no metrics for it" in caplog.text


def test_a_class_of_one_patient_is_rejected_unless_images_are_split():
    manifest = pd.concat([make_patients(20), make_manifest([("a", "z")] * 9)], ignore_index=True)
    text = catch_error(manifest)
    assert "FCX-E004" in text
    assert "'z' (9 images of 1 patient). Add patients (at least 2, better 20)" in text
    assert len(split_by_patient(manifest, unit="image")) == len(manifest)


def test_the_seed_determines_the_splits():
    manifest = make_patients()
    assert map_splits(split_by_patient(manifest, seed=1)) == map_splits(split_by_patient(manifest, seed=1))
    assert map_splits(split_by_patient(manifest, seed=1)) != map_splits(split_by_patient(manifest, seed=2))


def test_the_input_is_unchanged():
    manifest = make_patients()
    before = manifest.copy()
    split_by_patient(manifest)
    pd.testing.assert_frame_equal(manifest, before)


def test_generated_splits_are_replaced_by_splitting_again():
    split = split_by_patient(make_patients(), seed=1)
    assert map_splits(split_by_patient(split, seed=2)) == map_splits(split_by_patient(make_patients(), seed=2))


def test_image_level_splits_ignore_patients_with_a_warning(caplog):
    split = split_by_patient(make_patients(50, images=4), unit="image")
    assert set(split["split_origin"]) == {"image"}
    assert split["split"].value_counts().to_dict() == {"train": 280, "valid": 60, "test": 60}
    assert len(find_shared_patients(split)) > 50
    assert "patients are in more than one split, which inflates the metrics" in caplog.text


def test_shared_patients_are_listed_with_their_images():
    manifest = make_manifest([("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("c", "y")])
    shared = find_shared_patients(assign_given(manifest, ["train", "test", "train", "test", "valid"]))
    assert shared.to_dict("records") == [{"patient": "a", "train": 1, "valid": 0, "test": 2}]


def test_given_splits_are_kept_and_shared_patients_cause_a_warning(caplog):
    manifest = assign_given(make_patients(20), ["train", "test"] * 20 + ["train"] * 20 + ["valid"] * 20)
    split = split_by_patient(manifest)
    pd.testing.assert_frame_equal(split, manifest)
    assert "20 in train and test (such as x0, x1, x10, x11, x12)" in caplog.text


def test_a_missing_valid_split_is_drawn_from_train_by_patient(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    manifest = make_patients(100)
    manifest = assign_given(manifest, ["test" if int(p[1:]) < 15 else "train" for p in manifest["patient"]])
    split = split_by_patient(manifest)
    assert describe_split(split) == (
        "train 280 images of 140 patients, valid 60 images of 30 patients, test 60 images of 30 patients"
    )
    assert find_shared_patients(split).empty
    assert set(split.loc[split["split"] == "valid", "split_origin"]) == {"patient"}
    assert set(split.loc[split["split"] != "valid", "split_origin"]) == {"given"}
    assert "no valid split is given: 60 images of 30 patients are moved from train to valid" in caplog.text
    pd.testing.assert_frame_equal(split_by_patient(split), split)


def test_a_patient_in_train_and_test_is_never_moved_to_valid():
    manifest = assign_given(make_patients(60), (["train"] * 3 + ["test"]) * 60)
    split = split_by_patient(manifest)
    tested = set(split.loc[split["split"] == "test", "patient"])
    assert not tested & set(split.loc[split["split"] == "valid", "patient"])
    assert (split["split"] == "valid").any()


def test_a_missing_test_split_causes_a_warning(caplog):
    split_by_patient(assign_given(make_patients(10), ["train"] * 10 + ["valid"] * 10 + ["train"] * 10 + ["valid"] * 10))
    assert "no test split is given: valid is used for model selection and for the reported metrics" in caplog.text


def test_partly_given_splits_and_unknown_split_names_are_rejected():
    text = catch_error(assign_given(make_patients(2), ["train", None, "test", "test", None, None, "train", "test"]))
    assert "FCX-E017" in text
    assert "3 of 8 images have no split, the others have one. Give every image a split, or none" in text
    assert "unknown split names 'holdout'. Rename each to train, valid or test" in catch_error(
        assign_given(make_patients(1), ["train", "holdout"] * 2)
    )


def test_a_class_without_training_images_is_rejected():
    text = catch_error(assign_given(make_patients(2), ["train"] * 4 + ["test"] * 3 + ["valid"]))
    assert "no image of 'y' is in train. Add patients of every class to train" in text


def test_a_manifest_without_source_or_patients_and_an_unknown_unit_are_rejected():
    assert "the manifest has no column 'source'. Create the manifest with read_manifest" in catch_error(
        make_patients().drop(columns="source")
    )
    assert "some images have no patient. Create" in catch_error(make_patients().assign(patient=None))
    assert "did you mean 'patient'?). Choose patient or image" in catch_error(make_patients(), unit="patients")


@given(manifests(), st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_additional_images_do_not_change_the_split_of_earlier_patients(manifest, seed):
    old = manifest.sample(frac=0.9, random_state=seed).reset_index(drop=True)
    earlier = split_or_get_error(old, seed=1)
    split = earlier if isinstance(earlier, str) else split_or_get_error(manifest, seed=2, earlier=earlier)
    if isinstance(split, str):
        assert split.startswith(("FCX-E004", "FCX-E030"))
        return
    before = map_splits(earlier)
    assert {patient: name for patient, name in map_splits(split).items() if patient in before} == before
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert ((split["split_origin"] == "kept") == split["patient"].isin(before)).all()


def test_new_patients_keep_the_split_fractions(tmp_path):
    earlier = split_by_patient(make_patients(50))
    write_manifest(earlier, tmp_path / "manifest.csv")
    split = split_by_patient(make_patients(100), earlier=read_written_manifest(tmp_path / "manifest.csv"))
    fractions = split.drop_duplicates("patient")["split"].value_counts(normalize=True)
    assert all(abs(fractions[name] - fraction) < 0.02 for name, fraction in FRACTIONS.items())
    assert split["split_origin"].value_counts().to_dict() == {"kept": 200, "patient": 200}


def test_earlier_images_keep_their_split_in_an_image_level_split():
    manifest = make_patients(30)
    earlier = split_by_patient(manifest.iloc[:100], unit="image")
    split = split_by_patient(manifest, unit="image", seed=5, earlier=earlier)
    assert map_splits(split.iloc[:100], "path") == map_splits(earlier, "path")
    assert split["split_origin"].value_counts().to_dict() == {"kept": 100, "image": 20}
    assert "no image in common. Choose a run on the same" in catch_error(
        manifest.assign(source="there"), unit="image", earlier=earlier
    )


def test_an_image_with_a_newly_known_patient_keeps_its_split():
    manifest = make_patients(20, images=1)
    earlier = split_by_patient(manifest)
    two = earlier[earlier["split"] == "test"].index[:2]
    known = manifest.assign(patient=manifest["patient"].mask(manifest.index.isin(two), "both"))
    split = split_by_patient(known, seed=9, earlier=earlier)
    assert set(split.loc[two, "split"]) == {"test"}
    three = [*two, earlier[earlier["split"] == "train"].index[0]]
    divided = manifest.assign(patient=manifest["patient"].mask(manifest.index.isin(three), "all"))
    assert "1 patients were in several splits (such as all)" in catch_error(divided, earlier=earlier)


def test_an_earlier_split_that_cannot_be_reused_is_rejected_with_a_fix():
    manifest = make_patients(20)
    other_patients = split_by_patient(manifest.assign(patient="other " + manifest["patient"]))
    text = catch_error(manifest, earlier=other_patients)
    assert "FCX-E018" in text
    assert "no patient in common. Choose a run on the same patients" in text
    text = catch_error(manifest, earlier=split_by_patient(manifest, unit="image"))
    assert "patients were in several splits (such as x" in text
    assert "Pass `unit='image'` to keep the split of every image, or leave out" in text
    assert "no columns 'split'. Choose the manifest.csv" in catch_error(
        manifest, earlier=manifest.drop(columns="split")
    )
    assert "split names other than" in catch_error(manifest, earlier=manifest.assign(split="dev"))
    with pytest.raises(RecipeError, match="both the data and an earlier run give splits. Leave out `earlier`"):
        split_by_patient(assign_given(manifest, ["train"] * 80), earlier=other_patients)


def test_hashes_with_another_salt_are_recognized():
    manifest = make_patients(20)
    here, there = (
        manifest.assign(patient=[pseudonymize(patient, salt) for patient in manifest["patient"]])
        for salt in (b"one", b"two")
    )
    text = catch_error(here, earlier=split_by_patient(there))
    assert "by hashed DICOM tags, with different salts (" in text
    assert "use the salt of the earlier run (FASTCXR_SALT)" in text


def test_the_description_counts_images_and_patients():
    manifest = assign_given(make_manifest([("a", "x"), ("a", "x"), ("b", "y")]), ["train", "train", "test"])
    assert describe_split(manifest) == "train 2 images of 1 patient, test 1 image of 1 patient"


def count_divided(split: pd.DataFrame, column: str = "split") -> int:
    """Return how many pairs of exact duplicates (first3.png and second3.png) are in two splits."""
    image = split["path"].str.replace("first|second", "", regex=True)
    return int((split.groupby(image)[column].nunique() > 1).sum())


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_exact_duplicates_without_patients_share_a_split(tmp_path, unit):
    split = split_by_patient(make_copied(tmp_path), unit=unit)
    assert count_divided(split) == 0
    assert set(split["split"]) == set(FRACTIONS)
    assert check_duplicates(split).verdict == "WARN", "otherwise a report would contain a critical warning"


def test_patients_of_exact_duplicates_share_a_split_with_all_their_images(tmp_path):
    manifest = make_copied(tmp_path, images=40)
    chains = [
        str(row // 8) for row in manifest.index
    ]  # of five patients, each with a duplicate of an image of the next
    patients = [f"{chain}-{(row % 8 + 1) // 2}" for row, chain in enumerate(chains)]
    split = split_by_patient(manifest.assign(patient=patients, patient_origin="column"))
    assert (split["split"].groupby(chains).nunique() == 1).all()
    assert set(split["patient"]) == {f"{chain}-0" for chain in chains}


def test_given_splits_that_divide_duplicates_are_kept_with_a_warning(tmp_path, caplog):
    manifest = assign_given(make_copied(tmp_path, images=10), ["train", "test"] * 2 + ["train"] * 34 + ["valid"] * 2)
    split = split_by_patient(manifest)
    assert split["split"].tolist() == manifest["split"].tolist()
    assert "4 files with the same bytes are in more than one split, which inflates the metrics (such as" in caplog.text
    assert "patients are in more than one split" not in caplog.text


def test_a_duplicate_of_a_test_image_is_never_moved_to_valid(tmp_path):
    for unit in ("patient", "image"):
        manifest = assign_given(make_copied(tmp_path / unit), ["train", "test"] * 20 + ["train"] * 80)
        split = split_by_patient(manifest, unit=unit)
        assert (split["split"] == "valid").any()
        assert count_divided(split) == 20


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_an_earlier_split_that_divides_duplicates_is_rejected(tmp_path, unit):
    manifest = make_copied(tmp_path)
    earlier = manifest.assign(split=["train", "valid", "test"] * 40)
    assert "were in several splits (such as" in catch_error(manifest, earlier=earlier, unit=unit)
    kept = split_by_patient(manifest.iloc[::2], unit=unit)
    split = split_by_patient(manifest, unit=unit, earlier=kept, seed=7)
    assert count_divided(split) == 0
    assert map_splits(split.iloc[::2], "path") == map_splits(kept, "path")


def test_the_ozturk_dataset_is_split_by_patient(real_data):
    manifest = read_manifest(real_data / "ozturk", patient_table=real_data / "cohen/metadata.csv")
    split = split_by_patient(manifest)
    assert find_shared_patients(split).empty
    for _, rows in split.drop_duplicates(["patient", "label"]).groupby("label"):
        fractions = rows["split"].value_counts(normalize=True)
        assert all(abs(fractions[name] - fraction) < 0.02 for name, fraction in FRACTIONS.items())
    assert len(find_shared_patients(split_by_patient(manifest, unit="image"))) > 50


def test_a_rare_finding_may_be_absent_from_a_fold_but_every_fold_has_patients():
    table = make_manifest([(f"p{number}", "Edema" if number == 0 else "") for number in range(12)])
    table = table.assign(finding_Edema=(table["label"] == "Edema").astype("Int8"))
    folds = split_into_folds(table, 5)
    assert set(folds["fold"]) == {1, 2, 3, 4, 5} and folds.groupby("patient")["fold"].nunique().max() == 1
    with pytest.raises(DataError, match="4 patients, fewer than 5 folds.*folds=4"):
        split_into_folds(table[:4], 5)
