"""Strategies linear_probe and lp_ft: history, unchanged backbone weights, best epoch and messages."""

import logging

import numpy as np
import pytest
import torch
from recording_progress import Counted
from safetensors.torch import save_file
from training_probes import RECIPE, SILENT, make

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier, load_model, save_model
from fastcxr.models.heads import MultiScaleHead, find_head
from fastcxr.training import linear_probe
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.trainer import STRATEGIES, train


def test_a_linear_probe_is_one_history_row(toy_manifest, passes):
    learner, progress = make(toy_manifest), Counted()
    training = train(learner, RECIPE, progress)
    row = training.history.iloc[0]
    assert (len(training.history), row["epoch"], row["stage"], row["best"]) == (1, 1, "probe", True)
    assert training.rates == [] and list(training.curves.columns) == ["stage", "rate", "loss"]
    assert training.best == {"monitor": "valid_loss", "best_epoch": 1, "best_value": row["valid_loss"]}
    assert progress.texts == ["computing features", "fitting the head"]


def test_a_linear_probe_does_not_change_the_backbone(toy_manifest):
    learner = make(toy_manifest)
    before = {k: v.clone() for k, v in learner.model.state_dict().items() if "classifier" not in k}
    fit_head(learner, RECIPE, SILENT)
    after = learner.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_linear_probe_predicts_the_same(toy_manifest, tmp_path):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    save_model(tmp_path, learner, RECIPE, {"precision": learner.fastcxr.precision})
    loaded = load_model(tmp_path)
    assert isinstance(find_head(loaded.network), MultiScaleHead)
    before, after = (
        predict(model, toy_manifest, splits=None).probability for model in (extract_classifier(learner), loaded)
    )
    np.testing.assert_array_equal(before, after)
    assert before.max() > 0.5


@pytest.fixture
def lp_ft(toy_manifest, tmp_path) -> Recipe:
    """Return a recipe with strategy lp_ft and a weights file."""
    save_file(make(toy_manifest).model.state_dict(), tmp_path / "start.safetensors")
    return RECIPE.replace(strategy="lp_ft", weights=str(tmp_path / "start.safetensors"))


def test_lp_ft_keeps_the_fitted_head_if_later_epochs_are_not_better(toy_manifest, lp_ft, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "lp_ft", (Stage(name="diverging", epochs=2, scale=500.0),))
    learner, progress = make(toy_manifest, lp_ft), Counted()
    training = train(learner, lp_ft, progress)
    assert training.history["stage"].tolist() == ["probe", "diverging", "diverging"]
    assert training.best["best_epoch"] == 1
    assert progress.texts[-2:] == ["epoch 2/3 (diverging)", "epoch 3/3 (diverging)"]
    probed = make(toy_manifest, lp_ft)
    train(probed, lp_ft.replace(strategy="linear_probe"))
    for name, tensor in probed.model.state_dict().items():
        torch.testing.assert_close(learner.model.state_dict()[name], tensor)


@pytest.mark.parametrize(("patience", "rows"), [(None, 5), (1, 3), (0, 7)])
def test_lp_ft_stops_early_after_three_epochs_by_default(toy_manifest, lp_ft, monkeypatch, patience, rows):
    monkeypatch.setitem(STRATEGIES, "lp_ft", (Stage(name="constant", epochs=6, scale=0.0, batch_norm="frozen"),))
    training = train(make(toy_manifest, lp_ft), lp_ft.replace(patience=patience))
    assert len(training.history) == rows


def test_lp_ft_keeps_the_best_epoch(toy_manifest, lp_ft, monkeypatch):
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (1e6,))  # a head of nearly zero weights
    monkeypatch.setitem(STRATEGIES, "lp_ft", (Stage(name="later", groups=1, epochs=3, scale=0.1),))
    recipe = lp_ft.replace(optimizer="adam", schedule="constant")
    learner = make(toy_manifest, recipe)
    training = train(learner, recipe)
    best = training.history.loc[training.history["valid_loss"].idxmin()]
    assert best["stage"] == "later" and training.best["best_epoch"] == best["epoch"]
    with learner.no_bar():
        assert learner.validate()[0] == pytest.approx(best["valid_loss"], rel=1e-3)
    assert learner.fastcxr.fitted_probe is None, "its features are of other backbone weights"


def test_lp_ft_falls_back_to_full_with_random_weights(toy_manifest, caplog):
    recipe = RECIPE.replace(strategy="lp_ft")
    learner = make(toy_manifest, recipe)
    caplog.set_level(logging.WARNING, "fastcxr")
    assert train(learner, recipe).history["stage"].tolist() == ["all"]
    assert "needs pretrained weights" in caplog.text and "falling back to full" in caplog.text
    assert type(find_head(learner.model)) is torch.nn.Linear
