"""Tests of random samples of images, and of samples of each class or finding."""

import pandas as pd
from synthetic_run import LABELS, make_manifest

from fastcxr.data.statistics import sample_patients, sample_per_class


def test_samples_have_different_patients_of_every_class_in_the_training_split():
    found = sample_per_class(make_manifest(n=300), 4)
    assert found.groupby("label").size().to_dict() == dict.fromkeys(LABELS, 4)
    assert (found["split"] == "train").all()
    assert found["patient"].is_unique


def test_samples_use_second_images_and_other_splits_if_necessary():
    manifest = make_manifest(n=6).assign(label="a", patient="p", split="test")
    assert len(sample_per_class(manifest, 4)) == 4
    assert len(sample_per_class(manifest, 40)) == 6
    assert len(sample_per_class(manifest.iloc[:0], 4)) == 0


def test_an_image_with_several_findings_is_a_sample_of_each():
    manifest = make_manifest(n=3).assign(label=["A|B", "B", "No Finding"], patient=["p", "q", "r"], finding_A=1)
    found = sample_per_class(manifest.assign(split="train"), 4)
    assert found.groupby("label").size().to_dict() == {"A": 1, "B": 2, "No Finding": 1}


def test_a_random_sample_has_different_patients_if_possible():
    manifest = make_manifest(n=300)
    sample = sample_patients(manifest, 40, seed=1)
    assert len(sample) == 40 and sample["patient"].is_unique
    assert sample.index.is_monotonic_increasing
    pd.testing.assert_frame_equal(sample, manifest.loc[sample.index])
    n_patients = manifest["patient"].nunique()
    assert sample_patients(manifest, n_patients + 5, seed=1)["patient"].nunique() == n_patients
    assert len(sample_patients(manifest, 1000, seed=1)) == 300


def test_the_seed_determines_the_random_sample():
    manifest = make_manifest(n=300)
    assert sample_patients(manifest, 40, seed=1).equals(sample_patients(manifest, 40, seed=1))
    assert not sample_patients(manifest, 40, seed=1).equals(sample_patients(manifest, 40, seed=2))
