"""What a gate found unlike the training images is counted with an interval, and said on the page and on the card."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from synthetic_run import build_run, make_manifest, make_probability

from fastcxr.metrics.analytic_intervals import wilson
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import Predictions, make_predictions, mark_ood, read_predictions, write_predictions
from fastcxr.metrics.thresholds import apply_thresholds, compute_ood_rate, find_ood_rows
from fastcxr.report.run_page import write_run_report

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")

LABELS = ("Covid-19", "No_findings", "Pneumonia")


@pytest.fixture
def predictions():
    manifest = make_manifest(n=60).assign(patient=[f"p{i}" for i in range(60)])
    return make_predictions(manifest, make_probability(manifest), LABELS, ["" if i else "bad" for i in range(60)])


def ood_score(count, strange):
    return np.where(np.isin(np.arange(count), strange), 1.5, 0.5)


def test_no_class_stands_where_a_picture_is_strange_and_the_rest_is_as_before(predictions):
    left = mark_ood(predictions, ood_score(60, [4, 7])).table
    assert left.loc[[4, 7], "predicted"].tolist() == ["", ""]
    assert left.loc[[4, 7], "in_distribution"].tolist() == ["no", "no"]
    same = left.index.difference([4, 7])
    assert left.loc[same, "predicted"].tolist() == predictions.table.loc[same, "predicted"].tolist()
    assert left.loc[0, "in_distribution"] == "", "unreadable: nobody looked at it"


def test_an_ood_score_that_is_no_number_is_out_of_distribution(predictions):
    assert mark_ood(predictions, np.full(60, np.nan)).table["in_distribution"][1:].eq("no").all()


def test_both_columns_come_back_from_the_file(predictions):
    left = mark_ood(predictions, ood_score(60, [4]))
    file = StringIO()
    write_predictions(left, file)
    back = pd.read_csv(StringIO(file.getvalue()), dtype=str, keep_default_na=False)
    assert back["in_distribution"].tolist() == left.table["in_distribution"].tolist()
    assert back["ood_score"][:3].tolist() == ["", "0.5", "0.5"]


def test_a_column_of_the_cohort_by_one_of_these_names_is_kept_under_another(predictions):
    manifest = make_manifest(n=5).assign(in_distribution="theirs", ood_score="theirs")
    left = mark_ood(make_predictions(manifest, make_probability(manifest), LABELS), np.zeros(5)).table
    assert left["in_distribution"].eq("yes").all()
    assert left["manifest_in_distribution"].eq("theirs").all() and left["manifest_ood_score"].eq("theirs").all()


def test_the_share_is_of_readable_pictures_and_has_wilsons_interval(predictions):
    found = compute_ood_rate(mark_ood(predictions, ood_score(60, [0, 4, 7])))
    assert (found["n_images"], found["n_ood"]) == (59, 2)
    np.testing.assert_allclose(found["proportion"], [2 / 59, *wilson(2, 59)])


def test_the_unit_of_the_interval_is_the_patient(predictions):
    strange = mark_ood(predictions, ood_score(60, range(10)))
    of_two = Predictions(strange.table.assign(patient=[f"p{i // 10}" for i in range(60)]), LABELS)
    apart, together = (np.ptp(compute_ood_rate(each)["proportion"][1:]) for each in (strange, of_two))
    assert together > 1.5 * apart


def test_the_other_figures_are_of_all_pictures(predictions):
    before, after = evaluate_predictions(predictions), evaluate_predictions(mark_ood(predictions, ood_score(60, [4])))
    for split, part in after.items():
        assert part.pop("ood")["n_images"] > 0
        assert part == before[split]


def test_without_a_gate_nothing_is_strange_and_nothing_is_measured(predictions):
    assert not find_ood_rows(predictions).any()
    assert compute_ood_rate(predictions) == {}
    assert (apply_thresholds(predictions, {}).table["uncertain"] == "no").all()


def with_gate(folder, strange):
    path = folder / "predictions.csv"
    predictions = read_predictions(path)
    rows = np.flatnonzero(predictions.table["split"] == "test")[:strange]
    write_predictions(mark_ood(predictions, ood_score(len(predictions.table), rows)), path)
    write_run_report(folder)
    return (folder / "report.html").read_text(), (folder / "MODEL_CARD.md").read_text()


def test_page_and_card_name_the_false_alarms(tmp_path):
    texts = with_gate(build_run(tmp_path, thumbnails=False), 3)
    part = json.loads((tmp_path / "metrics.json").read_text())["test"]["ood"]
    for text in texts:
        assert "False alarms of the OOD detector" in text
        assert f"3 of {part['n_images']} images ({100 * 3 / part['n_images']:.1f} %, 95 % interval" in text


@pytest.mark.parametrize(("strange", "level"), [(2, "note"), (80, "warning")])
def test_on_data_from_elsewhere_they_are_no_false_alarms_and_many_are_a_warning(tmp_path, strange, level):
    folder = build_run(tmp_path, thumbnails=False)
    manifest = pd.read_csv(folder / "manifest.csv")
    manifest[manifest["split"] == "test"].to_csv(folder / "manifest.csv", index=False)
    page, card = with_gate(folder, strange)
    assert "False alarms" not in page + card
    assert f'<li class="{level}"><b>Not like the training images.</b>' in page


def test_page_and_card_of_a_model_without_a_gate_say_so(tmp_path):
    write_run_report(build_run(tmp_path, thumbnails=False))
    for name in ("report.html", "MODEL_CARD.md"):
        assert "No OOD detector" in (tmp_path / name).read_text()
