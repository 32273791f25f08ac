"""Workflows on findings: learners of runs, packed files, merged data, resumed training, ranked backbones, studies."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from cli_calls import BACKBONE
from rich.console import Console
from safetensors.torch import save_file
from toy_findings import FINDINGS, OPTIONS, write_finding_toys

from fastcxr import load_learner_from_run, load_model, predict, read_manifest
from fastcxr.cli.tables import show_scout_table
from fastcxr.config.recipe import Recipe
from fastcxr.data.findings import FINDING_PREFIX, count_findings, list_findings, make_finding_labels
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import OutputError
from fastcxr.metrics.predictions import read_predictions
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.resume import CheckpointCallback
from fastcxr.workflows.run_state import read_run_config
from fastcxr.workflows.scout import MIN_CLASS_IMAGES, N_SAMPLE_IMAGES, sample_manifest, scout
from fastcxr.workflows.study import compare_with_paper, find_metric, read_primary_metrics
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_pages", "without_maps", "few_draws")


def test_a_learner_of_a_run_has_its_findings_and_probabilities(finding_run):
    folder, data = finding_run
    learner, classifier = load_learner_from_run(folder), load_model(folder)
    table = read_manifest(data)
    names, _, probability = learner.predict(table["file"].iloc[0])
    lines = [classifier.thresholds["findings"][name] for name in FINDINGS]
    log_odds = torch.logit(probability.double()).numpy()
    calibrated = [row["slope"] * x + row["intercept"] for row, x in zip(lines, log_odds, strict=True)]
    expected = predict(classifier, table[:1], splits=None).probability[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-np.array(calibrated))), expected, atol=1e-5)
    assert list(names) == [name for name, p in zip(FINDINGS, probability, strict=True) if p > 0.5]


def test_a_learner_with_the_images_of_a_run_evaluates_their_findings(finding_run):
    folder, data = finding_run
    learner = load_learner_from_run(folder, data)
    logits, targets = learner.get_preds(dl=learner.dls.valid)
    valid = read_predictions(folder / "predictions.csv").for_split("valid")
    assert logits.shape == (len(valid.table), len(FINDINGS))
    np.testing.assert_array_equal(np.isnan(targets.numpy()).sum(axis=0), np.isnan(valid.truth).sum(axis=0))


def test_the_predictions_of_a_run_have_the_decisions_at_its_thresholds(finding_run):
    predictions = read_predictions(finding_run[0] / "predictions.csv")
    thresholds = load_model(finding_run[0]).thresholds["thresholds"]
    minimums = np.array([thresholds[name]["threshold"] for name in FINDINGS])
    expected = ["|".join(np.array(FINDINGS)[row >= minimums]) for row in predictions.probability]
    assert predictions.table["predicted"].tolist() == expected


def test_a_packed_dataset_keeps_all_states_of_the_labels(finding_run, tmp_path):
    manifest = read_manifest(finding_run[1])
    packed = read_manifest(pack_dataset(manifest, tmp_path / "packed.h5"))
    assert list_findings(packed) == list(FINDINGS)
    columns = [FINDING_PREFIX + name for name in FINDINGS]
    pd.testing.assert_frame_equal(
        packed.sort_values("path")[columns].reset_index(drop=True),
        manifest.sort_values("path")[columns].reset_index(drop=True),
    )
    assert packed["label"].tolist() == manifest["label"].tolist()
    assert {-1, 0, 1} <= set(manifest[columns].stack().dropna()) and manifest[columns].isna().any(axis=None)


def test_a_finding_that_only_one_dataset_labels_is_unknown_in_the_other(finding_run, tmp_path):
    other = write_finding_toys(tmp_path / "other", n_images=20, findings=("haze", "opacity"), first=500)
    merged = read_manifest([str(finding_run[1]), str(other)])
    counts = count_findings(merged[merged["source"] != merged["source"].iloc[0]])
    assert counts.loc["nodule", "unknown"] == counts.loc["haze"].drop("patients").sum() == 20


def interrupt(recipe, folder, monkeypatch, n_batches=9):
    """Start a run that ends after some batches, as after a power failure."""
    remaining = iter(range(n_batches))

    def after_batch(self):
        original(self)
        if next(remaining, None) is None:
            raise KeyboardInterrupt

    original = CheckpointCallback.after_batch
    with monkeypatch.context() as patch:
        patch.setattr("fastcxr.training.resume.CHECKPOINT_INTERVAL_MINUTES", 0)
        patch.setattr(CheckpointCallback, "after_batch", after_batch)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, folder)


def test_a_resumed_training_of_findings_has_the_same_bits(finding_run, tmp_path, monkeypatch):
    options = OPTIONS | {"epochs": 2, "uncertain": ("positive",), "learning_rate": 1e-3, "device": "cpu"}
    recipe = Recipe(BACKBONE, data=str(finding_run[1]), strategy="full", **options)
    run(recipe, tmp_path / "whole")
    interrupt(recipe, tmp_path / "resumed", monkeypatch)
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    run(recipe, tmp_path / "resumed")
    for name in ("model.safetensors", "predictions.csv", "metrics.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_another_policy_for_uncertain_labels_is_another_run(finding_run):
    recipe = read_run_config(finding_run[0])
    with pytest.raises(OutputError, match="uncertain"):
        run(recipe.replace(uncertain=("positive",)), finding_run[0])


def test_the_table_of_epochs_has_losses_and_auroc(finding_run):
    history = pd.read_csv(finding_run[0] / "history.csv")
    assert "accuracy" not in history and "top2_accuracy" not in history
    console = Console(width=80, record=True, file=StringIO())
    TerminalProgress(console).epoch(history.iloc[0].to_dict())
    heading = console.export_text().splitlines()[1]
    assert heading.split() == ["epoch", "stage", "train", "loss", "valid", "loss", "AUROC", "seconds"]


@pytest.fixture(scope="module")
def scouted(finding_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scout")
    save_file(timm.create_model("mobilenetv2_035").state_dict(), folder / "w.safetensors")
    recipe = Recipe(data=str(finding_run[1]), strategy="linear_probe", image_size=64)
    return scout(recipe, ["mobilenetv2_035"], {"mobilenetv2_035": str(folder / "w.safetensors")}, folder / "out")


def test_a_backbone_is_ranked_by_the_auroc_of_findings(scouted, capsys):
    assert 0.5 < scouted.loc[0, "auroc"] <= 1 and "accuracy" not in scouted
    show_scout_table(Console(width=200), scouted)
    assert "accuracy" not in capsys.readouterr().out


def test_the_sample_keeps_rare_findings():
    n_images = 4000
    columns = {"finding_common": np.arange(n_images) % 2, "finding_rare": np.arange(n_images) % 100 == 0}
    table = pd.DataFrame(columns).astype("Int8")
    table = table.assign(source="s", path=table.index.astype(str), patient=table.index.astype(str))
    table = table.assign(label=make_finding_labels(table))
    sample = sample_manifest(table, Recipe())
    assert MIN_CLASS_IMAGES <= (sample["finding_rare"] == 1).sum() <= 40
    assert N_SAMPLE_IMAGES <= len(sample) <= N_SAMPLE_IMAGES + MIN_CLASS_IMAGES
    assert sample.groupby("fold")["finding_rare"].sum().min() >= 5


def test_a_study_compares_the_auroc_of_each_finding(finding_run):
    metrics = json.loads((finding_run[0] / "metrics.json").read_text())["test"]
    found = read_primary_metrics(finding_run[0])
    assert found["auroc"] == metrics["auroc"]["macro"]
    assert find_metric(found, "haze auroc") == metrics["auroc"]["per_class"]["haze"]
    assert find_metric(found, "haze sensitivity") == metrics["per_class"]["haze"]["sensitivity"]
    tables = compare_with_paper({"first": finding_run[0]}, {"first": {"auroc": 0.8, "haze auroc": 0.9}})
    headings = [[column.header for column in table.columns] for table in tables]
    assert headings[0] == ["variant", "paper AUROC", "AUROC", "images"]
    assert headings[1] == ["variant", "paper AUROC", "AUROC"]


def test_the_display_in_a_notebook_has_no_accuracy(finding_run):
    html = read_predictions(finding_run[0] / "predictions.csv")._repr_html_()
    assert "average precision, macro" in html and "accuracy" not in html
    assert "3 findings: haze, nodule, opacity" in repr(load_model(finding_run[0]))
