"""Stages teach what they should, the best epoch is kept across them, and a seed gives the same run twice."""

import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import save_file

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import RecipeError, TrainingError
from fastcxr.training.callbacks import BestEpoch
from fastcxr.training.learner import compute_macro_auroc, make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.schedules import compute_group_rates, suggest_learning_rate
from fastcxr.training.trainer import STRATEGIES, resolve_stages, train, unfreeze, warn_batchnorm_shift

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=1, strategy="full")


def learn(manifest, recipe):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    return learner, train(learner, recipe)


def body_and_head(learner):
    state = learner.model.state_dict()
    return {k: v.clone() for k, v in state.items() if "classifier" not in k}, state["classifier.weight"].clone()


def test_a_shallow_strategy_changes_the_head_and_not_one_number_of_the_body(toy_manifest):
    recipe = RECIPE.replace(strategy="head", epochs=2)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    body, head = body_and_head(learner)
    train(learner, recipe)
    body_after, head_after = body_and_head(learner)
    assert all(torch.equal(body[name], body_after[name]) for name in body), "batch norm statistics included"
    assert not torch.equal(head, head_after)


def test_a_frozen_body_costs_no_backward_pass(toy_manifest):
    recipe = RECIPE.replace(strategy="head")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    unfreeze(learner, resolve_stages(recipe, 5)[0])
    assert [p.requires_grad for group in learner.splitter(learner.model)[:-1] for p in group].count(True) == 0


@pytest.fixture
def weights(toy_manifest, tmp_path):
    """Weights to start from, as a file."""
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    save_file(learner.model.state_dict(), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def test_fine_opens_group_after_group_and_history_counts_on(toy_manifest, weights):
    _, training = learn(toy_manifest, RECIPE.replace(strategy="gradual", epochs=2, weights=weights))
    assert training.history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert training.history["stage"].tolist() == ["head", "head", "upper", "all", "all"]
    figures = {"train_loss", "valid_loss", "accuracy", "auroc", "top2_accuracy", "seconds", "best"}
    assert figures < set(training.history.columns)


def test_fine_on_random_weights_teaches_all_layers_at_once_and_says_so(toy_manifest, caplog):
    _, training = learn(toy_manifest, RECIPE.replace(strategy="gradual"))
    assert training.history["stage"].tolist() == ["all"]
    assert "needs pretrained weights" in caplog.text


def batch_norm_statistics(learner):
    return {k: v.clone() for k, v in learner.model.state_dict().items() if "running" in k}


@pytest.mark.parametrize("mode", ["learn", "frozen"])
def test_batch_norm_statistics_move_only_where_they_may(toy_manifest, mode):
    recipe = RECIPE.replace(strategy=(Stage(batch_norm=mode),))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    before = batch_norm_statistics(learner)
    train(learner, recipe)
    after = batch_norm_statistics(learner)
    assert all(torch.equal(before[name], after[name]) for name in before) == (mode == "frozen")


def test_top2_accuracy_is_left_out_for_two_classes(toy_manifest):
    two = toy_manifest[toy_manifest["label"] != "haze"].reset_index(drop=True)
    _, training = learn(two, RECIPE)
    assert "top2_accuracy" not in training.history


def test_the_weights_are_those_of_the_best_epoch_of_all_stages(toy_manifest):
    wild = (Stage(name="good", epochs=2), Stage(name="wild", epochs=2, scale=5000.0))
    recipe = RECIPE.replace(strategy=wild, monitor="valid_loss")
    learner, training = learn(toy_manifest, recipe)
    best = training.history.loc[training.history["valid_loss"].idxmin()]
    assert training.best == {"monitor": "valid_loss", "best_epoch": best["epoch"], "best_value": best["valid_loss"]}
    assert best["stage"] == "good"
    assert learner.validate()[0] == pytest.approx(best["valid_loss"], rel=1e-4)


def test_patience_ends_a_stage_and_the_next_one_begins(toy_manifest):
    stages = (Stage(name="idle", epochs=6, scale=0.0, patience=2), Stage(name="after", epochs=1))
    _, training = learn(toy_manifest, RECIPE.replace(strategy=stages, monitor="valid_loss"))
    assert training.history["stage"].tolist().count("idle") <= 4
    assert training.history["stage"].iloc[-1] == "after"


def test_the_same_recipe_gives_the_same_weights(toy_manifest):
    states = [learn(toy_manifest, RECIPE)[0].model.state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_loader_workers_change_nothing(toy_manifest):
    states = [learn(toy_manifest, RECIPE.replace(workers=n))[0].model.state_dict() for n in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Spoil(Callback):
    order = -100

    def after_pred(self):
        if self.training:
            self.learn.pred = self.pred * math.nan


def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    learner.add_cb(Spoil())
    with pytest.raises(TrainingError, match="Lower --learning-rate"):
        train(learner, RECIPE)
    assert all(torch.isfinite(parameter).all() for parameter in learner.model.parameters())


def test_rates_fall_geometrically_from_head_to_stem_or_follow_the_multiples(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    learner.create_opt()
    np.testing.assert_allclose(
        compute_group_rates(learner, Stage(groups=5, layer_lr_ratio=16.0), 0.16), [0.01, 0.02, 0.04, 0.08, 0.16]
    )
    np.testing.assert_allclose(
        compute_group_rates(learner, Stage(groups=2, layer_lr_ratio=10.0), 1.0), [0.1, 0.1, 0.1, 0.1, 1.0]
    )
    multiples = Stage(groups=3, multiples=(0.1, 0.5, 1.0))
    np.testing.assert_allclose(compute_group_rates(learner, multiples, 2.0), [0.2, 0.2, 0.2, 1.0, 2.0])


@pytest.mark.parametrize(
    ("backbone", "batch_norm", "told"),
    [("mobilenetv2_035", "learn", True), ("mobilenetv2_035", "frozen", False), ("convnext_atto", "learn", False)],
)
def test_a_stage_that_does_not_begin_where_the_last_one_ended_is_told(toy_manifest, caplog, backbone, batch_norm, told):
    stages = (Stage(name="head", groups=1, epochs=0), Stage(name="entire", epochs=0, batch_norm=batch_norm))
    recipe = RECIPE.replace(backbone=backbone, strategy=stages)
    warn_batchnorm_shift(make_learner(make_loaders(toy_manifest, recipe), recipe), resolve_stages(recipe, 5))
    assert ("stage entire learns other batch norm statistics than stage head had" in caplog.text) == told


def test_a_stage_without_a_spread_takes_the_recipes_and_a_slice_gives_both(toy_manifest):
    recipe = RECIPE.replace(learning_rate=slice(1e-5, 1e-3), strategy="full")
    (stage,) = resolve_stages(recipe, 5)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    learner.create_opt()
    np.testing.assert_allclose(compute_group_rates(learner, stage, recipe.learning_rate)[[0, 2, 4]], [1e-5, 1e-4, 1e-3])
    (own,) = resolve_stages(recipe.replace(strategy=(Stage(layer_lr_ratio=2.0),)), 5)
    assert own.layer_lr_ratio == 2


def test_more_multiples_than_groups_are_refused_and_fewer_leave_the_first_to_the_earlier_groups():
    six = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    with pytest.raises(RecipeError, match="Give at most one a group"):
        resolve_stages(RECIPE.replace(strategy=(Stage(multiples=six),)), 5)
    assert resolve_stages(RECIPE.replace(strategy=(Stage(multiples=six[-4:]),)), 5)[0].multiples == six[-4:]


@pytest.mark.parametrize("groups", [3, 4, 5])
@pytest.mark.parametrize("name", ["lp_ft", "gradual", "full", "head", "linear_probe"])
def test_every_strategy_suits_networks_of_three_to_five_groups(monkeypatch, name, groups):
    for stage in resolve_stages(RECIPE.replace(strategy=name, weights="pretrained"), groups):
        assert stage.groups <= groups
    monkeypatch.setitem(STRATEGIES, name, (Stage(multiples=(0.1, 0.2, 0.3, 0.4, 0.5)),))
    cut = resolve_stages(RECIPE.replace(strategy=name, weights="pretrained"), groups)[0].multiples
    assert cut == (0.1, 0.2, 0.3, 0.4, 0.5)[-groups:]


def test_a_curve_with_a_valley_gives_a_rate_and_one_without_gives_a_reason():
    rates = np.geomspace(1e-7, 10, 100)
    valley = np.where(rates < 1e-4, 1.0, np.where(rates < 0.1, 1 - 0.2 * np.log10(rates / 1e-4), 5.0))
    rate, _ = suggest_learning_rate(rates, valley)
    assert 1e-4 < rate < 0.1
    assert suggest_learning_rate(rates, np.ones(100)) == (None, "the loss falls nowhere on the curve")
    assert suggest_learning_rate(rates[:30], np.full(30, np.nan))[0] is None
    assert "diverged" in suggest_learning_rate(rates[:20], valley[:20])[1]


def test_finding_a_rate_keeps_the_curve_records_the_choice_and_leaves_the_weights(toy_manifest, monkeypatch):
    monkeypatch.setattr("fastcxr.training.schedules.LR_FIND_STEPS", 40)
    _, training = learn(toy_manifest, RECIPE.replace(learning_rate="find"))
    assert set(training.curves.columns) == {"stage", "rate", "loss"}
    assert len(training.curves) > 10
    assert training.rates[0]["stage"] == "all"
    assert training.rates[0]["reason"]


def test_macro_auroc_leaves_out_an_absent_class_and_is_nan_for_a_single_one():
    probability = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.3, 0.4, 0.3]])
    assert compute_macro_auroc(probability, torch.tensor([0, 1, 0, 1])) == 1.0
    assert math.isnan(compute_macro_auroc(probability, torch.tensor([1, 1, 1, 1])))


def test_without_any_figure_the_last_epoch_is_kept(caplog):
    best, network = BestEpoch("auroc"), torch.nn.Linear(1, 1)
    for epoch in (1, 2):
        torch.nn.init.constant_(network.weight, epoch)
        best.update({"auroc": math.nan, "epoch": epoch}, network)
    assert best.summary() == {"monitor": "auroc", "best_epoch": 2, "best_value": None}
    assert best.weights["weight"].item() == 2
    assert "the last epoch is kept" in caplog.text


def test_bfloat16_trains_and_ends_in_full_precision_weights(toy_manifest):
    learner, training = learn(toy_manifest, RECIPE.replace(precision="bf16"))
    assert np.isfinite(training.history["train_loss"]).all()
    assert next(learner.model.parameters()).dtype == torch.float32


def test_the_learner_is_a_plain_fastai_learner(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, 1e-3)
        probability, truth = learner.get_preds()
    assert probability.shape == (6, 3)
    torch.testing.assert_close(torch.as_tensor(probability.sum(dim=1)), torch.ones(6))
