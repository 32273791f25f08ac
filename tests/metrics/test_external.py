"""Comparison of internal and external test metrics: difference, interval, missing classes and notices."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from synthetic_run import LABELS, build_run, make_manifest, make_probability

from fastcxr.cli.tables import show_headline
from fastcxr.metrics.analytic_intervals import wilson
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.external import MACRO_AUROC, compute_drop, difference_interval
from fastcxr.metrics.predictions import make_predictions, read_predictions, write_predictions
from fastcxr.report.notices import make_notices
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("without_figures")


def build_evaluation(folder, classes=None, strength=0.3, n=400):
    """Write the run folder of an external test; `strength` sets the external performance."""
    internal = make_manifest(n=n, seed=1).assign(split="internal_test", source="home", split_origin="given")
    external = make_manifest(n=n, seed=2).assign(split="test", source="clinic", split_origin="given")
    external = external if classes is None else external[external["label"].isin(classes)].reset_index(drop=True)
    build_run(folder, manifest=external)
    rows = [make_probability(external, seed=3, strength=strength), make_probability(internal, seed=4)]
    both = pd.concat([external, internal], ignore_index=True)
    write_predictions(make_predictions(both, np.concatenate(rows), LABELS), folder / "predictions.csv")
    return folder


def test_the_difference_of_two_proportions_equals_newcombes_published_example():
    one, other = ([hits / n, *wilson(hits, n)] for hits, n in ((56, 70), (48, 80)))
    assert difference_interval(one, other) == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_the_interval_of_a_difference_has_95_percent_coverage():
    draw, n_inside = np.random.default_rng(0), 0
    for _ in range(1000):
        sides = [[h / n, *wilson(h, n)] for h, n in ((draw.binomial(90, 0.9), 90), (draw.binomial(60, 0.75), 60))]
        _, low, high = difference_interval(*sides)
        n_inside += low <= 0.15 <= high
    assert 0.93 <= n_inside / 1000 <= 0.98


def test_the_difference_has_no_interval_if_one_estimate_has_none():
    assert difference_interval([0.9, None, None], [0.5, 0.4, 0.6]) == [pytest.approx(0.4), None, None]


@pytest.fixture(scope="module")
def external(tmp_path_factory):
    folder = build_evaluation(tmp_path_factory.mktemp("external") / "run")
    write_run_report(folder)
    return folder


def test_the_report_of_an_external_test_has_both_metrics_and_their_difference(external):
    metrics = json.loads((external / "metrics.json").read_text())
    parts = evaluate_predictions(read_predictions(external / "predictions.csv"))
    row = metrics["external_drop"]["clinic"]["figures"][MACRO_AUROC]
    assert (
        row["internal"][0] == parts["internal_test"]["auroc"]["macro"]
        and row["external"][0] == metrics["test"]["auroc"]["macro"]
    )
    value, low, high = row["drop"]
    assert value == pytest.approx(row["internal"][0] - row["external"][0])
    assert low < value < high
    below = math.hypot(row["internal"][0] - row["internal"][1], row["external"][2] - row["external"][0])
    assert value - low == pytest.approx(below)
    page = (external / "report.html").read_text()
    assert "Internal and external test" in page and f"{value:+.3f}" in page
    assert "internal test set" in page


def test_a_drop_of_more_than_a_tenth_of_auroc_is_a_warning(external):
    found = next(
        n
        for n in make_notices(read_run_record(external), json.loads((external / "metrics.json").read_text()))
        if "generalize" in n.title
    )
    assert (found.level, found.title) == ("warning", "The metrics do not generalize to clinic")
    assert "lower by 0." in found.text and "95 % confidence interval" in found.text


def test_without_a_drop_a_note_states_the_drop_that_cannot_be_excluded(tmp_path):
    write_run_report(build_evaluation(tmp_path / "run", strength=2.2))
    record, metrics = read_run_record(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = next(n for n in make_notices(record, metrics) if n.title == "Tested on external data")
    assert found.level == "note" and "cannot be excluded" in found.text
    assert not [n for n in make_notices(record, metrics) if "External validity: unknown" in n.title]


def test_a_class_missing_in_one_test_set_is_named_and_its_metrics_are_not_compared(tmp_path):
    write_run_report(build_evaluation(tmp_path / "run", classes=["No_findings"], strength=-4))
    drop = json.loads((tmp_path / "run" / "metrics.json").read_text())["external_drop"]["clinic"]
    assert drop["only"] == {"internal": ["Covid-19", "Pneumonia"]}
    assert list(drop["figures"]) == ["per_class.No_findings.sensitivity"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The external test set has no image of Covid-19 or Pneumonia." in page
    assert "of No_findings were predicted as" in page


def test_verify_recomputes_the_drop(external, tmp_path):
    path = external / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    metrics["external_drop"]["clinic"]["figures"][MACRO_AUROC]["drop"][0] = 0.01
    path.write_text(json.dumps(metrics))
    problems = [fault.problem for fault in verify(external)[0]]
    path.write_text(before)
    assert any(text.startswith(f"external_drop.clinic.figures.{MACRO_AUROC}.drop[0] is 0.01") for text in problems)


def test_a_model_without_an_external_test_has_no_drop(tmp_path):
    parts = evaluate_predictions(read_predictions(build_run(tmp_path / "run") / "predictions.csv"))
    write_run_report(tmp_path / "run")
    assert "external_drop" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert compute_drop(parts["test"], parts["test"])["figures"][MACRO_AUROC]["drop"][0] == 0


def test_a_failed_check_of_the_training_data_is_a_warning_in_an_external_test(external):
    record, metrics = read_run_record(external), json.loads((external / "metrics.json").read_text())
    assert not [n for n in make_notices(record, metrics) if "failed a check" in n.title]
    record.run["tested"] = {"run": "home", "failed": ["No other class has the sources of Covid-19."]}
    (found,) = [n for n in make_notices(record, metrics) if "failed a check" in n.title]
    assert found.level == "warning" and "good metrics do not exclude it" in found.text


def test_an_implausibly_high_auroc_is_critical_without_an_external_test(tmp_path):
    build_run(tmp_path / "run")
    manifest = make_manifest().query("split == 'test'").reset_index(drop=True)
    probability = make_probability(manifest, strength=9)
    write_predictions(make_predictions(manifest, probability, LABELS), tmp_path / "run" / "predictions.csv")
    write_run_report(tmp_path / "run")
    record, metrics = read_run_record(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    (found,) = [n for n in make_notices(record, metrics) if n.title.startswith("Implausibly high AUROC")]
    assert (
        found.level == "critical" and "All images have the same source" in found.text and "fastcxr audit" in found.text
    )
    assert 'class="headline doubted"' in (tmp_path / "run" / "report.html").read_text()
    with_external_test = metrics | {"external_drop": {"clinic": compute_drop(metrics["test"], metrics["test"])}}
    assert not [n for n in make_notices(record, with_external_test) if "Implausibly" in n.title]
    usual = metrics | {"test": metrics["test"] | {"auroc": metrics["test"]["auroc"] | {"macro": 0.97}}}
    assert not [n for n in make_notices(record, usual) if "Implausibly" in n.title]


def test_each_external_source_has_a_separate_warning(tmp_path):
    figures = {MACRO_AUROC: {"internal": [0.95, 0.9, 0.97], "external": [0.7, 0.6, 0.8], "drop": [0.25, 0.14, 0.35]}}
    small = {MACRO_AUROC: {"internal": [0.95, 0.9, 0.97], "external": [0.9, 0.85, 0.93], "drop": [0.05, 0.01, 0.1]}}
    drops = {name: {"classes": [], "only": {}, "figures": of} for name, of in (("clinic", figures), ("ward", small))}
    build_run(tmp_path / "run")
    record = read_run_record(tmp_path / "run")
    metrics = evaluate_predictions(record.predictions) | {"external_drop": drops}
    found = {n.title: n for n in make_notices(record, metrics)}
    assert "on clinic" in found["The metrics do not generalize to clinic"].text
    assert found["Lower performance on external data"].level == "warning"
    assert "on ward" in found["Lower performance on external data"].text


@pytest.mark.parametrize(
    ("strength", "prefix"),
    [(0.3, "warning: The metrics do not generalize to clinic. "), (2.2, "Tested on external data. ")],
)
def test_the_terminal_shows_the_drop_in_the_words_of_the_report(tmp_path, strength, prefix):
    console = Console(file=io.StringIO(), width=80)
    write_run_report(build_evaluation(tmp_path / "run", strength=strength))
    record, metrics = read_run_record(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    (drop,) = [notice for notice in make_notices(record, metrics) if "on clinic" in notice.text]
    show_headline(console, tmp_path / "run")
    assert f"\n{prefix}{drop.text}\n" in console.file.getvalue()
    assert "Macro AUROC is" in drop.text and "95 % confidence interval" in drop.text
