"""Learning rates and momenta of every optimizer step follow the schedule."""

import math

import numpy as np
import pytest
from fastai.callback.core import Callback
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

RATE, STEPS_PER_EPOCH = 1e-3, 3
RECIPE = Recipe(NAME, weights="none", image_size=32, batch_size=6, epochs=4, strategy="full", learning_rate=RATE)


class RecordRates(Callback):
    order = 70  # after the schedule sets the rates

    def __init__(self):
        self.rates, self.momenta = [], []

    def before_batch(self):
        if self.training:
            self.rates.append([group["lr"] for group in self.opt.hypers])
            self.momenta.append(self.opt.hypers[-1].get("mom"))


def record_rates(manifest, recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return rates, shape (steps, groups), and momenta, shape (steps,)."""
    learner, recorder = make_learner(make_loaders(manifest, recipe), recipe), RecordRates()
    learner.add_cb(recorder)
    train(learner, recipe)
    return np.array(recorder.rates), np.array(recorder.momenta)


def interpolate_cosine(start: float, end: float, share: float) -> float:
    return start + (1 - math.cos(math.pi * share)) * (end - start) / 2


def test_one_cycle_peaks_after_a_quarter_with_the_lowest_momentum(toy_manifest):
    rates, momenta = record_rates(toy_manifest, RECIPE)
    done = np.arange(12) / 12
    expected = [
        interpolate_cosine(RATE / 25, RATE, x / 0.25)
        if x < 0.25
        else interpolate_cosine(RATE, RATE / 1e5, (x - 0.25) / 0.75)
        for x in done
    ]
    np.testing.assert_allclose(rates[:, -1], expected, rtol=1e-4)
    assert (momenta[0], momenta[3]) == (0.95, 0.85)


def test_flat_cosine_decays_after_three_quarters(toy_manifest):
    rates, momenta = record_rates(toy_manifest, RECIPE.replace(schedule="flat_cosine"))
    np.testing.assert_allclose(rates[:9, -1], RATE)
    np.testing.assert_allclose(
        rates[9:, -1], [interpolate_cosine(RATE, RATE / 1e5, x / 3) for x in range(3)], rtol=1e-4
    )
    assert set(momenta) == {0.9}


@pytest.mark.parametrize("epochs", [4, 7])
def test_step_halves_the_rate_after_every_step_epochs(toy_manifest, epochs):
    rates, _ = record_rates(toy_manifest, RECIPE.replace(schedule="step", step_epochs=2, epochs=epochs))
    expected = np.repeat(RATE * 0.5 ** (np.arange(epochs) // 2), STEPS_PER_EPOCH)
    np.testing.assert_allclose(rates[:, -1], expected)


def test_step_restarts_in_each_stage_and_keeps_the_group_ratios(toy_manifest):
    stages = (Stage(epochs=2), Stage(epochs=2, scale=0.1, multiples=(0.1, 0.2, 0.3, 0.5, 1.0)))
    rates, _ = record_rates(
        toy_manifest, RECIPE.replace(schedule="step", step_epochs=1, step_factor=0.1, strategy=stages)
    )
    np.testing.assert_allclose(rates[::3, -1], [RATE, RATE / 10, RATE / 10, RATE / 100])
    np.testing.assert_allclose(rates[-1], np.array([0.1, 0.2, 0.3, 0.5, 1.0]) * RATE / 100)


def test_constant_keeps_rate_and_default_momentum(toy_manifest):
    rates, momenta = record_rates(toy_manifest, RECIPE.replace(schedule="constant", epochs=1, optimizer="sgd"))
    np.testing.assert_array_equal(rates, RATE)
    assert set(momenta) == {0.9}


@pytest.mark.parametrize("schedule", ["one_cycle", "flat_cosine", "step", "constant"])
def test_schedules_support_an_optimizer_without_momentum(toy_manifest, schedule):
    rates, momenta = record_rates(toy_manifest, RECIPE.replace(schedule=schedule, epochs=1, optimizer="timm:adafactor"))
    assert rates.shape == (3, 5)
    assert set(momenta) == {None}


def test_the_learning_rate_finder_covers_its_range(toy_manifest):
    recipe = RECIPE.replace(learning_rate="find", lr_find_min=1e-6, lr_find_max=1e-3, epochs=1)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    curve = train(learner, recipe).curves
    assert curve["rate"].iloc[0] == pytest.approx(1e-6)
    assert 1e-5 < curve["rate"].iloc[-1] <= 1e-3
