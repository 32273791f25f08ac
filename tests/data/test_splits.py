"""Tests for splits.py"""

import logging

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_datasets import check_message, make_copied, make_manifest

from fastcxr.audit.manifest_checks import check_duplicates
from fastcxr.data.manifest import read_manifest, read_written_manifest, write_manifest
from fastcxr.data.patients import pseudonymize
from fastcxr.data.splits import describe_split, find_shared_patients, split_by_patient
from fastcxr.errors import DataError, FastcxrError, RecipeError

SHARES = {"train": 0.70, "valid": 0.15, "test": 0.15}


@st.composite
def manifests(draw) -> pd.DataFrame:
    """1 to 8 classes, patients with 1 to 50 images of mostly one class, and images of nobody."""
    labels = [f"class {i}" for i in range(draw(st.integers(1, 8)))]
    rows = []
    for patient in range(draw(st.integers(1, 40))):
        own = draw(st.lists(st.sampled_from(labels), min_size=1, max_size=2))
        rows += [(f"patient {patient}", own[i % len(own)]) for i in range(draw(st.integers(1, 50)))]
    rows += [(f"image:{i}", draw(st.sampled_from(labels))) for i in range(draw(st.integers(0, 20)))]
    return make_manifest(draw(st.permutations(rows)) if len(rows) < 60 else rows)


def make_cohort(patients: int = 100, images: int = 2, labels: tuple[str, ...] = ("x", "y")) -> pd.DataFrame:
    return make_manifest([(f"{label}{p}", label) for label in labels for p in range(patients) for _ in range(images)])


def give(manifest: pd.DataFrame, splits: list) -> pd.DataFrame:
    return manifest.assign(split=splits, split_origin="given")


def place(manifest: pd.DataFrame, key: str = "patient") -> dict[str, str]:
    return dict(zip(manifest[key], manifest["split"], strict=True))


def split_or_reason(manifest: pd.DataFrame, **choices) -> pd.DataFrame | str:
    try:
        return split_by_patient(manifest, **choices)
    except DataError as error:
        return check_message(error)


def refuse(manifest: pd.DataFrame, **choices) -> str:
    with pytest.raises(FastcxrError) as caught:
        split_by_patient(manifest, **choices)
    return check_message(caught.value)


@given(manifests(), st.integers(0, 3))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_no_patient_is_in_two_splits_whatever_the_table(manifest, seed):
    split = split_or_reason(manifest, seed=seed)
    if isinstance(split, str):
        assert split.startswith(("FCX-E004", "FCX-E030"))
        return
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert split["split"].isin(SHARES).all()
    assert set(split.loc[split["split"] == "train", "label"]) == set(manifest["label"])
    assert set(split["split_origin"]) == {"patient"}
    pd.testing.assert_frame_equal(split[["path", "label", "patient"]], manifest[["path", "label", "patient"]])


@given(manifests())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_the_order_of_rows_makes_no_difference(manifest):
    split = split_or_reason(manifest)
    if isinstance(split, str):
        return
    shuffled = split_by_patient(manifest.sample(frac=1, random_state=1).reset_index(drop=True))
    assert place(shuffled, "path") == place(split, "path")


def test_each_class_is_split_seventy_to_fifteen_to_fifteen_of_its_patients():
    split = split_by_patient(make_cohort(200, images=3, labels=("x", "y", "z")))
    patients = split.drop_duplicates("patient")
    for _, rows in patients.groupby("label"):
        shares = rows["split"].value_counts(normalize=True)
        assert all(abs(shares[name] - share) < 0.01 for name, share in SHARES.items())


@pytest.mark.parametrize("patients", [3, 4, 5])
def test_with_three_patients_every_split_has_one_of_the_class(patients):
    split = split_by_patient(make_cohort(patients))
    assert (split.groupby("label")["split"].nunique() == 3).all()


def test_two_patients_are_trained_and_tested_on_and_the_gap_is_said_loudly(caplog):
    split = split_by_patient(pd.concat([make_cohort(20), make_manifest([("a", "z"), ("b", "z")])]))
    assert set(split.loc[split["label"] == "z", "split"]) == {"train", "test"}
    assert "no image of 'z' is in valid: nothing can be said about it there" in caplog.text


def test_a_class_of_one_patient_is_refused_unless_images_are_split():
    manifest = pd.concat([make_cohort(20), make_manifest([("a", "z")] * 9)], ignore_index=True)
    text = refuse(manifest)
    assert "FCX-E004" in text
    assert "'z' (9 images of 1 patient). One patient cannot be both trained and tested: give 2 at least" in text
    assert len(split_by_patient(manifest, unit="image")) == len(manifest)


def test_the_seed_decides_and_is_obeyed():
    manifest = make_cohort()
    assert place(split_by_patient(manifest, seed=1)) == place(split_by_patient(manifest, seed=1))
    assert place(split_by_patient(manifest, seed=1)) != place(split_by_patient(manifest, seed=2))


def test_what_is_given_in_is_not_changed():
    manifest = make_cohort()
    before = manifest.copy()
    split_by_patient(manifest)
    pd.testing.assert_frame_equal(manifest, before)


def test_splitting_again_draws_anew():
    split = split_by_patient(make_cohort(), seed=1)
    assert place(split_by_patient(split, seed=2)) == place(split_by_patient(make_cohort(), seed=2))


def test_image_level_splits_ignore_patients_and_say_so_loudly(caplog):
    split = split_by_patient(make_cohort(50, images=4), unit="image")
    assert set(split["split_origin"]) == {"image"}
    assert split["split"].value_counts().to_dict() == {"train": 280, "valid": 60, "test": 60}
    assert len(find_shared_patients(split)) > 50
    assert "patients stand in more than one split, which flatters the figures" in caplog.text


def test_shared_patients_are_listed_with_their_images():
    manifest = make_manifest([("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("c", "y")])
    shared = find_shared_patients(give(manifest, ["train", "test", "train", "test", "valid"]))
    assert shared.to_dict("records") == [{"patient": "a", "train": 1, "valid": 0, "test": 2}]


def test_given_splits_are_obeyed_and_shared_patients_said_loudly(caplog):
    manifest = give(make_cohort(20), ["train", "test"] * 20 + ["train"] * 20 + ["valid"] * 20)
    split = split_by_patient(manifest)
    pd.testing.assert_frame_equal(split, manifest)
    assert "20 in train and test (such as x0, x1, x10, x11, x12)" in caplog.text


def test_a_missing_valid_is_cut_from_train_by_patient(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    manifest = make_cohort(100)
    manifest = give(manifest, ["test" if int(p[1:]) < 15 else "train" for p in manifest["patient"]])
    split = split_by_patient(manifest)
    assert describe_split(split) == (
        "train 280 images of 140 patients, valid 60 images of 30 patients, test 60 images of 30 patients"
    )
    assert find_shared_patients(split).empty
    assert set(split.loc[split["split"] == "valid", "split_origin"]) == {"patient"}
    assert set(split.loc[split["split"] != "valid", "split_origin"]) == {"given"}
    assert "no valid split is given: 60 images of 30 patients are cut from train" in caplog.text
    pd.testing.assert_frame_equal(split_by_patient(split), split)


def test_a_patient_who_is_tested_too_is_never_cut_from_train():
    manifest = give(make_cohort(60), (["train"] * 3 + ["test"]) * 60)
    split = split_by_patient(manifest)
    tested = set(split.loc[split["split"] == "test", "patient"])
    assert not tested & set(split.loc[split["split"] == "valid", "patient"])
    assert (split["split"] == "valid").any()


def test_a_missing_test_is_said_loudly(caplog):
    split_by_patient(give(make_cohort(10), ["train"] * 10 + ["valid"] * 10 + ["train"] * 10 + ["valid"] * 10))
    assert "no test split is given: valid both chooses the model and is the headline" in caplog.text


def test_splits_given_in_part_or_under_other_names_are_refused():
    text = refuse(give(make_cohort(2), ["train", None, "test", "test", None, None, "train", "test"]))
    assert "FCX-E017" in text
    assert "3 of 8 images have no split, the others have one. Give every image a split, or none" in text
    assert "'holdout'. Call each train, valid or test" in refuse(give(make_cohort(1), ["train", "holdout"] * 2))


def test_a_class_that_is_not_in_train_is_refused():
    text = refuse(give(make_cohort(2), ["train"] * 4 + ["test"] * 3 + ["valid"]))
    assert "no image of 'y' is in train. Give train some patients of every class" in text


def test_a_table_that_says_not_whose_images_it_holds_is_refused():
    assert "without 'source'. Make the manifest with read_manifest" in refuse(make_cohort().drop(columns="source"))
    assert "images without a patient. Make" in refuse(make_cohort().assign(patient=None))
    assert "did you mean 'patient'?). Choose patient or image" in refuse(make_cohort(), unit="patients")


@given(manifests(), st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_tenth_more_images_moves_no_earlier_patient(manifest, seed):
    old = manifest.sample(frac=0.9, random_state=seed).reset_index(drop=True)
    earlier = split_or_reason(old, seed=1)
    split = earlier if isinstance(earlier, str) else split_or_reason(manifest, seed=2, earlier=earlier)
    if isinstance(split, str):
        assert split.startswith(("FCX-E004", "FCX-E030"))
        return
    before = place(earlier)
    assert {patient: name for patient, name in place(split).items() if patient in before} == before
    assert (split.groupby("patient")["split"].nunique() == 1).all()
    assert ((split["split_origin"] == "kept") == split["patient"].isin(before)).all()


def test_new_patients_fill_what_is_wanting(tmp_path):
    earlier = split_by_patient(make_cohort(50))
    write_manifest(earlier, tmp_path / "manifest.csv")
    split = split_by_patient(make_cohort(100), earlier=read_written_manifest(tmp_path / "manifest.csv"))
    shares = split.drop_duplicates("patient")["split"].value_counts(normalize=True)
    assert all(abs(shares[name] - share) < 0.02 for name, share in SHARES.items())
    assert split["split_origin"].value_counts().to_dict() == {"kept": 200, "patient": 200}


def test_old_images_keep_their_place_in_an_image_level_split():
    manifest = make_cohort(30)
    earlier = split_by_patient(manifest.iloc[:100], unit="image")
    split = split_by_patient(manifest, unit="image", seed=5, earlier=earlier)
    assert place(split.iloc[:100], "path") == place(earlier, "path")
    assert split["split_origin"].value_counts().to_dict() == {"kept": 100, "image": 20}
    assert "no image in common. Choose a run on the same" in refuse(
        manifest.assign(source="there"), unit="image", earlier=earlier
    )


def test_an_image_whose_patient_became_known_keeps_its_place():
    manifest = make_cohort(20, images=1)
    earlier = split_by_patient(manifest)
    two = earlier[earlier["split"] == "test"].index[:2]
    known = manifest.assign(patient=manifest["patient"].mask(manifest.index.isin(two), "both"))
    split = split_by_patient(known, seed=9, earlier=earlier)
    assert set(split.loc[two, "split"]) == {"test"}
    three = [*two, earlier[earlier["split"] == "train"].index[0]]
    torn = manifest.assign(patient=manifest["patient"].mask(manifest.index.isin(three), "all"))
    assert "1 patients stood in several splits (such as all)" in refuse(torn, earlier=earlier)


def test_an_earlier_split_that_cannot_be_kept_is_refused_with_the_way_out():
    manifest = make_cohort(20)
    strangers = split_by_patient(manifest.assign(patient="other " + manifest["patient"]))
    text = refuse(manifest, earlier=strangers)
    assert "FCX-E018" in text
    assert "no patient in common. Choose a run on the same patients" in text
    torn = refuse(manifest, earlier=split_by_patient(manifest, unit="image"))
    assert "patients stood in several splits (such as x" in torn
    assert "Use --split image to keep every image's place, or split anew" in torn
    assert "no columns 'split'. Choose the manifest.csv" in refuse(manifest, earlier=manifest.drop(columns="split"))
    assert "splits of another name" in refuse(manifest, earlier=manifest.assign(split="dev"))
    with pytest.raises(RecipeError, match="an earlier run is to give them too. Leave --reuse-split out"):
        split_by_patient(give(manifest, ["train"] * 80), earlier=strangers)


def test_hashes_under_another_salt_are_told_from_other_patients():
    manifest = make_cohort(20)
    here, there = (
        manifest.assign(patient=[pseudonymize(patient, salt) for patient in manifest["patient"]])
        for salt in (b"one", b"two")
    )
    text = refuse(here, earlier=split_by_patient(there))
    assert "by hashed DICOM tags, with other salts (" in text
    assert "use the salt of that machine (FASTCXR_SALT)" in text


def test_the_description_counts_images_and_patients():
    manifest = give(make_manifest([("a", "x"), ("a", "x"), ("b", "y")]), ["train", "train", "test"])
    assert describe_split(manifest) == "train 2 images of 1 patient, test 1 image of 1 patient"


def count_torn(split: pd.DataFrame, column: str = "split") -> int:
    """How many files are in another split than their copy; copies are named first3.png and second3.png."""
    image = split["path"].str.replace("first|second", "", regex=True)
    return int((split.groupby(image)[column].nunique() > 1).sum())


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_exact_copies_share_a_split_although_nobody_names_patients(tmp_path, unit):
    split = split_by_patient(make_copied(tmp_path), unit=unit)
    assert count_torn(split) == 0
    assert set(split["split"]) == set(SHARES)
    assert check_duplicates(split).verdict == "WARN", "so that no report of it is stamped as confounded"


def test_patients_of_exact_copies_share_a_split_with_all_their_images(tmp_path):
    manifest = make_copied(tmp_path, images=40)
    chains = [str(row // 8) for row in manifest.index]  # of five patients, each of whom has a copy of the next one's
    patients = [f"{chain}-{(row % 8 + 1) // 2}" for row, chain in enumerate(chains)]
    split = split_by_patient(manifest.assign(patient=patients, patient_origin="column"))
    assert (split["split"].groupby(chains).nunique() == 1).all()
    assert set(split["patient"]) == {f"{chain}-0" for chain in chains}


def test_given_splits_that_part_copies_are_obeyed_with_a_warning(tmp_path, caplog):
    manifest = give(make_copied(tmp_path, images=10), ["train", "test"] * 2 + ["train"] * 34 + ["valid"] * 2)
    split = split_by_patient(manifest)
    assert split["split"].tolist() == manifest["split"].tolist()
    assert (
        "4 files with the same bytes stand in more than one split, which inflates the metrics (such as" in caplog.text
    )
    assert "patients stand in more than one split" not in caplog.text


def test_a_copy_of_a_tested_image_is_never_cut_from_train_for_valid(tmp_path):
    for unit in ("patient", "image"):
        manifest = give(make_copied(tmp_path / unit), ["train", "test"] * 20 + ["train"] * 80)
        split = split_by_patient(manifest, unit=unit)
        assert (split["split"] == "valid").any()
        assert count_torn(split) == 20


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_an_earlier_split_that_parts_copies_is_refused(tmp_path, unit):
    manifest = make_copied(tmp_path)
    earlier = manifest.assign(split=["train", "valid", "test"] * 40)
    assert "stood in several splits (such as" in refuse(manifest, earlier=earlier, unit=unit)
    kept = split_by_patient(manifest.iloc[::2], unit=unit)
    split = split_by_patient(manifest, unit=unit, earlier=kept, seed=7)
    assert count_torn(split) == 0
    assert place(split.iloc[::2], "path") == place(kept, "path")


def test_the_ozturk_cohort_is_split_by_patient(real_data):
    manifest = read_manifest(real_data / "ozturk", patient_table=real_data / "cohen/metadata.csv")
    split = split_by_patient(manifest)
    assert find_shared_patients(split).empty
    for _, rows in split.drop_duplicates(["patient", "label"]).groupby("label"):
        shares = rows["split"].value_counts(normalize=True)
        assert all(abs(shares[name] - share) < 0.02 for name, share in SHARES.items())
    assert len(find_shared_patients(split_by_patient(manifest, unit="image"))) > 50
