"""Tests for label_probes.py and the models of several labels: planted relations are named, random ones are not."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fastcxr.audit.image_features import ImageFeatures
from fastcxr.audit.label_probes import check_label_metadata, check_label_shortcuts, draw_orders, select_labels
from fastcxr.audit.manifest_checks import check_label_sizes, check_label_sources, check_manifest, check_no_finding
from fastcxr.audit.probe_models import (
    _fit_logistic,
    auroc,
    auroc_within_folds,
    score_indicators_of_labels,
    standard_error_of_chance,
)
from fastcxr.data.findings import FINDING_PREFIX, make_finding_labels
from fastcxr.progress.base import Progress

NAMES = ("Edema", "Mass", "Nodule", "Hernia")


def make_manifest(n=400, seed=0, prevalence=(0.3, 0.3, 0.1, 0.01)):
    """Return images of two per patient with random findings, and metadata of their files."""
    rng = np.random.default_rng(seed)
    findings = {
        FINDING_PREFIX + name: pd.array((rng.random(n) < p).astype(int), "Int8")
        for name, p in zip(NAMES, prevalence, strict=True)
    }
    manifest = pd.DataFrame(
        {
            "source": rng.choice(["s", "t"], n),
            "path": [f"{number}.png" for number in range(n)],
            "patient": [f"p{number // 2}" for number in range(n)],
            "split": np.where(np.arange(n) // 2 % 4 == 0, "test", "train"),
            "view": rng.choice(["AP", "PA"], n),
            "age": rng.integers(20, 80, n).astype(str),
            "sex": np.repeat(rng.choice(["F", "M"], n // 2), 2),
        }
        | findings
    )
    metadata = pd.DataFrame(
        {
            "width": rng.integers(900, 1100, n),
            "height": 1000,
            "bytes": rng.integers(90_000, 99_000, n),
            "kind": "PNG",
            "mode": "L",
            "coarseness": None,
            "maker": None,
        }
    )
    return manifest.assign(label=make_finding_labels(manifest)), metadata


def check(manifest, metadata):
    images = select_labels(manifest)
    found = check_label_metadata(manifest, metadata, images, draw_orders(images.patients, 60))
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize("seed", range(3))
def test_random_properties_pass(seed):
    found = check(*make_manifest(seed=seed))
    assert set(found) == {"files", "size", "aspect", "bytes", "view", "age", "sex", "source"}
    assert {finding.verdict for finding in found.values()} == {"PASS"}
    assert "No finding is predicted above the limit" in found["view"].message


def test_a_view_that_predicts_a_finding_is_named_with_its_auroc_and_the_other_findings():
    manifest, metadata = make_manifest()
    rng = np.random.default_rng(1)
    is_edema, is_mass = (manifest[FINDING_PREFIX + name].to_numpy(int) == 1 for name in ("Edema", "Mass"))
    probability = np.where(is_edema, 0.9, np.where(is_mass, 0.7, 0.2))
    manifest["view"] = np.where(rng.random(len(manifest)) < probability, "AP", "PA")
    found = check(manifest, metadata)["view"]
    expected = auroc(is_edema, manifest["view"] == "AP")
    assert found.verdict == "WARN" and abs(found.value - expected) < 0.01
    assert f"View predicts Edema with an AUROC of {found.value:.3f}. Chance level: 0." in found.message
    shares = [f"{100 * (manifest['view'][rows] == 'AP').mean():.1f} %" for rows in (is_edema, ~is_edema)]
    assert f"View AP: {shares[0]} of the images with Edema, {shares[1]} of those without." in found.message
    assert "for the highest of 24 comparisons" in found.message, "eight properties, three findings; Hernia is too rare"
    assert 0.5 < found.chance_level < 0.65 and found.fix


def test_a_finding_equal_to_a_property_fails_and_a_rare_one_is_a_warning():
    manifest, metadata = make_manifest()
    manifest["sex"] = np.where(manifest["finding_Mass"] == 1, "F", "M")
    found = check(manifest, metadata)["sex"]
    assert found.verdict == "FAIL" and found.value > 0.99 and "Sex predicts Mass" in found.message
    is_rare = np.arange(len(manifest)) < 12
    manifest["finding_Nodule"] = pd.array(is_rare.astype(int), "Int8")
    manifest["sex"] = np.where(is_rare, "F", "M")
    found = check(manifest, metadata)["sex"]
    assert found.verdict == "WARN" and "Sex predicts Nodule" in found.message


def test_unknown_and_uncertain_labels_are_left_out():
    manifest, metadata = make_manifest()
    expected = check(manifest, metadata)["view"].value
    hidden = manifest.sample(100, random_state=0).index
    for value in (pd.NA, -1):
        table = manifest.copy()
        table.loc[hidden, "finding_Edema"] = value
        images = select_labels(table)
        assert np.isnan(images.truth[hidden, 0]).all() and not np.isnan(images.truth[:, 1:]).any()
        table["view"] = np.where(table["finding_Edema"].fillna(0) == 1, "AP", "PA")
        table.loc[hidden, "view"] = np.where(manifest.loc[hidden, "finding_Edema"] == 1, "PA", "AP")
        found = check(table, metadata)["view"]
        assert found.value > 0.99 > expected, "the hidden labels contradict the view"


def test_permutations_keep_patients_together():
    patients = np.array(["a", "b", "a", "c", "b", "d"])
    orders = draw_orders(patients, 20)
    assert orders[0].tolist() == list(range(6)) and len(np.unique(orders, axis=0)) > 5
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    # rows in the order of patients a, a, b, b, c, d get rows of whole patients
    for order in orders[:, [0, 2, 1, 4, 3, 5]]:
        labels = patients[order].tolist()
        assert all(labels.index(name) + 1 == len(labels) - 1 - labels[::-1].index(name) for name in "ab")


def test_the_auroc_of_columns_is_that_of_scikit_learn_in_each_fold():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, (90, 5)).astype(float), (rng.random((90, 5)) < 0.4).astype(float)
    truth[:, 3], truth[::7, 1] = 0, np.nan
    found = auroc_within_folds(scores, truth == 1, truth == 0, np.zeros(90))
    for number in (0, 1, 2, 4):
        is_known = ~np.isnan(truth[:, number])
        expected = roc_auc_score(truth[is_known, number], scores[is_known, number])
        assert found[number] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[3]), "a label without positive images"
    folds = np.arange(90) % 2
    pairs = [(truth[folds == f, 0].sum() * (1 - truth[folds == f, 0]).sum()) for f in (0, 1)]
    parts = [roc_auc_score(truth[folds == f, 0], scores[folds == f, 0]) for f in (0, 1)]
    found = auroc_within_folds(scores, truth == 1, truth == 0, folds)[0]
    assert found == pytest.approx(np.average(parts, weights=pairs), abs=1e-12)
    assert standard_error_of_chance(np.array([50]), np.array([50]))[0] == pytest.approx(0.058, abs=1e-3)


def test_logistic_regressions_are_those_of_scikit_learn_on_the_known_labels():
    rng = np.random.default_rng(0)
    inputs = np.column_stack([rng.normal(size=(300, 4)), np.ones(300)])
    truth = (rng.random((300, 3)) < [0.05, 0.5, 0.3] + inputs[:, :1] / 20).astype(float)
    truth[rng.random(truth.shape) < 0.2] = np.nan
    weights = _fit_logistic(inputs, truth)
    for number in range(3):
        is_known = ~np.isnan(truth[:, number])
        model = LogisticRegression(C=0.1, tol=1e-8).fit(inputs[is_known, :-1], truth[is_known, number])
        assert weights[:, number] == pytest.approx(np.append(model.coef_[0], model.intercept_), abs=1e-4)


def test_a_permutation_is_scored_as_the_permuted_labels():
    rng = np.random.default_rng(0)
    indicators = np.eye(3)[rng.integers(0, 3, 120)]
    truth, folds = (rng.random((120, 2)) < 0.3).astype(float), np.arange(120) % 5
    truth[::9, 0] = np.nan
    orders = np.stack([np.arange(120), rng.permutation(120)])
    found = score_indicators_of_labels(indicators, truth, folds, orders)
    alone = score_indicators_of_labels(indicators, truth[orders[1]], folds, orders[:1])
    assert found.shape == (2, 2) and np.array_equal(found[1], alone[0])
    likely = indicators.copy()
    likely[:, 0] = truth[:, 1]
    assert score_indicators_of_labels(likely[:, :1], truth, folds, orders[:1])[0, 1] == 1


def make_features(manifest, metadata, tag=None):
    """Return features of noise; a bright corner marks the images with the finding `tag`."""
    n = len(manifest)
    thumbnails = np.random.default_rng(0).integers(0, 200, (n, 64, 64)).astype(np.uint8)
    if tag:
        thumbnails[(manifest[FINDING_PREFIX + tag] == 1).to_numpy(bool), :7, :7] = 255
    return ImageFeatures(thumbnails, thumbnails, np.random.default_rng(1).random((n, 32)), metadata)


def test_a_tag_in_a_corner_is_named_with_its_finding():
    manifest, metadata = make_manifest(200)
    found = check_label_shortcuts(manifest, make_features(manifest, metadata, "Mass"), Progress())
    by_check = {finding.check: finding for finding in found}
    assert (
        by_check["corners"].verdict == "FAIL" and "AUROC of Mass from this input alone" in by_check["corners"].message
    )
    assert by_check["centre"].verdict == "FAIL" and by_check["gray"].verdict == "PASS"
    assert by_check["shuffled"].verdict == "PASS"
    assert len(found) == len(by_check), "one result for each check"


def test_too_few_images_for_any_finding_are_a_warning():
    manifest, metadata = make_manifest(40, prevalence=(0.0, 0.0, 0.0, 0.1))
    (found,) = check_label_shortcuts(manifest, make_features(manifest, metadata), Progress())
    assert found.check == "probes" and "10 images with and without a finding" in found.message


def test_a_source_without_the_opposite_label_fails_with_its_findings():
    manifest, _ = make_manifest()
    manifest["path"] = manifest["patient"] = [f"{number}" for number in range(len(manifest))]
    assert check_label_sources(manifest).verdict == "PASS"
    manifest["source"] = np.where(manifest["finding_Edema"] == 1, "s", "t")
    found = check_label_sources(manifest)
    n = int((manifest["finding_Edema"] == 1).sum())
    assert found.verdict == "FAIL" and f"Edema ({n:,} of {n:,}), no Edema ({400 - n:,} of {400 - n:,})" in found.message
    assert "Mass" not in found.message
    # a source that does not label the finding leaves it unknown
    manifest.loc[manifest["source"] == "t", "finding_Edema"] = pd.NA
    assert check_label_sources(manifest).verdict == "PASS"
    assert "same source" in check_label_sources(manifest.assign(source="s")).message


def test_images_with_each_finding_are_counted_in_each_split():
    manifest, _ = make_manifest()
    n = int(((manifest["finding_Nodule"] == 1) & (manifest["split"] == "test")).sum())
    found = check_label_sizes(manifest)
    assert found.verdict == "WARN" and f"Nodule {n} in test" in found.message and "train" not in found.message
    manifest["finding_Nodule"] = manifest["finding_Hernia"] = manifest["finding_Edema"]
    assert check_label_sizes(manifest).verdict == "PASS"


def test_an_image_with_no_finding_and_a_finding_is_named_except_for_support_devices():
    manifest, _ = make_manifest(40)
    manifest = manifest.assign(finding_Edema=0, finding_Mass=0, finding_Nodule=0, finding_Hernia=0)
    manifest["finding_Support Devices"] = 1
    manifest.loc[:1, "finding_Edema"] = 1
    manifest.loc[1:2, "finding_Mass"] = 1
    stated = pd.Series(np.arange(40) != 2)
    found = check_no_finding(manifest.assign(label=make_finding_labels(manifest, stated)))
    assert found.verdict == "WARN" and "have a finding: 2 of 39 (Edema 2, Mass 1)" in found.message
    assert found.groups == ((0,), (1,)) and found.value == 2
    manifest = manifest.assign(finding_Edema=0, finding_Mass=0)
    assert check_no_finding(manifest.assign(label=make_finding_labels(manifest, stated))).verdict == "PASS"
    assert "No image is labelled" in check_no_finding(manifest.assign(label="")).message


def test_the_manifest_of_findings_has_all_fast_checks():
    manifest, _ = make_manifest()
    found = check_manifest(manifest.assign(file=manifest["path"], patient_origin="column"))
    assert {finding.check for finding in found} == {"patients", "copies", "sources", "sizes", "no_finding"}
