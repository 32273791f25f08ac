"""Tests for notices and for the description of the training in reports of findings."""

import pandas as pd
import pytest
from finding_run import build_finding_run, make_finding_manifest

from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.external import compute_drop
from fastcxr.metrics.predictions import Predictions, write_predictions
from fastcxr.report.data_notices import MAX_LISTED, _list_smallest
from fastcxr.report.finding_rows import make_finding_subgroup_rows
from fastcxr.report.headline import describe_averaged_findings
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import SaliencyMaps, read_run_record
from fastcxr.report.tables import make_saliency_cards
from fastcxr.report.training_summary import describe_training, resolve_recipe

FINDINGS = ("Edema", "Mass")

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    manifest = make_finding_manifest(FINDINGS, 300)
    return build_finding_run(tmp_path_factory.mktemp("notices") / "run", FINDINGS, manifest, thumbnails=False)


@pytest.fixture
def record(run_folder):
    return read_run_record(run_folder)


def find_notices(folder, change=None):
    """Return the notices by title, after a change of the table of the predictions."""
    record = read_run_record(folder)
    if change is not None:
        write_predictions(Predictions(change(record.predictions.table), FINDINGS), folder / "predictions.csv")
        record = read_run_record(folder)
    return {notice.title: notice for notice in make_notices(record, evaluate_predictions(record.predictions))}


def test_a_finding_that_no_image_reaches_is_a_warning(tmp_path, record):
    folder = build_finding_run(tmp_path, FINDINGS, record.manifest, thumbnails=False)
    found = find_notices(folder, lambda table: table.assign(prob_Edema=0.5 * table["prob_Edema"]))
    notice = found["No image is predicted as Edema"]
    assert notice.level == "warning"
    assert "None reaches the threshold" in notice.text


def test_a_finding_without_validation_images_is_named(tmp_path, record):
    manifest = record.manifest[record.manifest["split"] != "test"].reset_index(drop=True)
    folder = build_finding_run(tmp_path, FINDINGS, manifest, thumbnails=False)
    found = find_notices(folder, lambda table: table.assign(truth_Mass=0))
    assert "No validation image of Mass" in found


def test_only_findings_with_an_auroc_are_referred_to_it(tmp_path, record):
    folder = build_finding_run(tmp_path, FINDINGS, record.manifest, thumbnails=False)
    hint = "shows whether the probabilities separate the images"
    low = dict.fromkeys(["prob_Edema", "prob_Mass"], 0.1)
    found = find_notices(folder, lambda table: table.assign(**low))
    assert f"AUROC {hint}" in found["No image is predicted as Edema or Mass"].text
    found = find_notices(
        folder, lambda table: table.assign(truth_Mass=table["truth_Mass"].mask(table["truth_Mass"] == 0))
    )
    assert f"AUROC of Edema {hint}" in found["No image is predicted as Edema or Mass"].text
    found = find_notices(folder, lambda table: table.assign(truth_Edema=1))
    assert hint not in found["No image is predicted as Edema or Mass"].text


def test_the_terminal_states_which_findings_the_macro_means_cover(record):
    metrics = evaluate_predictions(record.predictions)
    assert describe_averaged_findings(metrics) == "", "all findings"
    table = record.predictions.table
    changed = Predictions(table.assign(truth_Mass=table["truth_Mass"].mask(table["truth_Mass"] == 0)), FINDINGS)
    text = describe_averaged_findings(evaluate_predictions(changed))
    assert text == "AUROC, macro: mean over 1 of 2 findings: Edema"


def test_a_finding_that_all_images_reach_is_a_warning(tmp_path, record):
    folder = build_finding_run(tmp_path, FINDINGS, record.manifest, thumbnails=False)
    found = find_notices(folder, lambda table: table.assign(prob_Mass=0.6 + 0.3 * table["prob_Mass"]))
    assert found["All images are predicted as Mass"].level == "warning"


def test_notices_of_classes_are_left_out_or_name_findings(run_folder):
    found = find_notices(run_folder)
    assert not [title for title in found if "class" in title]
    assert "Any image gets a decision" in found["No out-of-distribution (OOD) detector"].text
    assert "If each finding came from" in found["External validity: unknown"].text


def test_of_many_small_findings_the_smallest_ones_are_named():
    text = _list_smallest({f"F{n}": n for n in range(20, 0, -1)})
    assert text.startswith("F1 1, F2 2")
    assert text.endswith(f"and {20 - MAX_LISTED + 1} others")


def test_an_external_test_with_other_findings_compares_the_auroc_that_drops_most(record):
    metrics = evaluate_predictions(record.predictions)
    internal, external = metrics["valid"], dict(metrics["test"])
    external["auroc"] = external["auroc"] | {"averaged": ["Edema"]}
    drops = {"other": compute_drop(internal, external)}
    titles = {n.text for n in make_notices(record, metrics | {"external_drop": drops}) if "AUROC of" in n.text}
    assert len(titles) == 1


def test_the_recipe_is_resolved_for_findings_and_unknown_labels_are_counted(record):
    assert resolve_recipe(record)["loss"] == "binary_cross_entropy"
    assert resolve_recipe(record)["monitor"] == "auroc"
    text = " ".join(describe_training(record))
    assert "loss binary cross entropy" in text
    assert "are unknown or ignored; they have no gradient." in text


def test_a_given_loss_is_kept_and_a_probe_is_independent_logistic_regressions(tmp_path, record):
    choices = {"probe": {"l2": {"Edema": 0.1, "Mass": 1.0}, "l2_tried": [0.1, 1.0], "views": 1}, "best_epoch": 1}
    folder = build_finding_run(tmp_path, FINDINGS, record.manifest, model={"choices": choices}, thumbnails=False)
    text = " ".join(describe_training(read_run_record(folder)))
    assert "independent logistic regressions, one per finding" in text
    assert "ridge (L2) penalty 0.1 to 1 by finding" in text
    record.recipe["loss"] = "focal"
    assert resolve_recipe(record)["loss"] == "focal"


def test_subgroups_have_macro_auroc_and_findings_with_enough_positive_images():
    group = {"n_images": 90, "n_patients": 60, "auroc": [0.8, 0.7, 0.9], "averaged": ["Edema"]}
    female = group | {"support": {"Edema": 30, "Mass": 0}, "auroc_per_class": {"Edema": [0.8, 0.7, 0.9], "Mass": None}}
    male = female | {"support": {"Edema": 3, "Mass": 0}}
    small = {"n_images": 9, "n_patients": 9}
    [table] = make_finding_subgroup_rows({"sex": {"female": female, "male": male, "not stated": small}}, FINDINGS)
    assert table["rows"][0]["cells"] == [("0.800", "0.700–0.900", "1 of 2 findings")]
    assert table["rows"][2]["why"] == "fewer than 20 patients: not measured"
    assert table["findings"] == [{"name": "Edema", "cells": [("0.800", "0.700–0.900"), ("–", "3 positive")]}]
    assert table["unmeasured"] == ""


def test_an_attribute_without_a_measured_subgroup_is_one_sentence():
    groups = {name: {"n_images": n, "n_patients": n} for name, n in {"female": 9, "male": 12}.items()}
    [table] = make_finding_subgroup_rows({"sex": groups}, FINDINGS)
    expected = "Sex: not measured, fewer than 20 patients in each group (female: 9, male: 12)."
    assert table["unmeasured"] == expected


@pytest.mark.parametrize(
    ("predicted", "other"), [("Edema|Mass", ""), ("Mass", "predicted Mass"), ("", "predicted none")]
)
def test_a_saliency_map_of_a_finding_that_is_not_predicted_states_the_prediction(record, predicted, other):
    row = dict.fromkeys(record.saliency_maps.table.columns, "") | {"class": "Edema", "predicted": predicted}
    table = pd.DataFrame([row | {"role": "typical", "probability": "0.4", "border_share": "0.2"}])
    assert make_saliency_cards(SaliencyMaps(table=table, metadata={}), "typical")[0]["other"] == other
