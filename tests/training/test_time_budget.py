"""A time limit reduces the number of epochs and keeps the trained weights."""

import math
import time

import pytest
import torch
from safetensors.torch import save_file
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import RecipeError, TrainingError
from fastcxr.progress.base import Progress
from fastcxr.training import time_budget
from fastcxr.training.callbacks import BestEpoch, HistoryCallback
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.time_budget import REPORT_SECONDS, Deadline, compute_epochs_in_time, measure_step_seconds
from fastcxr.training.trainer import train

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=4, strategy="full")


@pytest.fixture
def learner(toy_manifest):
    return make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)


@pytest.fixture
def set_step_seconds(monkeypatch):
    """Set the measured seconds of a step."""
    return lambda seconds: monkeypatch.setattr(time_budget, "measure_step_seconds", lambda learner: seconds)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (None, math.inf)])
def test_deadline_parses_seconds_minutes_and_hours(text, seconds):
    assert Deadline.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["10", "ten", "10 m", "-1m", "1d"])
def test_an_invalid_duration_is_rejected(text):
    with pytest.raises(RecipeError, match="90s, 10m or 1.5h"):
        Recipe(time_limit=text)


def test_seconds_left_decrease_and_exclude_the_report():
    deadline = Deadline(100, started=time.perf_counter() - 60)
    assert 39 - REPORT_SECONDS < deadline.seconds_left < 40 - REPORT_SECONDS + 0.1


def test_seconds_of_all_earlier_sessions_count():
    history = HistoryCallback(BestEpoch("valid_loss"), Progress(), 4, Deadline(100))
    history.start_stage(Stage())
    for spent in (30, 50):
        history.load_state_dict(history.state_dict() | {"spent": spent})
    assert history.state_dict()["spent"] == pytest.approx(50, abs=1)
    assert history.deadline.seconds_left == pytest.approx(100 - 50 - REPORT_SECONDS, abs=1)


def test_the_number_of_epochs_fits_into_the_time(learner, set_step_seconds):
    set_step_seconds(3.0)
    train, valid = len(learner.dls.train), len(learner.dls.valid)
    epoch, afterwards = 3.0 * train + valid, 2 * valid + (train + valid)  # a report, and the OOD detector
    assert compute_epochs_in_time(learner, 4, 2.5 * epoch + afterwards) == (2, epoch)
    assert compute_epochs_in_time(learner, 4, 2.5 * epoch + afterwards, n_steps_before=math.ceil(0.6 * epoch / 3)) == (
        1,
        epoch,
    )
    assert compute_epochs_in_time(learner, 4, 100 * epoch) == (4, epoch)
    assert compute_epochs_in_time(learner, 4, -5.0) == (0, epoch)


def test_no_step_is_measured_without_a_limit(learner, monkeypatch):
    monkeypatch.setattr(time_budget, "measure_step_seconds", None)
    assert compute_epochs_in_time(learner, 4, math.inf) == (4, 0.0)


def test_measuring_a_step_does_not_change_the_network(learner):
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    assert measure_step_seconds(learner) > 0
    after = learner.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_training_logs_and_runs_the_epochs_that_fit(learner, set_step_seconds, caplog):
    set_step_seconds(1000.0)  # the epochs of the test itself take little of the limit, also with the warm-up of a GPU
    epoch = 1000 * (len(learner.dls.train) + len(learner.dls.valid) / 3)
    result = train(learner, RECIPE, deadline=Deadline(REPORT_SECONDS + 3.3 * epoch))
    assert len(result.history) == 2
    assert "stage all: 2 of 4 epochs fit into the time limit" in caplog.text


def test_a_limit_below_one_epoch_raises_with_a_fix(learner, set_step_seconds):
    set_step_seconds(1e6)
    with pytest.raises(TrainingError, match="no epoch fits into the time limit of 1m.*`strategy='linear_probe'`"):
        train(learner, RECIPE.replace(time_limit="1m"))


def test_the_fitted_head_is_the_result_if_no_epoch_fits(toy_manifest, learner, tmp_path, set_step_seconds):
    save_file(learner.model.state_dict(), tmp_path / "start.safetensors")
    recipe = RECIPE.replace(strategy="lp_ft", weights=str(tmp_path / "start.safetensors"))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    set_step_seconds(1e6)
    result = train(learner, recipe.replace(time_limit="10m"))
    assert result.history["stage"].tolist() == ["probe"]


class ShrinkingDeadline:
    """Enough time at the start of the stage and none after its first epoch."""

    def __init__(self):
        self.values = iter([1000.0])

    @property
    def seconds_left(self):
        return next(self.values, 0.0)


def test_a_stage_ends_early_if_epochs_become_slower_than_measured(learner, set_step_seconds, caplog):
    set_step_seconds(1e-6)
    result = train(learner, RECIPE, deadline=ShrinkingDeadline())
    assert len(result.history) == 1
    assert "another epoch does not fit" in caplog.text
