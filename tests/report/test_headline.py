"""Tests for formatting.py and headline.py."""

import pytest
from synthetic_run import LABELS, make_manifest, make_probability

from fastcxr.io.formatting import (
    format_duration,
    format_interval,
    format_learning_rate,
    format_percent,
    format_score,
    join_names,
    pluralize,
)
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import make_predictions
from fastcxr.report.headline import describe_intervals, make_headline_table, make_terminal_table

pytestmark = pytest.mark.usefixtures("without_figures")


def evaluate(labels=LABELS, splits=("valid", "test")):
    manifest = make_manifest(labels, 300)
    manifest = manifest[manifest["split"].isin(splits)].reset_index(drop=True)
    return evaluate_predictions(make_predictions(manifest, make_probability(manifest, labels), labels))


def test_the_headline_has_test_and_valid_metrics_and_their_counts():
    metrics = evaluate()
    rows = {name: (test, valid) for name, test, _, valid in make_headline_table(metrics)}
    assert list(rows) == ["Accuracy", "Balanced accuracy", "AUROC, macro", "Top-2 accuracy", "Images", "Patients"]
    assert rows["Accuracy"] == (
        format_percent(metrics["test"]["accuracy"]),
        format_percent(metrics["valid"]["accuracy"]),
    )
    assert rows["AUROC, macro"][0] == f"{metrics['test']['auroc']['macro']:.3f}"
    assert rows["Images"] == (str(metrics["test"]["n_images"]), str(metrics["valid"]["n_images"]))


def test_two_classes_have_no_top2_accuracy_and_a_missing_split_shows_dashes():
    rows = make_headline_table(evaluate(("no", "yes"), ("valid",)))
    assert "Top-2 accuracy" not in [row[0] for row in rows]
    assert {row[1] for row in rows} == {"–"} and "–" not in {row[3] for row in rows}
    assert make_headline_table({})[0] == ("Accuracy", "–", "", "–")


@pytest.mark.parametrize(
    ("value", "percent", "score"),
    [(0.89341, "89.3 %", "0.893"), (1.0, "100.0 %", "1.000"), (0.99996, ">99.9 %", ">0.999"), (None, "–", "–")],
)
def test_a_value_below_1_is_not_rounded_to_1(value, percent, score):
    assert (format_percent(value), format_score(value)) == (percent, score)


def test_an_interval_has_the_format_of_its_metric():
    part = evaluate()["test"]
    low, high = part["intervals"]["of"]["auroc.macro"]
    assert format_interval(part, "auroc.macro", format_score) == f"{low:.3f}–{high:.3f}"
    low, high = part["intervals"]["of"]["accuracy"]
    assert format_interval(part, "accuracy", format_percent) == f"{100 * low:.1f}–{100 * high:.1f} %"
    assert make_headline_table({"test": part})[0][2] == format_interval(part, "accuracy", format_percent)
    part = {"intervals": {"of": {"x": [0.9, 0.99997], "y": [0.9, 1.0]}}}
    assert (format_interval(part, "x", format_score), format_interval(part, "x", format_percent)) == (
        "0.900–0.999",
        "90.0–99.9 %",
    )
    assert format_interval(part, "y", format_score) == "0.900–1.000"
    assert (format_interval(part, "nothing", format_percent), format_interval(None, "accuracy", format_percent)) == (
        "",
        "",
    )


@pytest.mark.parametrize(
    ("unit", "words"), [("patient", "clustered by patient"), ("image", "each patient has one image")]
)
def test_the_unit_of_the_intervals_is_stated(unit, words):
    assert words in describe_intervals({"intervals": {"unit": unit, "of": {"accuracy": [0.1, 0.2]}}})
    assert describe_intervals({"intervals": {"unit": unit, "of": {}}}) == ""


def test_counts_lists_durations_and_rates_are_formatted():
    assert (pluralize(1, "image"), pluralize(1234, "image"), pluralize(2, "class", "classes")) == (
        "1 image",
        "1,234 images",
        "2 classes",
    )
    assert (join_names([]), join_names(["a"]), join_names(["a", "b", "c"])) == ("", "a", "a, b and c")
    assert (format_duration(8.2), format_duration(8.46), format_duration(0.123)) == ("8.2 s", "8.5 s", "0.12 s")
    assert (format_duration(0.96), format_duration(59.94), format_duration(59.96)) == ("1 s", "59.9 s", "1 min 0 s")
    assert (format_duration(4.2), format_duration(95), format_duration(3725)) == ("4.2 s", "1 min 35 s", "1 h 2 min")
    assert (format_learning_rate(0.0021), format_learning_rate(3.1e-6)) == ("0.0021", "3.1e-06")
    assert replace_unprintable("a\x00\u202eb\udc80 中文") == "a\ufffd\ufffdb\ufffd 中文"


def test_pooled_folds_are_shown_with_mean_and_standard_deviation():
    part = evaluate(("a", "b", "c"), ("test",))["test"]
    folds = {"count": 5, "accuracy": {"mean": 0.9, "sd": 0.01, "values": []}, "auroc": {"mean": 0.95, "sd": None}}
    headings, rows = make_terminal_table({"oof": part, "folds": folds})
    assert headings == ("", "out of fold", "95 % CI", "mean ± SD of 5 folds")
    statistics = {row[0]: row[3] for row in rows}
    assert statistics["Accuracy"] == "0.900 ± 0.010"
    assert statistics["AUROC, macro"] == "0.950"
    assert statistics["Top-2 accuracy"] == "–"
    assert {row[0] for row in rows} >= {"Images", "Patients"}


def test_without_folds_the_terminal_table_is_the_headline_table():
    metrics = evaluate(("no", "yes"), ("valid",))
    assert make_terminal_table(metrics) == (("", "test", "95 % CI", "valid"), make_headline_table(metrics))
