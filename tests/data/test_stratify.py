"""Tests of the stratified assignment of groups to splits."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcxr.data.stratify import assign_stratified, count_missing_classes

SPLITS = ("train", "test", "valid")


@pytest.mark.parametrize(
    ("patients", "train", "valid", "test"),
    [(2, 1, 0, 1), (3, 1, 1, 1), (4, 2, 1, 1), (10, 7, 1, 2), (20, 14, 3, 3), (100, 70, 15, 15), (1000, 700, 150, 150)],
)
def test_a_class_is_split_in_the_target_fractions(patients, train, valid, test):
    splits = assign_stratified({f"p{i}": ("x",) for i in range(patients)}, {}, seed=0)
    assert Counter(splits.values()) == Counter({"train": train, "valid": valid, "test": test})


def test_patients_of_several_classes_are_a_separate_stratum():
    groups = {f"{'+'.join(labels)}{i}": labels for labels in (("x",), ("x", "y"), ("y",)) for i in range(100)}
    splits = assign_stratified(groups, {}, seed=1)
    for labels in (("x",), ("x", "y"), ("y",)):
        counts = Counter(splits[group] for group in groups if groups[group] == labels)
        assert all(abs(counts[split] - percent) <= 1 for split, percent in zip(SPLITS, (70, 15, 15), strict=True))


def test_many_strata_of_one_patient_fill_every_split():
    labels = [tuple(f"c{b}" for b in range(6) if i >> b & 1) for i in range(1, 64)]
    counts = Counter(assign_stratified({f"p{i}": names for i, names in enumerate(labels)}, {}, seed=0).values())
    assert 0.55 < counts["train"] / 63 < 0.8
    assert min(counts["valid"], counts["test"]) >= 6


@pytest.mark.parametrize("seed", range(10))
def test_every_split_has_every_class_if_patients_have_several_classes(seed):
    chain = [("a",), ("a",), ("a", "b"), ("b", "c"), ("b",), ("c",), ("c", "a")]
    groups = {f"p{i}": labels for i, labels in enumerate(chain)}
    assert sum(count_missing_classes(groups, assign_stratified(groups, {}, seed=seed), SPLITS)) == 0


def test_the_seed_changes_the_splits_and_the_order_of_groups_does_not():
    groups = {f"p{i}": ("x",) if i % 3 else ("y",) for i in range(60)}
    assert (
        assign_stratified(groups, {}, seed=3)
        == assign_stratified(dict(reversed(groups.items())), {}, seed=3)
        != assign_stratified(groups, {}, seed=4)
    )


def test_new_groups_are_assigned_to_splits_below_their_target():
    fixed = {f"p{i}": "train" for i in range(30)}
    splits = assign_stratified({f"p{i}": ("x",) for i in range(40)}, fixed, seed=0)
    assert {group: splits[group] for group in fixed} == fixed
    assert Counter(splits[f"p{i}"] for i in range(30, 40)) == {"valid": 5, "test": 5}


LABEL_SETS = st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=40)
FIXED = st.dictionaries(st.integers(0, 39), st.sampled_from(SPLITS), max_size=8)


@given(LABEL_SETS, FIXED, st.permutations(range(6)))
@settings(max_examples=200, deadline=None)
def test_the_names_of_labels_do_not_change_the_splits(label_sets, fixed_numbers, new_names):
    fixed = {f"p{i}": split for i, split in fixed_numbers.items() if i < len(label_sets)}
    groups, renamed = (
        {f"p{i}": tuple(sorted(f"class {name[label]}" for label in labels)) for i, labels in enumerate(label_sets)}
        for name in (range(6), new_names)
    )
    assert assign_stratified(groups, fixed, seed=0) == assign_stratified(renamed, fixed, seed=0)


def test_the_split_of_a_class_does_not_depend_on_other_classes():
    groups = {f"p{i}": ("x",) if i % 3 else ("y",) for i in range(60)}
    only_y = {group: labels for group, labels in groups.items() if labels == ("y",)}
    splits = assign_stratified(groups, {}, seed=0)
    assert assign_stratified(only_y, {}, seed=0) == {group: splits[group] for group in only_y}
