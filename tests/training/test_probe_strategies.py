"""Strategies linear_probe and lp_ft: history, unchanged backbone weights, best epoch and messages."""

import logging

import numpy as np
import pytest
import torch
from device_results import assert_identical
from fastai.learner import Learner
from recording_progress import Counted
from safetensors.torch import save_file
from training_probes import RECIPE, SILENT, make

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import describe_fitted_images, extract_classifier, load_model, save_model
from fastcxr.models.heads import MultiScaleHead, find_head
from fastcxr.models.state import find_learner_state
from fastcxr.training import linear_probe
from fastcxr.training.fit_ood import fit_ood_detector
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
    before = {k: v.clone() for k, v in learner.model.state_dict().items() if not k.startswith("fc.")}
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
    assert_identical(before, after)
    assert before.max() > 0.5


@pytest.fixture
def lp_ft(toy_manifest, tmp_path) -> Recipe:
    """Return a recipe with strategy lp_ft and a weights file."""
    save_file(make(toy_manifest).model.state_dict(), tmp_path / "start.safetensors")
    return RECIPE.replace(strategy="lp_ft", weights=str(tmp_path / "start.safetensors"))


def test_lp_ft_keeps_the_fitted_head_if_later_epochs_are_not_better(toy_manifest, lp_ft, monkeypatch):
    monkeypatch.setitem(STRATEGIES, "lp_ft", (Stage(name="diverging", epochs=2, scale=500.0),))
    # the validation loss reaches 1e35: with the random numbers of a GPU the training loss may be infinite, an error
    lp_ft = lp_ft.replace(device="cpu")
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
    assert training.probe["l2"] == 1e6
    assert describe_fitted_images(learner) == {
        "splits": ["train"], "images": 18, "patients": count_patients(toy_manifest, "train"),
        "valid_predictions": "saved_model",
    }  # fmt: skip


def count_patients(manifest, *splits) -> int:
    return manifest.loc[manifest["split"].isin(splits), "patient"].nunique()


def test_a_refitted_head_is_recorded_with_its_images_and_the_predictor_of_validation_rows(toy_manifest):
    learner = make(toy_manifest)
    training = train(learner, RECIPE, SILENT)
    assert describe_fitted_images(learner) == {
        "splits": ["train", "valid"], "images": 24, "patients": count_patients(toy_manifest, "train", "valid"),
        "valid_predictions": "train_only_head",
    }  # fmt: skip
    assert training.probe["l2"] in training.probe["l2_tried"] and training.probe["views"] == 2


@pytest.fixture
def probe_learner(many_toys):
    """Return a learner with a fitted head and an OOD detector."""
    learner = make(many_toys)
    train(learner, RECIPE, SILENT)
    assert extract_classifier(learner).hflip_tta and extract_classifier(learner).ood_detector
    return learner


def compute_fresh_probability(learner, manifest) -> np.ndarray:
    """Return the probabilities of a forward pass by a Learner without any state of a training."""
    return predict(Learner(learner.dls, learner.model, learner.loss_func), manifest, splits=None).probability


def test_after_a_fit_by_the_user_predictions_are_those_of_a_fresh_forward_pass(probe_learner, many_toys):
    with probe_learner.no_bar(), probe_learner.no_logging():
        probe_learner.fit(1, 1e-3)
    predictions = predict(probe_learner, many_toys, splits=None)
    assert_identical(predictions.probability, compute_fresh_probability(probe_learner, many_toys))
    assert "ood_score" not in predictions.table, "the OOD detector was fitted on features of other weights"
    fresh_detector, _ = fit_ood_detector(probe_learner, SILENT)
    probe_learner.fastcxr.fitted_probe = None
    expected_detector, _ = fit_ood_detector(probe_learner, SILENT)
    assert_identical(fresh_detector.mean, expected_detector.mean)


def test_after_a_second_training_of_all_layers_nothing_of_the_fitted_head_is_used(probe_learner, many_toys):
    recipe = RECIPE.replace(strategy="full")
    train(probe_learner, recipe, SILENT)
    assert not extract_classifier(probe_learner).hflip_tta
    table = predict(probe_learner, many_toys, splits=None)
    assert_identical(table.probability, compute_fresh_probability(probe_learner, many_toys))
    detector = probe_learner.fastcxr.ood_detector
    assert detector is extract_classifier(probe_learner).ood_detector
    assert_identical(detector.mean, fit_ood_detector(probe_learner, SILENT)[0].mean)
    fitted = describe_fitted_images(probe_learner)
    assert fitted["splits"] == ["train", "valid"], "the training started from a head fitted on validation images too"
    assert fitted["valid_predictions"] == "saved_model"


def test_the_learning_rate_finder_restores_the_weights_and_keeps_the_fitted_head(probe_learner):
    with probe_learner.no_bar(), probe_learner.no_logging():
        probe_learner.lr_find(show_plot=False, num_it=5, suggest_funcs=None)
    assert find_learner_state(probe_learner) is probe_learner.fastcxr


def test_lp_ft_falls_back_to_full_with_random_weights(toy_manifest, caplog):
    recipe = RECIPE.replace(strategy="lp_ft")
    learner = make(toy_manifest, recipe)
    caplog.set_level(logging.WARNING, "fastcxr")
    assert train(learner, recipe).history["stage"].tolist() == ["all"]
    assert "needs pretrained weights" in caplog.text and "falling back to full" in caplog.text
    assert isinstance(find_head(learner.model), torch.nn.Linear)
