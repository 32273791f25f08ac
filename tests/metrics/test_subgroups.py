"""Subgroups are found by column name; their metrics equal scikit-learn and are omitted for small groups."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score
from synthetic_run import LABELS, build_run, make_manifest, make_probability

from fastcxr.data.demographics import parse_age
from fastcxr.metrics.predictions import make_predictions, write_predictions
from fastcxr.metrics.subgroups import UNSTATED, assign_groups, compute_subgroup_metrics
from fastcxr.report.run_page import write_run_report

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture(scope="module")
def manifest():
    table = make_manifest(n=900)
    draw = np.random.default_rng(5)
    sex = pd.Series(draw.choice(["M", "F", "male", ""], len(table), p=[0.4, 0.4, 0.1, 0.1]))
    age = pd.Series(draw.integers(1, 90, len(table)).astype(str))
    few = table.groupby("patient").ngroup() % 40 == 0
    return table.assign(
        Patient_Gender=sex, **{"Patient Age": age}, ViewPosition=np.where(few, "AP", "PA"), split="test"
    )


@pytest.fixture(scope="module")
def predictions(manifest):
    return make_predictions(manifest, make_probability(manifest), LABELS)


def test_columns_are_found_by_their_usual_names(predictions):
    assert list(compute_subgroup_metrics(predictions)) == ["sex", "age", "view"]


def test_metrics_of_a_group_equal_those_of_scikit_learn(predictions):
    row = compute_subgroup_metrics(predictions)["sex"]["male"]
    rows = predictions.table[predictions.table["Patient_Gender"].isin(["M", "male"])]
    probability = rows[[f"prob_{label}" for label in LABELS]]
    assert row["n_images"] == len(rows)
    assert row["auroc"][0] == pytest.approx(roc_auc_score(rows["label"], probability, multi_class="ovr", labels=LABELS))
    recalls = recall_score(rows["label"], rows["predicted"], average=None, labels=LABELS)
    assert [row["sensitivity"][label][0] for label in LABELS] == pytest.approx(list(recalls))
    low, high = row["sensitivity"][LABELS[0]][1:]
    assert low < recalls[0] < high


def test_blank_cells_are_the_last_group(predictions):
    assert list(compute_subgroup_metrics(predictions)["sex"]) == ["female", "male", UNSTATED]


def test_ages_are_grouped_into_bands(predictions):
    assert list(compute_subgroup_metrics(predictions)["age"]) == ["0-17", "18-39", "40-64", "65 and over"]
    cells = pd.DataFrame({"age": ["17", "18", "39.9", "40", "64", "65", "017Y", "011M", "x", "058Y", "400"]})
    bands = ["0-17", "18-39", "18-39", "40-64", "40-64", "65 and over", "0-17", "0-17", UNSTATED, "40-64", UNSTATED]
    assert list(assign_groups(cells, "age")) == bands
    assert parse_age("006M") == 0.5


def test_a_group_with_few_patients_has_only_counts_and_the_report_states_it(predictions, tmp_path):
    groups = compute_subgroup_metrics(predictions)["view"]
    assert groups["AP"]["n_patients"] < 20 and set(groups["AP"]) == {"n_images", "n_patients"}
    build_run(tmp_path / "run")
    write_predictions(predictions, tmp_path / "run" / "predictions.csv")
    write_run_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "fewer than 20 patients: not measured" in page
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["subgroups"]["view"]["AP"] == groups["AP"]


def test_a_column_that_is_constant_or_blank_is_omitted(manifest):
    plain = manifest.drop(columns=["Patient Age", "Patient_Gender", "ViewPosition"]).assign(sex="", view="PA")
    assert compute_subgroup_metrics(make_predictions(plain, make_probability(plain), LABELS)) == {}


def test_several_sources_are_groups(manifest):
    two = manifest.assign(source=np.where(np.arange(len(manifest)) % 2, "clinic", "ward"))
    assert list(compute_subgroup_metrics(make_predictions(two, make_probability(two), LABELS))["source"]) == [
        "clinic",
        "ward",
    ]
