"""Tests of image samples of each class."""

from synthetic_run import LABELS, make_manifest

from fastcxr.data.statistics import sample_per_class


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
