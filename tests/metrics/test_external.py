"""What a model loses elsewhere: the difference, its interval, the classes that cannot be compared, the sentence."""

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


def build_evaluation(folder, external=None, strength=0.3, n=400):
    """A run folder of a model that was tested elsewhere, where it does as well as `strength` says."""
    home = make_manifest(n=n, seed=1).assign(split="internal_test", source="home", split_origin="given")
    away = make_manifest(n=n, seed=2).assign(split="test", source="clinic", split_origin="given")
    away = away if external is None else away[away["label"].isin(external)].reset_index(drop=True)
    build_run(folder, manifest=away)
    rows = [make_probability(away, seed=3, strength=strength), make_probability(home, seed=4)]
    both = pd.concat([away, home], ignore_index=True)
    write_predictions(make_predictions(both, np.concatenate(rows), LABELS), folder / "predictions.csv")
    return folder


def test_the_difference_of_two_proportions_is_newcombes_published_example():
    one, other = ([hits / n, *wilson(hits, n)] for hits, n in ((56, 70), (48, 80)))
    assert difference_interval(one, other) == pytest.approx([0.2, 0.0524, 0.3339], abs=5e-5)


def test_the_interval_of_a_difference_covers_what_it_says():
    draw, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        sides = [[h / n, *wilson(h, n)] for h, n in ((draw.binomial(90, 0.9), 90), (draw.binomial(60, 0.75), 60))]
        _, low, high = difference_interval(*sides)
        inside += low <= 0.15 <= high
    assert 0.93 <= inside / 1000 <= 0.98


def test_without_an_interval_on_one_side_the_difference_has_none():
    assert difference_interval([0.9, None, None], [0.5, 0.4, 0.6]) == [pytest.approx(0.4), None, None]


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    folder = build_evaluation(tmp_path_factory.mktemp("away") / "run")
    write_run_report(folder)
    return folder


def test_a_report_of_elsewhere_holds_both_figures_and_their_difference(away):
    metrics = json.loads((away / "metrics.json").read_text())
    parts = evaluate_predictions(read_predictions(away / "predictions.csv"))
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
    page = (away / "report.html").read_text()
    assert "Internal and external test" in page and f"{value:+.3f}" in page
    assert "internal test set" in page


def test_a_fall_beyond_a_tenth_of_auroc_is_a_warning_that_says_so(away):
    found = next(
        n
        for n in make_notices(read_run_record(away), json.loads((away / "metrics.json").read_text()))
        if "generalize" in n.title
    )
    assert (found.level, found.title) == ("warning", "The metrics do not generalize to clinic")
    assert "lower by 0." in found.text and "95 % confidence interval" in found.text


def test_no_fall_is_no_warning_and_what_is_not_ruled_out_is_said(tmp_path):
    write_run_report(build_evaluation(tmp_path / "run", strength=2.2))
    record, metrics = read_run_record(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    found = next(n for n in make_notices(record, metrics) if n.title == "Tested on external data")
    assert found.level == "note" and "cannot be excluded" in found.text
    assert not [n for n in make_notices(record, metrics) if "External validity: unknown" in n.title]


def test_a_class_that_is_missing_on_one_side_is_named_and_figures_that_need_it_are_not_compared(tmp_path):
    write_run_report(build_evaluation(tmp_path / "run", external=["No_findings"], strength=-4))
    drop = json.loads((tmp_path / "run" / "metrics.json").read_text())["external_drop"]["clinic"]
    assert drop["only"] == {"internal": ["Covid-19", "Pneumonia"]}
    assert list(drop["figures"]) == ["per_class.No_findings.sensitivity"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The external test set has no image of Covid-19 or Pneumonia." in page
    assert "of No_findings were predicted as" in page


def test_verify_computes_the_drop_again(away, tmp_path):
    path = away / "metrics.json"
    before = path.read_text()
    metrics = json.loads(before)
    metrics["external_drop"]["clinic"]["figures"][MACRO_AUROC]["drop"][0] = 0.01
    path.write_text(json.dumps(metrics))
    said = [fault.problem for fault in verify(away)[0]]
    path.write_text(before)
    assert any(what.startswith(f"external_drop.clinic.figures.{MACRO_AUROC}.drop[0] is 0.01") for what in said)


def test_a_model_tested_at_home_alone_has_no_drop(tmp_path):
    parts = evaluate_predictions(read_predictions(build_run(tmp_path / "run") / "predictions.csv"))
    write_run_report(tmp_path / "run")
    assert "external_drop" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert compute_drop(parts["test"], parts["test"])["figures"][MACRO_AUROC]["drop"][0] == 0


def test_a_model_trained_on_data_that_failed_a_check_says_so_wherever_it_is_tested(away):
    record, metrics = read_run_record(away), json.loads((away / "metrics.json").read_text())
    assert not [n for n in make_notices(record, metrics) if "failed a check" in n.title]
    record.run["tested"] = {"run": "home", "failed": ["No other class has the sources of Covid-19."]}
    (found,) = [n for n in make_notices(record, metrics) if "failed a check" in n.title]
    assert found.level == "warning" and "good metrics do not exclude it" in found.text


def test_figures_too_good_to_be_believed_are_stamped_unless_they_were_tested_elsewhere(tmp_path):
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
    elsewhere = metrics | {"external_drop": {"clinic": compute_drop(metrics["test"], metrics["test"])}}
    assert not [n for n in make_notices(record, elsewhere) if "Implausibly" in n.title]
    usual = metrics | {"test": metrics["test"] | {"auroc": metrics["test"]["auroc"] | {"macro": 0.97}}}
    assert not [n for n in make_notices(record, usual) if "Implausibly" in n.title]


def test_of_several_sources_each_has_its_own_warning(tmp_path):
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
    ("strength", "beginning"),
    [(0.3, "warning: The metrics do not generalize to clinic. "), (2.2, "Tested on external data. ")],
)
def test_the_terminal_of_an_evaluation_gives_the_drop_in_the_words_of_the_report(tmp_path, strength, beginning):
    console = Console(file=io.StringIO(), width=80)
    write_run_report(build_evaluation(tmp_path / "run", strength=strength))
    record, metrics = read_run_record(tmp_path / "run"), json.loads((tmp_path / "run" / "metrics.json").read_text())
    (drop,) = [notice for notice in make_notices(record, metrics) if "on clinic" in notice.text]
    show_headline(console, tmp_path / "run")
    assert f"\n{beginning}{drop.text}\n" in console.file.getvalue()
    assert "Macro AUROC is" in drop.text and "95 % confidence interval" in drop.text
