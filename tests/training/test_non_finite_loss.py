"""A step with a NaN or infinite loss changes nothing, and training stops with the images of its batch."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Optimizer, OptimWrapper, average_grad, momentum_step
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import TrainingError
from fastcxr.training import non_finite_loss
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.non_finite_loss import NormStatistics, StopOnNonFiniteLoss, find_read_interval
from fastcxr.training.trainer import train

RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=3, epochs=2, strategy="full", learning_rate=1e-3, precision="fp32",
    device="cpu",
)  # fmt: skip
N_STEPS = 6  # of an epoch: 18 training images


class SkippingOptimizer(Optimizer):
    """SGD with momentum whose step can be skipped."""

    def __init__(self, params, lr):
        super().__init__(params, [average_grad, momentum_step], lr=lr, mom=0.9)

    def step(self, closure=None, skip=None):
        if skip is None or not skip:
            super().step()


class BadLoss(Callback):
    """Make the loss of one training step NaN or infinite, and record what each step changes."""

    order = -100

    def __init__(self, step, factor=math.nan):
        self.bad_step, self.factor, self.changes, self.paths = step, factor, [], ""

    def before_batch(self):
        self.before = self.copy_state()

    def after_pred(self):
        if self.training and self.train_iter == self.bad_step:
            self.learn.pred = self.pred * self.factor
            rows = self.dl.batch_indices(self.iter)
            self.paths = ", ".join(self.dl.items["path"].iloc[rows])

    def after_batch(self):
        self.record()

    def record(self):
        if self.training:
            after = self.copy_state()
            self.changes.append(
                {name for name, value in after.items() if not value.equal(self.before.get(name, value))}
            )

    def copy_state(self):
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        for number, (_, _, values, _) in enumerate(self.opt.all_params()):
            state |= {f"optimizer {number} {key}": value.clone() for key, value in values.items() if key == "grad_avg"}
        return state


@pytest.fixture
def deferred(monkeypatch):
    """Read the losses as on a GPU."""
    monkeypatch.setattr(non_finite_loss, "find_read_interval", lambda learner: non_finite_loss.READ_INTERVAL_STEPS)


def make(manifest, bad_loss, recipe=RECIPE):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    learner.opt_func = SkippingOptimizer
    return learner.add_cb(bad_loss)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_read_later_changes_nothing_and_the_error_names_its_epoch_and_images(
    toy_manifest, deferred, caplog, factor
):
    bad_loss = BadLoss(step=N_STEPS + 2, factor=factor)
    learner = make(toy_manifest, bad_loss)
    with pytest.raises(TrainingError, match="training loss is nan in epoch 2, before the weight update"):
        train(learner, RECIPE)
    assert f"images of the batch with a NaN or infinite loss: {bad_loss.paths}" in caplog.text
    assert bad_loss.paths.count(".png") == 3
    assert len(bad_loss.changes) == 2 * N_STEPS, "read at the end of the epoch"
    changed = bad_loss.changes.pop(N_STEPS + 2)
    assert changed == set()
    for changes in bad_loss.changes:
        assert {"fc.weight", "bn1.running_mean", "bn1.num_batches_tracked"} < changes
    assert "optimizer 0 grad_avg" in bad_loss.changes[-1]
    assert all(torch.isfinite(value).all() for value in learner.model.state_dict().values())


def test_the_losses_are_read_every_interval(toy_manifest, deferred, monkeypatch):
    monkeypatch.setattr(non_finite_loss, "READ_INTERVAL_STEPS", 4)
    bad_loss = BadLoss(step=1)
    with pytest.raises(TrainingError, match="in epoch 1"):
        train(make(toy_manifest, bad_loss), RECIPE)
    assert len(bad_loss.changes) == 3, "the losses are read with that of the fourth step, before this step"


def test_the_losses_are_read_before_a_checkpoint_is_written(toy_manifest, tmp_path, deferred, monkeypatch):
    monkeypatch.setattr("fastcxr.training.resume.CHECKPOINT_INTERVAL_MINUTES", 0)
    bad_loss = BadLoss(step=1)
    with pytest.raises(TrainingError, match="in epoch 1"):
        train(make(toy_manifest, bad_loss), RECIPE, checkpoints=Checkpoints(tmp_path))
    assert Checkpoints(tmp_path).read()["batch"] == 1, "that of the step before"


def test_on_a_cpu_training_stops_at_once_and_restores_the_statistics(toy_manifest):
    bad_loss = BadLoss(step=1)
    learner = make(toy_manifest, bad_loss)
    with pytest.raises(TrainingError, match="training loss is nan in epoch 1"):
        train(learner, RECIPE)
    bad_loss.learn = learner
    bad_loss.record()
    assert bad_loss.changes[1:] in ([], [set()])


def test_gradients_of_several_batches_are_discarded_together(toy_manifest, deferred):
    learner = make(toy_manifest, BadLoss(step=-1))
    callback = StopOnNonFiniteLoss()
    learner.add_cb(callback)
    callback.interval, callback.losses, callback.statistics = 50, [], NormStatistics(torch.nn.Identity())
    learner.training = True
    for loss in (1.0, math.nan, 2.0):
        learner.loss = torch.tensor(loss)
        callback.after_loss()
    assert learner.skip_step.item() is True


def test_the_losses_are_read_in_every_step_where_it_is_free_or_a_step_cannot_be_skipped():
    def find(device, precision, can_skip):
        loaders, state = SimpleNamespace(device=torch.device(device)), SimpleNamespace(precision=precision)
        return find_read_interval(SimpleNamespace(dls=loaders, fastcxr=state, can_skip_steps=can_skip))

    assert find("cuda", "fp32", True) == find("cuda", "bf16", True) == find("mps", "fp32", True) == 50
    assert find("cpu", "fp32", True) == find("cuda", "fp16", True) == find("cuda", "bf16", False) == 1


def test_only_optimizers_with_a_flag_can_skip_a_step(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    for optimizer, can_skip in ((partial(OptimWrapper, opt=torch.optim.SGD), False), (SkippingOptimizer, True)):
        learner.opt_func = optimizer
        learner.create_opt()
        assert learner.can_skip_steps == can_skip


def test_statistics_of_frozen_batch_norm_are_not_copied(toy_manifest):
    recipe = RECIPE.replace(strategy=(Stage(batch_norm="frozen"),), epochs=1)
    learner, groups = make_learner(make_loaders(toy_manifest, recipe), recipe), []

    class CountBuffers(Callback):
        def after_train(self):
            groups.append(self.stop_on_non_finite_loss.statistics.buffers)

    learner.add_cb(CountBuffers())
    train(learner, recipe)
    assert groups == [[]]
