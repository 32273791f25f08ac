"""Tests of splits and folds of findings: stratified over findings, by patient; rare findings are named."""

import logging

import numpy as np
import pandas as pd
import pytest
from toy_datasets import make_manifest

from fastcxr.data.findings import FINDING_PREFIX, make_finding_labels
from fastcxr.data.splits import select_fold, split_by_patient, split_into_folds, warn_of_missing_findings

# prevalence among patients; the findings occur together, as in a collection of radiographs
PREVALENCE = {"Infiltration": 0.3, "Effusion": 0.2, "Edema": 0.08, "Mass": 0.05, "Fibrosis": 0.03, "Hernia": 0.01}
PERCENT = {"train": 70, "valid": 15, "test": 15}


def make_findings(n_patients: int = 600, seed: int = 0) -> pd.DataFrame:
    """Return 1 to 4 images per patient with findings; those of a patient are similar."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    severity = rng.normal(size=n_patients)[patients]
    rows = make_manifest([(f"p{patient}", "x") for patient in patients])
    columns = {}
    for name, prevalence in PREVALENCE.items():
        risk = severity + rng.normal(size=n_patients)[patients] + 0.3 * rng.normal(size=len(patients))
        columns[FINDING_PREFIX + name] = pd.array((risk > np.quantile(risk, 1 - prevalence)).astype(int), "Int8")
    rows = rows.assign(**columns)
    is_normal = rows[list(columns)].sum(axis=1) == 0
    return rows.assign(label=make_finding_labels(rows, is_normal), split=None, split_origin=None)


def count_patients(manifest: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """Return the patients with each finding in each split or fold."""
    return {
        name: manifest[manifest[FINDING_PREFIX + name] == 1].groupby(column)["patient"].nunique() for name in PREVALENCE
    }


@pytest.mark.parametrize("seed", range(3))
def test_patients_with_each_finding_are_split_in_the_target_fractions(seed):
    manifest = split_by_patient(make_findings(seed=seed), seed=seed)
    assert (manifest.groupby("patient")["split"].nunique() == 1).all()
    for name, counts in count_patients(manifest, "split").items():
        for split, percent in PERCENT.items():
            assert abs(counts[split] - counts.sum() * percent / 100) <= 3, (name, split)


@pytest.mark.parametrize("seed", range(3))
def test_patients_with_each_finding_are_divided_evenly_into_folds(seed):
    manifest = split_into_folds(make_findings(seed=seed), 5, seed=seed)
    assert (manifest.groupby("patient")["fold"].nunique() == 1).all()
    for name, counts in count_patients(manifest, "fold").items():
        assert len(counts) == 5 and counts.max() - counts.min() <= 3, name
    fold = select_fold(manifest, 2, seed=seed)
    assert (fold.groupby("patient")["split"].nunique() == 1).all()
    for name, counts in count_patients(fold, "split").items():
        assert set(counts.index) == {"train", "valid", "test"}, name
        assert abs(counts["valid"] - (counts["train"] + counts["valid"]) * 15 / 85) <= 3, name


def test_a_finding_with_fewer_patients_than_folds_is_named_with_its_patients_and_not_refused(caplog):
    manifest = make_findings(60)
    manifest["finding_Hernia"] = pd.array([1, 1] + [0] * (len(manifest) - 2), "Int8")
    manifest = manifest.assign(label=make_finding_labels(manifest), finding_Pneumothorax=pd.NA)
    manifest["patient"] = np.where(np.arange(len(manifest)) < 2, "p0", manifest["patient"])
    folds = split_into_folds(manifest, 5)
    fold_of_hernia = int(folds.loc[folds["finding_Hernia"] == 1, "fold"].iloc[0])
    with caplog.at_level(logging.WARNING, "fastcxr"):
        select_fold(folds, fold_of_hernia)
    assert "no image of train has Hernia (1 patient): it is not learned" in caplog.text
    assert "no image has Pneumothorax" in caplog.text
    assert "no image of test has Hernia" not in caplog.text


def test_official_splits_are_kept_and_the_findings_that_they_lack_are_named(caplog):
    manifest = make_findings(100)
    patients = manifest["patient"].str[1:].astype(int)
    given = pd.Series(np.where(patients % 5 == 0, "test", "train"), manifest.index)
    manifest["finding_Hernia"] = ((given == "test") & (patients % 2 == 0)).astype("Int8")
    manifest = manifest.assign(label=make_finding_labels(manifest), split=given, split_origin="given")
    with caplog.at_level(logging.WARNING, "fastcxr"):
        split = split_by_patient(manifest)
    assert (split["split"].where(split["split"] == "test", "train") == given).all()
    assert (split["split"] == "valid").any() and (split.groupby("patient")["split"].nunique() == 1).all()
    assert "no image of train has Hernia (10 patients): it is not learned" in caplog.text
    assert "no image of valid has Hernia (10 patients): this split has no AUROC for it" in caplog.text
    assert "Edema" not in caplog.text


def test_nothing_is_logged_if_every_split_has_every_finding(caplog):
    with caplog.at_level(logging.WARNING, "fastcxr"):
        warn_of_missing_findings(split_by_patient(make_findings()))
    assert not caplog.records


def test_the_warning_of_a_missing_finding_respects_the_policy_for_uncertain_labels(caplog):
    manifest = split_by_patient(make_findings())
    manifest["finding_Edema"] = manifest["finding_Edema"].mask(manifest["finding_Edema"] == 1, -1)
    is_train = manifest["split"] == "train"
    manifest["finding_Mass"] = manifest["finding_Mass"].mask(is_train & (manifest["finding_Mass"] == 1), -1)
    n_uncertain = int((is_train & (manifest["finding_Edema"] == -1)).sum())
    with caplog.at_level(logging.WARNING, "fastcxr"):
        warn_of_missing_findings(manifest, ("positive",))
        assert f"Edema ({n_uncertain} images): only uncertain labels, which are trained as present" in caplog.text
        assert "nothing can be learned" not in caplog.text and "it is not learned" not in caplog.text
        caplog.clear()
        warn_of_missing_findings(manifest, ("positive", "Edema=ignore", "Mass=ignore"))
    assert "no image has Edema: nothing can be learned" in caplog.text
    assert "no image of train has Mass" in caplog.text and "only uncertain labels" not in caplog.text


def test_uncertain_and_blank_labels_do_not_count_as_present():
    manifest = make_findings(100)
    split = split_by_patient(manifest)
    changed = manifest.copy()
    changed["finding_Edema"] = changed["finding_Edema"].mask(changed["finding_Edema"] == 0, -1)
    changed["finding_Mass"] = changed["finding_Mass"].mask(changed["finding_Mass"] == 0, -2)
    assert split_by_patient(changed)["split"].equals(split["split"])
