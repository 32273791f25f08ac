"""The commands predict, explain, compare and list for a model of findings."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from toy_findings import FINDINGS

from fastcxr.cli.tables import show_top_findings
from fastcxr.metrics.decisions import apply_thresholds, count_found_findings
from fastcxr.metrics.predictions import make_predictions, mark_ood, read_predictions
from fastcxr.models.bundle import load_model

N_IMAGES = 80


@pytest.fixture
def images(finding_run):
    return finding_run[1].parent / "images"


def test_predict_writes_the_decision_on_each_finding_and_no_unknown_truth(call, finding_run, images, tmp_path):
    done = call("predict", finding_run[0], images, "--csv", tmp_path / "out.csv")
    assert done.returncode == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert not any(name.startswith("truth_") for name in rows[0])
    assert "uncertain" not in rows[0] and "above_threshold" not in rows[0]
    thresholds = load_model(finding_run[0]).thresholds["thresholds"]
    for row in rows:
        for name in FINDINGS:
            minimum = thresholds[name]["threshold"]
            assert row[f"decision_{name}"] == ("yes" if float(row[f"prob_{name}"]) >= minimum else "no")
        decided = [name for name in FINDINGS if row[f"decision_{name}"] == "yes"]
        assert row["predicted"] == "|".join(decided)


def test_the_csv_of_predict_is_read_as_predictions_of_findings(call, finding_run, images, tmp_path):
    call("predict", finding_run[0], images, "--csv", tmp_path / "out.csv")
    predictions = read_predictions(tmp_path / "out.csv")
    assert predictions.is_multi_label and predictions.labels == FINDINGS
    assert np.isnan(predictions.truth).all() and predictions.truth.shape == (N_IMAGES, 3)
    assert len(predictions.scorable().table) == 0


def test_predict_prints_the_most_probable_findings_of_at_most_twenty_images(call, finding_run, images):
    done = call("predict", finding_run[0], images)
    lines = done.stderr.splitlines()
    shown = [line for line in lines if line.startswith("0000")]
    assert len(shown) == 20 and "and 60 more images" in lines
    row = next(csv.DictReader(done.stdout.splitlines()))
    order = sorted(FINDINGS, key=lambda name: -float(row[f"prob_{name}"]))
    cells = [f"{name} {float(row[f'prob_{name}']):.3f} {row[f'decision_{name}']}" for name in order]
    assert shown[0].split() == " ".join([row["path"], *cells]).split()
    assert f"{N_IMAGES} images predicted, 0 unreadable" in lines


def test_the_json_of_predict_has_the_images_of_each_finding(call, finding_run, images):
    document = json.loads(call("predict", finding_run[0], images, "--json").stdout)
    decided = [row["predicted"].split("|") for row in document["predictions"]]
    assert document["findings"] == {name: sum(name in one for one in decided) for name in FINDINGS}
    assert "truth_haze" not in document["predictions"][0]


def test_explain_shows_a_finding(call, finding_run, images, tmp_path):
    file = sorted(images.glob("*.png"))[0]
    done = call("explain", finding_run[0], file, "--finding", "nodule", "--out", tmp_path / "maps")
    assert done.returncode == 0
    with (tmp_path / "maps" / "saliency.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert "nodule" in {row["class"] for row in rows}
    assert "contribute to the score of a finding" in (tmp_path / "maps" / "explain.html").read_text()
    wrong = call("explain", finding_run[0], file, "--finding", "nodul", "--out", tmp_path / "no")
    assert "no finding called 'nodul'. Did you mean 'nodule'?" in wrong.stderr


def test_list_shows_the_auroc_and_no_accuracy(call, finding_run):
    done = call("list", finding_run[0].parent)
    auroc = json.loads((finding_run[0] / "metrics.json").read_text())["test"]["auroc"]["macro"]
    assert done.stdout.splitlines()[1].split()[:3] == ["run", "finished", f"{auroc:.3f}"]
    assert "accuracy" not in done.stdout


def test_verify_finds_a_changed_probability(call, finding_run, tmp_path):
    assert call("verify", finding_run[0]).returncode == 0
    changed = shutil.copytree(finding_run[0], tmp_path / "run")
    text = (changed / "predictions.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[text[0].split(",").index("prob_haze")] = "0.9999"
    (changed / "predictions.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")
    done = call("verify", changed)
    assert done.returncode == 65 and "expected" in done.stderr and "predictions.csv" in done.stderr


@pytest.mark.slow
@pytest.mark.needs("openvino")
def test_openvino_predicts_the_same_probabilities(call, finding_run, images):
    file = sorted(images.glob("*.png"))[0]
    one, other = (
        next(csv.DictReader(call("predict", finding_run[0], file, "--engine", name).stdout.splitlines()))
        for name in ("torch", "openvino")
    )
    for name in FINDINGS:
        assert float(one[f"prob_{name}"]) == pytest.approx(float(other[f"prob_{name}"]), abs=0.01)


@pytest.mark.parametrize("labels", [("Edema",), tuple(f"F{number:02d}" for number in range(40))])
def test_one_and_forty_findings_and_images_without_decisions_are_shown(capsys, labels):
    rows = pd.DataFrame({"source": "s", "path": ["a.png", "b.png", "c.png"], "patient": ""})
    probability = np.tile(np.linspace(0.1, 0.9, len(labels)), (3, 1))
    predictions = make_predictions(rows, probability, labels, ["", "", "FCX-E103 damaged"], findings=True)
    decided = apply_thresholds(mark_ood(predictions, np.array([0.5, 1.5, np.nan])), {})
    counts = count_found_findings(decided)
    show_top_findings(Console(width=200), decided, 2, counts)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].startswith("a.png") and lines[2].startswith("b.png")
    top = f"{labels[-1]} {probability[0, -1]:.3f}"
    assert f"{top} {'yes' if len(labels) > 1 else 'no'}" in lines[1]
    assert f"{top} out-of-distribution" in lines[2]
    assert sum(counts.values()) == (probability[0] >= 0.5).sum()


def test_in_a_narrow_terminal_the_probability_is_below_the_finding(capsys):
    rows = pd.DataFrame({"source": "s", "path": ["a.png", "b.png"], "patient": ""})
    labels = ("Pleural_Thickening", "Infiltration", "Consolidation")
    predictions = make_predictions(rows, np.tile([0.9, 0.5, 0.1], (2, 1)), labels, findings=True)
    show_top_findings(Console(width=66), apply_thresholds(mark_ood(predictions, np.array([0.5, 1.5])), {}), 2, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a.png", *labels]
    assert lines[2].split() == ["0.900", "yes", "0.500", "yes", "0.100", "no"]
    assert " ".join(lines[4].split()) == "0.900 no decision 0.500 no decision 0.100 no decision", "no word is broken"
