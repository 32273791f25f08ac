"""Tests of the comparison of runs: its page, compare.json and the names of the runs."""

import json

import numpy as np
import pandas as pd
import pytest
from finding_predictions import FINDINGS, simulate_findings
from rich.console import Console

from fastcxr.cli.tables import show_comparison
from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, InputMissingError, OutputError
from fastcxr.metrics.predictions import Predictions, make_predictions, write_predictions
from fastcxr.workflows.compare import compare

LABELS = ("clear", "haze")


@pytest.fixture
def runs(tmp_path):
    """Return two run folders with the same name: an accurate and an inaccurate model."""
    truth = np.arange(120) % 2
    rows = pd.DataFrame({
        "source": "s", "path": [f"{i}.png" for i in range(120)], "label": np.array(LABELS)[truth],
        "patient": [f"p{i // 3}" for i in range(120)], "split": "test",
    })  # fmt: skip
    folders = []
    for seed, noise in ((1, 0.6), (2, 6.0)):
        logits = 2 * truth - 1 + noise * np.random.default_rng(seed).normal(size=120)
        folder = tmp_path / f"study-{seed}" / "run"
        folder.mkdir(parents=True)
        score = 1 / (1 + np.exp(-logits))
        write_predictions(
            make_predictions(rows, np.stack([1 - score, score], axis=1), LABELS), folder / "predictions.csv"
        )
        folders.append(folder)
    return folders


def test_the_page_shows_the_metrics_of_compare_json(runs, tmp_path):
    page = compare(reversed(runs), tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["study-1/run", "study-2/run"]
    assert summary["n_shared_images"] == 120 and summary["patients"] == 40
    text = page.read_text()
    assert "Evaluated on 120 shared images of 40 patients." in text
    value, low, high = summary["rows"][0]["auroc"]
    assert f"{value:.3f}" in text and f"{low:.3f}–{high:.3f}" in text
    assert "&lt; 0.001" in text and (tmp_path / "out" / "figures" / "roc_1.svg").exists()


def test_the_page_is_reproducible(runs, tmp_path):
    pages = [compare(runs, tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_an_invalid_comparison_writes_no_file(runs, tmp_path):
    with pytest.raises(InputMissingError, match="at least 2"):
        compare(runs[:1], tmp_path / "out")
    with pytest.raises(InputMissingError, match="the same run folder is given twice"):
        compare([runs[0], runs[0] / ".." / "run"], tmp_path / "out")
    with pytest.raises(InputMissingError, match="not a run: no predictions.csv"):
        compare([runs[0], tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="not empty"):
        compare(runs, runs[0])


@pytest.fixture
def finding_runs(tmp_path):
    """Return two run folders of findings that were trained with different policies for uncertain labels."""
    predictions, folders = simulate_findings(60, unknown=0.2), []
    for seed, policy in ((1, "ignore"), (2, "positive")):
        noise = np.random.default_rng(seed).random(predictions.probability.shape)
        probability = (predictions.probability + seed * noise) / (1 + seed)
        columns = {f"prob_{label}": probability[:, k] for k, label in enumerate(predictions.labels)}
        folder = tmp_path / policy
        folder.mkdir()
        write_predictions(Predictions(predictions.table.assign(**columns), FINDINGS), folder / "predictions.csv")
        (folder / "recipe.json").write_text(Recipe("mobilenetv2_100", uncertain=(policy,)).to_json())
        folders.append(folder)
    return folders


def test_findings_are_compared_one_by_one_and_training_labels_are_shown(finding_runs, tmp_path):
    page = compare(finding_runs, tmp_path / "out")
    rows, text = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"], page.read_text()
    assert [row["label_policy"] for row in rows] == ["uncertain ignore", "uncertain positive"]
    assert rows[0]["label_policy"] in text and "<br>labels in training" in text
    for label in FINDINGS:
        value, low, high = rows[1]["findings"][label]["auroc"]
        assert f"{value:.3f}" in text and f"{low:.3f}–{high:.3f}" in text
        assert f"difference {rows[1]['findings'][label]['auroc_difference'][0]:.3f}, p" in text
    assert "AUROC by finding" in text and "precision, macro" in text and "Accuracy" not in text
    assert len(list((tmp_path / "out" / "figures").glob("roc_*.svg"))) == len(FINDINGS)


def test_findings_with_other_evaluated_labels_are_refused(finding_runs, tmp_path):
    path = finding_runs[1] / "predictions.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    column = f"truth_{FINDINGS[0]}"
    row = table.index[table[column] == "1"][0]
    table.loc[row, column] = ""
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match="different labels for 1 image") as error:
        compare(finding_runs, tmp_path / "out")
    assert error.value.code == "E312" and "blank" not in str(error.value)
    for folder, blank in zip(finding_runs, [(), ("negative",)], strict=True):
        (folder / "recipe.json").write_text(Recipe("mobilenetv2_100", blank=blank).to_json())
    default = "blank labels of findings: 0 read as absent, 26 unknown (blank=unknown, the default: no label is guessed)"
    (finding_runs[0] / "run.json").write_text(json.dumps({"messages": [{"text": default}]}))
    (finding_runs[1] / "run.json").write_text("{}")
    names = [folder.name for folder in finding_runs]
    with pytest.raises(DataError, match=f"{names[0]} has blank unknown.* and {names[1]} has blank negative") as error:
        compare(finding_runs, tmp_path / "out")
    assert error.value.code == "E312" and error.value.fix == "Train the runs with the same `blank`"


def test_the_terminal_shows_the_training_labels_and_average_precision(finding_runs, tmp_path, capsys):
    compare(finding_runs, tmp_path / "out")
    show_comparison(Console(width=200), tmp_path / "out")
    shown = capsys.readouterr().out
    assert "average precision, macro" in shown and "uncertain positive" in shown and "accuracy" not in shown


def test_the_default_for_blank_labels_is_compared_as_the_policy_in_effect(finding_runs, tmp_path):
    (finding_runs[0] / "run.json").write_text('{"public_datasets": ["chexpert"]}')
    (finding_runs[1] / "run.json").write_text('{"public_datasets": []}')
    compare(finding_runs, tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    texts = {row["name"]: row["label_policy"] for row in rows}
    assert texts["ignore"] == "blank negative (default for CheXpert); uncertain ignore"
    assert texts["positive"] == "blank unknown (default); uncertain positive"
