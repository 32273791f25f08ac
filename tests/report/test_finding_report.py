"""Tests for the report of findings: page, model card, checklist and figures."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from finding_run import build_finding_run, list_names, make_finding_manifest, make_finding_probability
from html_page import Page
from sklearn.metrics import auc, roc_auc_score

from fastcxr.data.findings import FINDING_PREFIX
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.io.files import read_json
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.predictions import OUT_OF_FOLD, make_predictions
from fastcxr.report.finding_figure_set import make_finding_figures
from fastcxr.report.finding_panels import (
    MAX_CURVE_POINTS,
    Panel,
    compute_precision_recall_points,
    compute_roc_points,
    draw_panel,
)
from fastcxr.report.finding_rows import describe_averaged, make_finding_rows, rank_findings
from fastcxr.report.headline import make_headline_table, make_terminal_table
from fastcxr.report.label_counts import describe_label_policy, make_label_tables, name_blank_policy
from fastcxr.report.run_page import compute_run_metrics, render_report, write_run_report
from fastcxr.report.run_reader import read_run_record

HOSTILE = '<b>Mass & "x"</b>'
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", HOSTILE)
UNDEFINED_WORDS = ("Accuracy", "accuracy", "Top-2", "Confusion matrix", "true class", "Most frequent confusions")
CALIBRATION = {
    "temperature": 1.0,
    "findings": {
        "Atelectasis": {"slope": 0.9, "intercept": -0.2, "method": "platt", "positives": 40, "negatives": 90},
        "Edema": {"slope": 0.8, "intercept": 0.0, "method": "temperature", "positives": 9, "negatives": 99},
    },
    "images": 130,
    "patients": 65,
    "thresholds": {
        "Edema": {"threshold": 0.25, "wanted": {"sensitivity": 0.9}, "positives": 9, "unstable": True},
    },
    "uncertain_below": None,
}

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return a run folder of six findings; no test image has Cardiomegaly."""
    manifest = make_finding_manifest(FINDINGS, 300)
    column = FINDING_PREFIX + "Cardiomegaly"
    is_test = manifest["split"] == "test"
    manifest.loc[is_test & (manifest[column] == 1).fillna(False), column] = 0
    return build_finding_run(
        tmp_path_factory.mktemp("findings") / "run",
        FINDINGS,
        manifest,
        recipe={"uncertain": ["ignore", "Edema=positive"]},
        model={"calibration": CALIBRATION},
    )


@pytest.fixture(scope="module")
def record(run_folder):
    return read_run_record(run_folder)


@pytest.fixture(scope="module")
def metrics(record):
    return evaluate_predictions(record.predictions, record.calibration)


@pytest.fixture(scope="module")
def page(run_folder):
    return Page(write_run_report(run_folder).read_text(encoding="utf-8"))


def make_test_predictions(findings, n=120):
    manifest = make_finding_manifest(findings, n).assign(split="test")
    return make_predictions(manifest, make_finding_probability(manifest, findings), findings, findings=True)


def test_the_page_has_the_metrics_of_findings_and_none_of_classes(page, metrics):
    for heading in (
        "Metrics per finding",
        "ROC curves",
        "Decisions at the thresholds",
        "Co-occurrence",
        "Label policy",
    ):
        assert heading in page.text
    assert f"{metrics['test']['auroc']['macro']:.3f}" in page.text
    assert [word for word in UNDEFINED_WORDS if word in page.text] == []
    assert len(page.ids) == len(set(page.ids))
    assert not any(source.startswith("http") for source in page.sources)


def test_hostile_names_are_escaped_on_the_page_in_figures_and_in_markdown(page, run_folder):
    assert page.text.count(HOSTILE) >= 5  # as text
    assert HOSTILE not in (run_folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;Mass &amp; &#34;x&#34;&lt;/b&gt;</text>" in (run_folder / "figures/roc_6.svg").read_text()
    for name in ("MODEL_CARD.md", "CLAIM.md"):
        assert '&lt;b&gt;Mass & "x"&lt;/b&gt;' in (run_folder / name).read_text()


def test_a_finding_without_positive_test_images_is_named_and_has_no_curve(page, run_folder, metrics):
    sentence = "Not averaged: Cardiomegaly (no image has the finding)."
    assert sentence in page.text
    assert sentence in (run_folder / "MODEL_CARD.md").read_text()
    assert rank_findings(metrics["test"])[-1] == "Cardiomegaly"
    assert not (run_folder / "figures/roc_2.svg").exists()
    assert "No test image of Cardiomegaly" in page.text
    assert "nan" not in page.text.lower().split()


def test_the_headline_has_the_means_without_that_of_chexpert_which_is_undefined(metrics):
    rows = {name: value for name, value, *_ in make_headline_table(metrics)}
    assert list(rows)[:3] == ["AUROC, macro", "AUROC, weighted", "Average precision, macro"]
    assert metrics["test"]["auroc"]["chexpert5"] is None
    assert rows["AUROC, macro"] == f"{metrics['test']['auroc']['macro']:.3f}"


def test_the_table_is_sorted_by_auroc(metrics):
    values = [row["auroc"][0] for row in make_finding_rows(metrics["test"])]
    assert values[:-1] == sorted(values[:-1], reverse=True)
    assert values[-1] == "–"


def test_the_counts_of_labels_follow_the_policy(record):
    tables = {part["split"]: part for part in make_label_tables(record)}
    row = next(row for row in tables["train"]["rows"] if row["name"] == "Edema")
    values = record.manifest.loc[record.manifest["split"] == "train", FINDING_PREFIX + "Edema"]
    n_present, n_uncertain = int((values == 1).sum()), int((values == -1).sum())
    assert (row["present"], row["uncertain"], row["unknown"]) == (n_present, n_uncertain, int(values.isna().sum()))
    assert row["positive"] == n_present + n_uncertain  # read as present in training
    assert row["known"] == int(values.notna().sum())
    policy = " ".join(describe_label_policy(record))
    assert "Uncertain labels: ignored, except Edema: read as present in training" in policy


LOGGED = "blank labels of findings: 5 read as absent, 0 unknown (the default for CheXpert: REASON)"


@pytest.mark.parametrize(
    ("run", "in_report", "in_comparison"),
    [
        ({"public_datasets": ["chexpert"]}, "absent, the default for CheXpert: ", "negative (default for CheXpert)"),
        ({"messages": [{"text": LOGGED}]}, "absent, the default for CheXpert: ", "negative (default for CheXpert)"),
        ({"public_datasets": []}, "unknown, the default: no label is guessed.", "unknown (default)"),
    ],
)
def test_the_default_for_blank_labels_is_that_of_the_datasets_of_the_run(record, run, in_report, in_comparison):
    sentence = describe_label_policy(dataclasses.replace(record, run=run))[0]
    assert f"Policy: {in_report}" in sentence
    assert name_blank_policy((), run) == in_comparison
    assert name_blank_policy(("Edema=unknown",), run) == f"{in_comparison}, Edema=unknown"
    assert name_blank_policy(("unknown",), run) == "unknown"


def test_card_and_checklist_state_task_policy_loss_and_calibration(page, run_folder):
    card, claim = ((run_folder / name).read_text() for name in ("MODEL_CARD.md", "CLAIM.md"))
    assert "Task: multi-label classification, several findings per image: Atelectasis" in card
    assert "Loss: binary cross entropy over the known labels of all findings, no label smoothing." in card
    assert "training labels (" in card
    assert "blank (read as absent)" in card
    assert "Platt scaling for Atelectasis and one shared temperature" in card
    assert "detects 6 findings in chest radiographs (multi-label" in claim
    assert "Edema 0.250" in claim
    for text in (card, claim):
        assert [word for word in ("accuracy", "Accuracy", "most probable class") if word in text] == []


def test_a_threshold_is_shown_with_its_target_and_few_positives(page):
    assert "Edema unstable: 9 positives 0.250" in page.text
    assert "selected on the validation split (target: sensitivity 90.0 %)." in page.text


def test_the_most_wrong_images_of_a_finding_have_label_and_probability(page):
    section = page.text.partition("Most confident errors")[2]
    assert "Label present Probability" in section
    assert "Label absent Probability" in section


def test_a_report_without_manifest_reads_the_labels_from_the_predictions(run_folder, tmp_path):
    for name in ("predictions.csv", "model.json"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    record = read_run_record(tmp_path)
    assert {part["split"] for part in make_label_tables(record)} == {"valid", "test"}
    text = Page(render_report(record, evaluate_predictions(record.predictions), {})).text
    assert "Labels: test split" in text


@pytest.mark.parametrize(
    ("value", "reason"), [(1, "every image has the finding"), (pd.NA, "no image has a known label")]
)
def test_one_finding_with_one_class_has_a_report(tmp_path, value, reason):
    manifest = make_finding_manifest(("Edema",), 80)
    manifest.loc[manifest["split"] == "test", FINDING_PREFIX + "Edema"] = value
    build_finding_run(tmp_path, ("Edema",), manifest, thumbnails=False)
    text = Page(write_run_report(tmp_path).read_text(encoding="utf-8")).text
    assert f"Not averaged: Edema ({reason})." in text
    assert "No curves: no finding has both images with it and images without it" in text
    assert read_json(tmp_path / "metrics.json")["test"]["auroc"]["macro"] is None


def test_forty_findings_have_a_panel_each_and_the_most_frequent_are_kept_beyond(monkeypatch):
    predictions = make_test_predictions(list_names(6))
    metrics = evaluate_predictions(predictions)
    monkeypatch.setattr("fastcxr.report.finding_figure_set.MAX_PANELS", 3)
    names = [figure.name for figure in make_finding_figures(predictions, metrics)]
    counts = {label: row["positives"] for label, row in metrics["test"]["per_class"].items()}
    frequent = sorted(counts, key=lambda label: -counts[label])[:3]
    expected = {f"roc_{predictions.labels.index(label) + 1}" for label in frequent}
    assert {name for name in names if name.startswith("roc_")} == expected


def test_curves_are_thinned_without_a_visible_change():
    draw = np.random.default_rng(0)
    is_present = draw.random(20_000) < 0.1
    scores = draw.normal(size=20_000) + is_present
    for compute in (compute_roc_points, compute_precision_recall_points):
        x, y = compute(is_present, scores)
        assert len(x) <= MAX_CURVE_POINTS
        assert (x[0], x[-1]) == (0, 1)
    false_rate, true_rate = compute_roc_points(is_present, scores)
    assert auc(false_rate, true_rate) == pytest.approx(roc_auc_score(is_present, scores), abs=2e-3)


def test_a_panel_has_its_name_number_and_description():
    curve = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    svg = draw_panel(Panel(HOSTILE, curve, "AUROC 0.5", "x"), f"ROC curve of {HOSTILE}")
    page = Page(svg)
    assert page.open == []
    assert HOSTILE in page.text
    assert "AUROC 0.5" in page.text
    assert 'aria-label="ROC curve of &lt;b&gt;Mass' in svg


def test_all_findings_in_the_mean_are_stated_in_one_sentence():
    metrics = evaluate_predictions(make_test_predictions(FINDINGS[:2]))["test"]
    assert describe_averaged(metrics) == ["Macro averages are means over all 2 findings."]


def test_folds_have_their_own_table_and_the_terminal_has_their_mean(tmp_path):
    findings = FINDINGS[:2]
    manifest = make_finding_manifest(findings, 160).assign(split=OUT_OF_FOLD)
    manifest["fold"] = np.where(np.arange(160) < 80, "1", "2")
    build_finding_run(tmp_path, findings, manifest, thumbnails=False)
    (tmp_path / "model.json").unlink()
    folds = pd.DataFrame({"fold": ["1", "2"], "n_images": 80, "n_patients": 40, "auroc": [0.7, 0.8]})
    folds.assign(average_precision=0.5, exact_match=0.6, hamming_loss=0.1).to_csv(tmp_path / "folds.csv", index=False)
    record = read_run_record(tmp_path)
    metrics = compute_run_metrics(record)
    text = Page(render_report(record, metrics, None)).text
    assert "Fold Images Patients AUROC Average precision Exact match Hamming loss" in text
    assert "0.750 ± 0.071" in text
    headings, rows = make_terminal_table(metrics)
    assert headings[3] == "mean ± SD of 2 folds"
    assert rows[0][0] == "AUROC, macro"
    assert rows[0][3] == "0.750 ± 0.071"
    assert rows[1][3] == "–"  # weighted AUROC is not in folds.csv


def test_an_external_test_set_is_compared_by_auroc(tmp_path):
    findings = FINDINGS[:2]
    manifest = make_finding_manifest(findings, 200)
    is_external = np.arange(200) >= 100
    manifest = manifest.assign(split=np.where(is_external, "test", INTERNAL_TEST))
    manifest["source"] = np.where(is_external, "other", "made-up")
    build_finding_run(tmp_path, findings, manifest, thumbnails=False)
    record = read_run_record(tmp_path)
    text = Page(render_report(record, compute_run_metrics(record), None)).text
    assert "Internal and external test" in text
    assert "Atelectasis: AUROC" in text
    assert "Macro AUROC is" in text
