"""Stages train the intended layers, the best epoch is restored, and a seed reproduces a run."""

import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import save_file
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import RecipeError
from fastcxr.training import trainer
from fastcxr.training.callbacks import BestEpoch
from fastcxr.training.learner import compute_macro_auroc, make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.schedules import compute_group_rates, suggest_learning_rate
from fastcxr.training.trainer import STRATEGIES, resolve_stages, train, unfreeze, warn_batchnorm_shift

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=1, strategy="full")
CPU_RECIPE = RECIPE.replace(device="cpu")  # for results that are bit-identical only there


def run_training(manifest, recipe):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    return learner, train(learner, recipe)


def test_loaders_of_a_backbone_with_other_pixels_are_rejected(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    with pytest.raises(RecipeError, match=r"images of 64 px, 3 channels, .* expects 96 px.* Make the loaders with"):
        make_learner(loaders, RECIPE.replace(image_size=96))
    with pytest.raises(RecipeError, match=r"mean \(0.5, .* but eva-x-tiny of the recipe .* mean \(0.5056, "):
        make_learner(loaders, RECIPE.replace(backbone="eva-x-tiny"))
    assert make_learner(loaders, RECIPE.replace(loss="focal", batch_size=2)).dls is loaders, "same pixels"


def split_state(learner):
    state = learner.model.state_dict()
    return {k: v.clone() for k, v in state.items() if not k.startswith("fc.")}, state["fc.weight"].clone()


def test_strategy_head_changes_only_the_head(toy_manifest):
    recipe = RECIPE.replace(strategy="head", epochs=2)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    backbone, head = split_state(learner)
    train(learner, recipe)
    backbone_after, head_after = split_state(learner)
    assert all(torch.equal(backbone[name], backbone_after[name]) for name in backbone), "batch norm statistics included"
    assert not torch.equal(head, head_after)


def test_a_frozen_backbone_has_no_gradients(toy_manifest):
    recipe = RECIPE.replace(strategy="head")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    unfreeze(learner, resolve_stages(recipe, 5)[0])
    assert [p.requires_grad for group in learner.splitter(learner.model)[:-1] for p in group].count(True) == 0


@pytest.fixture
def weights(toy_manifest, tmp_path):
    """Return the path of a weights file."""
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    save_file(learner.model.state_dict(), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def test_gradual_runs_its_stages_with_epochs_numbered_across_them(toy_manifest, weights):
    _, training = run_training(toy_manifest, RECIPE.replace(strategy="gradual", epochs=2, weights=weights))
    assert training.history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert training.history["stage"].tolist() == ["head", "head", "upper", "all", "all"]
    columns = {"train_loss", "valid_loss", "accuracy", "auroc", "top2_accuracy", "seconds", "best"}
    assert columns < set(training.history.columns)


def test_gradual_falls_back_to_full_with_random_weights(toy_manifest, caplog):
    _, training = run_training(toy_manifest, RECIPE.replace(strategy="gradual"))
    assert training.history["stage"].tolist() == ["all"]
    assert "needs pretrained weights" in caplog.text


def copy_batch_norm_statistics(learner):
    return {k: v.clone() for k, v in learner.model.state_dict().items() if "running" in k}


@pytest.mark.parametrize("mode", ["learn", "frozen"])
def test_batch_norm_statistics_change_only_in_mode_learn(toy_manifest, mode):
    recipe = RECIPE.replace(strategy=(Stage(batch_norm=mode),))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    before = copy_batch_norm_statistics(learner)
    train(learner, recipe)
    after = copy_batch_norm_statistics(learner)
    assert all(torch.equal(before[name], after[name]) for name in before) == (mode == "frozen")


def test_top2_accuracy_is_omitted_for_two_classes(toy_manifest):
    two = toy_manifest[toy_manifest["label"] != "haze"].reset_index(drop=True)
    _, training = run_training(two, RECIPE)
    assert "top2_accuracy" not in training.history


def test_the_weights_of_the_best_epoch_of_all_stages_are_restored(toy_manifest):
    stages = (Stage(name="good", epochs=2), Stage(name="diverging", epochs=2, scale=5000.0))
    recipe = RECIPE.replace(strategy=stages, monitor="valid_loss")
    learner, training = run_training(toy_manifest, recipe)
    best = training.history.loc[training.history["valid_loss"].idxmin()]
    assert training.best == {"monitor": "valid_loss", "best_epoch": best["epoch"], "best_value": best["valid_loss"]}
    assert best["stage"] == "good"
    assert learner.validate()[0] == pytest.approx(best["valid_loss"], rel=1e-4)


def test_early_stopping_ends_a_stage_and_the_next_one_starts(toy_manifest):
    stages = (Stage(name="constant", epochs=6, scale=0.0, patience=2), Stage(name="after", epochs=1))
    _, training = run_training(toy_manifest, RECIPE.replace(strategy=stages, monitor="valid_loss"))
    assert training.history["stage"].tolist().count("constant") <= 4
    assert training.history["stage"].iloc[-1] == "after"


def test_training_is_reproducible(toy_manifest):
    states = [run_training(toy_manifest, CPU_RECIPE)[0].model.state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_number_of_workers_does_not_change_the_weights(toy_manifest):
    states = [run_training(toy_manifest, CPU_RECIPE.replace(workers=n))[0].model.state_dict() for n in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_group_rates_are_geometric_or_follow_the_multiples(toy_manifest):
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
    ("backbone", "batch_norm", "is_warned"),
    [("mobilenetv2_035", "learn", True), ("mobilenetv2_035", "frozen", False), ("convnext_atto", "learn", False)],
)
def test_a_stage_that_changes_batch_norm_statistics_is_warned_of(toy_manifest, caplog, backbone, batch_norm, is_warned):
    stages = (Stage(name="head", groups=1, epochs=0), Stage(name="entire", epochs=0, batch_norm=batch_norm))
    recipe = RECIPE.replace(backbone=backbone, strategy=stages)
    warn_batchnorm_shift(make_learner(make_loaders(toy_manifest, recipe), recipe), resolve_stages(recipe, 5))
    assert ("stage entire changes the batch-norm statistics, and the head of stage head" in caplog.text) == is_warned


def test_a_stage_uses_the_layer_lr_ratio_of_the_recipe_by_default(toy_manifest):
    recipe = RECIPE.replace(learning_rate=slice(1e-5, 1e-3), strategy="full")
    (stage,) = resolve_stages(recipe, 5)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    learner.create_opt()
    np.testing.assert_allclose(compute_group_rates(learner, stage, recipe.learning_rate)[[0, 2, 4]], [1e-5, 1e-4, 1e-3])
    (resolved,) = resolve_stages(recipe.replace(strategy=(Stage(layer_lr_ratio=2.0),)), 5)
    assert resolved.layer_lr_ratio == 2


def test_more_multiples_than_groups_are_rejected_and_fewer_are_accepted():
    six = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    with pytest.raises(RecipeError, match="Pass at most one per trained group"):
        resolve_stages(RECIPE.replace(strategy=(Stage(multiples=six),)), 5)
    assert resolve_stages(RECIPE.replace(strategy=(Stage(multiples=six[-4:]),)), 5)[0].multiples == six[-4:]


@pytest.mark.parametrize("groups", [3, 4, 5])
@pytest.mark.parametrize("name", ["lp_ft", "gradual", "full", "head", "linear_probe"])
def test_every_strategy_supports_three_to_five_groups(monkeypatch, name, groups):
    for stage in resolve_stages(RECIPE.replace(strategy=name, weights="pretrained"), groups):
        assert stage.groups <= groups
    monkeypatch.setitem(STRATEGIES, name, (Stage(multiples=(0.1, 0.2, 0.3, 0.4, 0.5)),))
    multiples = resolve_stages(RECIPE.replace(strategy=name, weights="pretrained"), groups)[0].multiples
    assert multiples == (0.1, 0.2, 0.3, 0.4, 0.5)[-groups:]


def test_a_strategy_for_five_groups_is_adapted_to_the_blocks_of_a_transformer(monkeypatch):
    recipe = RECIPE.replace(strategy="gradual", weights="pretrained")
    assert [stage.groups for stage in resolve_stages(recipe, 14)] == [1, 7, 14], "head, upper half, all"
    (stage,) = resolve_stages(recipe.replace(strategy="lp_ft"), 14)
    assert stage.multiples == (*[0.1] * 4, *[0.2] * 3, *[0.3] * 3, *[0.5] * 3, 0.1)
    monkeypatch.setitem(STRATEGIES, "full", (Stage(groups=3, multiples=(0.1, 1.0)),))
    (stage,) = resolve_stages(recipe.replace(strategy="full"), 9)
    assert (stage.groups, stage.multiples) == (5, (0.1, 0.1, 1.0))
    own = RECIPE.replace(strategy=(Stage(groups=3),))
    assert resolve_stages(own, 14)[0].groups == 3, "stages of a recipe count the groups of its network"


def test_a_curve_without_a_valley_gives_no_rate_but_a_reason():
    rates = np.geomspace(1e-7, 10, 100)
    valley = np.where(rates < 1e-4, 1.0, np.where(rates < 0.1, 1 - 0.2 * np.log10(rates / 1e-4), 5.0))
    rate, _ = suggest_learning_rate(rates, valley)
    assert 1e-4 < rate < 0.1
    assert suggest_learning_rate(rates, np.ones(100)) == (None, "the loss does not decrease at any learning rate")
    assert suggest_learning_rate(rates[:30], np.full(30, np.nan))[0] is None
    assert "diverged" in suggest_learning_rate(rates[:20], valley[:20])[1]


def test_the_learning_rate_finder_records_its_curve_and_reason(toy_manifest, monkeypatch):
    monkeypatch.setattr("fastcxr.training.schedules.LR_FIND_STEPS", 40)
    _, training = run_training(toy_manifest, RECIPE.replace(learning_rate="find"))
    assert set(training.curves.columns) == {"stage", "rate", "loss"}
    assert len(training.curves) > 10
    assert training.rates[0]["stage"] == "all"
    assert training.rates[0]["reason"]


def test_macro_auroc_skips_absent_classes_and_is_nan_for_a_single_class():
    probability = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.3, 0.4, 0.3]])
    assert compute_macro_auroc(probability, torch.tensor([0, 1, 0, 1])) == 1.0
    assert math.isnan(compute_macro_auroc(probability, torch.tensor([1, 1, 1, 1])))


def test_the_last_epoch_is_kept_if_the_metric_is_always_nan(caplog):
    best, network = BestEpoch("auroc"), torch.nn.Linear(1, 1)
    for epoch in (1, 2):
        torch.nn.init.constant_(network.weight, epoch)
        best.update({"auroc": math.nan, "epoch": epoch}, network)
    assert best.summary() == {"monitor": "auroc", "best_epoch": 2, "best_value": None}
    assert best.weights["weight"].item() == 2
    assert "the weights of the last epoch are kept" in caplog.text


def test_bfloat16_training_keeps_float32_weights(toy_manifest):
    learner, training = run_training(toy_manifest, RECIPE.replace(precision="bf16"))
    assert np.isfinite(training.history["train_loss"]).all()
    assert next(learner.model.parameters()).dtype == torch.float32


def test_fastai_methods_work_on_the_learner(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, 1e-3)
        probability, truth = learner.get_preds()
    assert probability.shape == (6, 3)
    torch.testing.assert_close(torch.as_tensor(probability.sum(dim=1)), torch.ones(6))


@pytest.mark.parametrize(
    ("min_steps", "deterministic", "expected"), [(6, False, True), (7, False, False), (6, True, False)]
)
def test_cudnn_searches_algorithms_only_in_long_stages(toy_manifest, monkeypatch, min_steps, deterministic, expected):
    monkeypatch.setattr(trainer, "MIN_STEPS_FOR_SEARCH", min_steps)  # two epochs of three steps
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not expected)
    recipe, searches = RECIPE.replace(epochs=2, deterministic=deterministic, device="cpu"), []
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    learner.add_cb(Callback(before_batch=lambda callback: searches.append(torch.backends.cudnn.benchmark)))
    train(learner, recipe)
    assert searches == [expected] * 8  # and one validation batch per epoch
    assert torch.backends.cudnn.benchmark is not expected
