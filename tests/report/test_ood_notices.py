"""Tests for the OOD rate: its interval, the columns of predictions.csv, and the notices in report and model card."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from synthetic_run import build_run, make_manifest, make_probability

from fastcxr.metrics.analytic_intervals import wilson
from fastcxr.metrics.decisions import apply_thresholds, find_ood_rows
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import Predictions, make_predictions, mark_ood, read_predictions, write_predictions
from fastcxr.metrics.thresholds import compute_ood_rate
from fastcxr.report.run_page import write_run_report

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")

LABELS = ("Covid-19", "No_findings", "Pneumonia")


@pytest.fixture
def predictions():
    manifest = make_manifest(n=60).assign(patient=[f"p{i}" for i in range(60)])
    return make_predictions(manifest, make_probability(manifest), LABELS, ["" if i else "bad" for i in range(60)])


def make_ood_scores(n, ood_rows):
    return np.where(np.isin(np.arange(n), ood_rows), 1.5, 0.5)


def test_only_ood_images_lose_their_predicted_class(predictions):
    marked = mark_ood(predictions, make_ood_scores(60, [4, 7])).table
    assert marked.loc[[4, 7], "predicted"].tolist() == ["", ""]
    assert marked.loc[[4, 7], "in_distribution"].tolist() == ["no", "no"]
    same = marked.index.difference([4, 7])
    assert marked.loc[same, "predicted"].tolist() == predictions.table.loc[same, "predicted"].tolist()
    assert marked.loc[0, "in_distribution"] == "", "unreadable images have no OOD score"


def test_a_nan_ood_score_means_out_of_distribution(predictions):
    assert mark_ood(predictions, np.full(60, np.nan)).table["in_distribution"][1:].eq("no").all()


def test_the_ood_columns_are_written_to_predictions_csv(predictions):
    marked = mark_ood(predictions, make_ood_scores(60, [4]))
    file = StringIO()
    write_predictions(marked, file)
    back = pd.read_csv(StringIO(file.getvalue()), dtype=str, keep_default_na=False)
    assert back["in_distribution"].tolist() == marked.table["in_distribution"].tolist()
    assert back["ood_score"][:3].tolist() == ["", "0.5", "0.5"]


def test_a_manifest_column_with_the_name_of_an_ood_column_is_renamed(predictions):
    manifest = make_manifest(n=5).assign(in_distribution="original", ood_score="original")
    marked = mark_ood(make_predictions(manifest, make_probability(manifest), LABELS), np.zeros(5)).table
    assert marked["in_distribution"].eq("yes").all()
    assert marked["manifest_in_distribution"].eq("original").all() and marked["manifest_ood_score"].eq("original").all()


def test_the_ood_rate_excludes_unreadable_images_and_has_a_wilson_interval(predictions):
    found = compute_ood_rate(mark_ood(predictions, make_ood_scores(60, [0, 4, 7])))
    assert (found["n_images"], found["n_ood"]) == (59, 2)
    np.testing.assert_allclose(found["proportion"], [2 / 59, *wilson(2, 59)])


def test_the_interval_of_the_ood_rate_is_clustered_by_patient(predictions):
    marked = mark_ood(predictions, make_ood_scores(60, range(10)))
    clustered = Predictions(marked.table.assign(patient=[f"p{i // 10}" for i in range(60)]), LABELS)
    independent_width, clustered_width = (
        np.ptp(compute_ood_rate(each)["proportion"][1:]) for each in (marked, clustered)
    )
    assert clustered_width > 1.5 * independent_width


def test_all_other_metrics_include_ood_images(predictions):
    before, after = (
        evaluate_predictions(predictions),
        evaluate_predictions(mark_ood(predictions, make_ood_scores(60, [4]))),
    )
    for split, part in after.items():
        assert part.pop("ood")["n_images"] > 0
        assert part == before[split]


def test_without_ood_detector_there_is_no_ood_rate(predictions):
    assert not find_ood_rows(predictions).any()
    assert compute_ood_rate(predictions) == {}
    uncertain = apply_thresholds(predictions, {}).table["uncertain"]
    assert uncertain[0] == "" and (uncertain[1:] == "no").all(), "the first file is unreadable"


def write_ood_report(folder, n_ood):
    path = folder / "predictions.csv"
    predictions = read_predictions(path)
    rows = np.flatnonzero(predictions.table["split"] == "test")[:n_ood]
    write_predictions(mark_ood(predictions, make_ood_scores(len(predictions.table), rows)), path)
    write_run_report(folder)
    return (folder / "report.html").read_text(), (folder / "MODEL_CARD.md").read_text()


def test_report_and_card_state_the_false_alarms(tmp_path):
    texts = write_ood_report(build_run(tmp_path, thumbnails=False), 3)
    part = json.loads((tmp_path / "metrics.json").read_text())["test"]["ood"]
    for text in texts:
        assert "so this is the false positive rate of the OOD detector." in text
        assert "False positives of the out-of-distribution (OOD) detector" in text
        assert f"3 of {part['n_images']} images ({100 * 3 / part['n_images']:.1f} %, 95 % confidence interval" in text


@pytest.mark.parametrize(("n_ood", "level"), [(2, "note"), (80, "warning")])
def test_external_ood_images_are_not_false_alarms_and_many_are_a_warning(tmp_path, n_ood, level):
    folder = build_run(tmp_path, thumbnails=False)
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest[manifest["split"] == "test"].to_csv(folder / "manifest.csv", index=False)
    page, card = write_ood_report(folder, n_ood)
    assert "False positives" not in page + card
    assert "indicates a distribution shift." in page
    assert f'<li class="{level}"><b>Out-of-distribution images.</b>' in page


def test_report_and_card_state_a_missing_ood_detector(tmp_path):
    write_run_report(build_run(tmp_path, thumbnails=False))
    for name in ("report.html", "MODEL_CARD.md"):
        assert "No out-of-distribution (OOD) detector" in (tmp_path / name).read_text()
