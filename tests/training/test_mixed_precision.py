"""The loss scale of float16 survives stages and resume, and skipped steps change no weight."""

import logging
import math

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision as FastaiMixedPrecision
from fastai.callback.training import GradientAccumulation, GradientClip
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import TrainingError
from fastcxr.inference.predict import predict
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows.train_dir import collect_choices

RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=6, epochs=1, strategy="full", learning_rate=1e-3, precision="fp16"
)


class Overflow(Callback):
    """Make a gradient infinite in these training steps of each fit, counted from 0."""

    def __init__(self, steps):
        self.steps, self.is_changed = steps, []

    def after_backward(self):
        self.weights = [parameter.clone() for parameter in self.model.parameters()]
        if self.train_iter in self.steps:
            next(self.model.parameters()).grad.fill_(math.inf)

    def after_batch(self):
        if self.training:
            pairs = zip(self.weights, self.model.parameters(), strict=True)
            self.is_changed.append(any(not torch.equal(before, after) for before, after in pairs))


class RecordDtypes(Callback):
    """Record the type of the maps of the last convolution."""

    def __init__(self):
        self.dtypes = set()

    def before_fit(self):
        conv = [module for module in self.model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        self.hook = conv.register_forward_hook(lambda module, inputs, output: self.dtypes.add(output.dtype))

    def after_fit(self):
        self.hook.remove()


def make(manifest, recipe=RECIPE, callbacks=()):
    return make_learner(make_loaders(manifest, recipe), recipe).add_cbs(callbacks)


def fit_quietly(learner, *arguments, **options):
    with learner.no_bar(), learner.no_logging():
        learner.fit(*arguments, **options)
    return learner


def get_scaler_state(learner):
    return learner.mixed_precision.state_dict()["scaler"]


def test_float16_training_keeps_float32_weights_and_agrees_with_float32(toy_manifest):
    record = RecordDtypes()
    learner, reference = make(toy_manifest, callbacks=[record]), make(toy_manifest, RECIPE.replace(precision="fp32"))
    losses = [train(learner, RECIPE).history["train_loss"], train(reference, RECIPE).history["train_loss"]]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.01)
    assert record.dtypes == {torch.float16}
    assert {parameter.dtype for parameter in learner.model.parameters()} == {torch.float32}
    probability = [predict(one, toy_manifest).probability for one in (learner, reference)]
    np.testing.assert_allclose(*probability, atol=0.02)


def test_the_loss_scale_survives_stages(toy_manifest):
    stages = (Stage(name="head", groups=1, epochs=1), Stage(name="all", epochs=2))
    learner = make(toy_manifest)
    train(learner, RECIPE.replace(strategy=stages))
    assert get_scaler_state(learner)["_growth_tracker"] == 3 * len(learner.dls.train)


def test_a_step_with_an_infinite_gradient_is_skipped_counted_and_reported(toy_manifest, caplog):
    overflow = Overflow([1])
    learner = make(toy_manifest, callbacks=[overflow])
    with caplog.at_level(logging.INFO, "fastcxr"):
        training = train(learner, RECIPE)
    assert overflow.is_changed == [True, False, True]
    assert get_scaler_state(learner)["scale"] == 2.0**15
    assert "1 step skipped so far because float16 gradients overflowed" in caplog.text
    assert "the loss scale is now 32768" in caplog.text
    assert collect_choices(learner, RECIPE, training)["skipped_steps"] == 1
    assert np.isfinite(training.history["train_loss"]).all()


def test_the_number_of_skipped_steps_is_recorded_in_float16_only(toy_manifest):
    recipe = RECIPE.replace(precision="fp32")
    learner = make(toy_manifest, recipe)
    choices = collect_choices(learner, recipe, train(learner, recipe))
    assert choices["precision"] == "fp32" and "skipped_steps" not in choices


def test_gradients_that_always_overflow_end_the_training(toy_manifest):
    learner = make(toy_manifest, callbacks=[Overflow(range(100))])
    with pytest.raises(
        TrainingError,
        match=r"overflow in float16 in epoch 10: after 30 skipped steps the loss scale is 6.1e-05, expected at least "
        r"0.0001.*Lower `learning_rate`, or pass `precision='fp32'`",
    ):
        train(learner, RECIPE.replace(epochs=20))


def test_the_learning_rate_finder_leaves_the_loss_scale_unchanged(toy_manifest):
    learner = fit_quietly(make(toy_manifest), 1)
    before = learner.mixed_precision.state_dict()
    overflow = Overflow(range(5, 100))
    with learner.no_bar(), learner.added_cbs([overflow]):
        learner.lr_find(num_it=50, show_plot=False, suggest_funcs=None)
    assert overflow.is_changed.count(False) > 30, "more than a training may skip"
    assert learner.mixed_precision.state_dict() == before


def test_own_calls_of_fastai_keep_the_loss_scale(toy_manifest):
    learner = make(toy_manifest)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(1)
    assert get_scaler_state(learner)["_growth_tracker"] == 2 * len(learner.dls.train)
    assert np.isfinite(learner.recorder.values[-1][:2]).all()


def test_gradients_are_clipped_after_they_are_unscaled_and_accumulated_before(toy_manifest):
    norms = []

    class RecordNorm(Callback):
        order = GradientClip.order + 1

        def before_step(self):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()]).item())

    callbacks = [GradientClip(0.1), RecordNorm(), GradientAccumulation(n_acc=18)]
    fit_quietly(make(toy_manifest), 2, cbs=callbacks)
    assert norms == pytest.approx([0.1, 0.1], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "precision", "dtype"),
    [("to_fp16", "fp16", torch.float16), ("to_bf16", "bf16", torch.bfloat16), ("to_fp32", "fp32", torch.float32)],
)
def test_methods_of_fastai_change_the_precision_of_training_and_inference(toy_manifest, method, precision, dtype):
    record = RecordDtypes()
    learner = make(toy_manifest, RECIPE.replace(precision="fp32" if precision == "bf16" else "bf16"), [record])
    fit_quietly(getattr(learner, method)(), 1)
    assert record.dtypes == {dtype}
    assert learner.fastcxr.precision == precision
    assert (get_scaler_state(learner) is not None) == (precision == "fp16")


def test_options_of_the_gradient_scaler_are_passed_to_it(toy_manifest):
    learner = fit_quietly(make(toy_manifest).to_fp16(init_scale=64.0), 1)
    assert get_scaler_state(learner)["scale"] == 64


def test_a_second_mixed_precision_callback_is_rejected(toy_manifest):
    with pytest.raises(TrainingError, match=r"this learner has its own. .*call `learner.to_fp16\(\)`"):
        fit_quietly(make(toy_manifest), 1, cbs=FastaiMixedPrecision())
