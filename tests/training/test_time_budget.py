"""A time limit picks the epochs that fit, says so, and leaves what has been learned."""

import math
import time

import pytest
import torch
from safetensors.torch import save_file

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import RecipeError, TrainingError
from fastcxr.progress.base import Progress
from fastcxr.training import time_budget as time_limit
from fastcxr.training import trainer as strategies
from fastcxr.training.callbacks import BestEpoch, HistoryCallback
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.time_budget import REPORT_SECONDS, Deadline, compute_epochs_in_time, measure_step_seconds

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=4, strategy="full")


@pytest.fixture
def learner(toy_manifest):
    return make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)


@pytest.fixture
def a_step_takes(monkeypatch):
    """Sets the seconds of a step."""
    return lambda seconds: monkeypatch.setattr(time_limit, "measure_step_seconds", lambda learner: seconds)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (None, math.inf)])
def test_a_limit_is_read_as_it_is_written(text, seconds):
    assert Deadline.parse(text).seconds == seconds


@pytest.mark.parametrize("text", ["10", "ten", "10 m", "-1m", "1d"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(RecipeError, match="90s, 10m or 1.5h"):
        Recipe(time_limit=text)


def test_what_is_left_becomes_less_and_keeps_room_for_the_report():
    deadline = Deadline(100, started=time.perf_counter() - 60)
    assert 39 - REPORT_SECONDS < deadline.seconds_left < 40 - REPORT_SECONDS + 0.1


def test_what_was_spent_before_counts_however_often_a_run_was_broken_off():
    report = HistoryCallback(BestEpoch("valid_loss"), Progress(), 4, Deadline(100))
    report.start_stage(Stage())
    for spent in (30, 50):
        report.load_state_dict(report.state_dict() | {"spent": spent})
    assert report.state_dict()["spent"] == pytest.approx(50, abs=1)
    assert report.deadline.seconds_left == pytest.approx(100 - 50 - REPORT_SECONDS, abs=1)


def test_as_many_epochs_are_chosen_as_fit(learner, a_step_takes):
    a_step_takes(3.0)
    train, valid = len(learner.dls.train), len(learner.dls.valid)
    epoch, afterwards = 3.0 * train + valid, 2 * valid + (train + valid)  # a report, and the OOD detector
    assert compute_epochs_in_time(learner, 4, 2.5 * epoch + afterwards) == (2, epoch)
    assert compute_epochs_in_time(learner, 4, 2.5 * epoch + afterwards, n_steps_before=math.ceil(0.6 * epoch / 3)) == (
        1,
        epoch,
    )
    assert compute_epochs_in_time(learner, 4, 100 * epoch) == (4, epoch)
    assert compute_epochs_in_time(learner, 4, -5.0) == (0, epoch)


def test_without_a_limit_nothing_is_measured(learner, monkeypatch):
    monkeypatch.setattr(time_limit, "measure_step_seconds", None)
    assert compute_epochs_in_time(learner, 4, math.inf) == (4, 0.0)


def test_a_step_is_measured_without_a_trace(learner):
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    assert measure_step_seconds(learner) > 0
    after = learner.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_training_teaches_what_fits_and_says_so(learner, a_step_takes, caplog):
    a_step_takes(1.0)
    epoch = len(learner.dls.train) + len(learner.dls.valid) / 3
    training = strategies.train(learner, RECIPE, deadline=Deadline(REPORT_SECONDS + 3.3 * epoch))
    assert len(training.history) == 2
    assert "stage all: 2 of 4 epochs fit into the time limit" in caplog.text


def test_not_one_epoch_is_an_error_with_a_way_out(learner, a_step_takes):
    a_step_takes(1e6)
    with pytest.raises(TrainingError, match="not one epoch fits into 1m.*--strategy linear_probe"):
        strategies.train(learner, RECIPE.replace(time_limit="1m"))


def test_a_fitted_head_stands_where_no_epoch_fits(toy_manifest, learner, tmp_path, a_step_takes):
    save_file(learner.model.state_dict(), tmp_path / "start.safetensors")
    recipe = RECIPE.replace(strategy="lp_ft", weights=str(tmp_path / "start.safetensors"))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    a_step_takes(1e6)
    training = strategies.train(learner, recipe.replace(time_limit="10m"))
    assert training.history["stage"].tolist() == ["probe"]


class Melting:
    """Time enough when a stage begins, and none after its first epoch."""

    def __init__(self):
        self.answers = iter([1000.0])

    @property
    def seconds_left(self):
        return next(self.answers, 0.0)


def test_a_stage_ends_where_the_machine_became_slower_than_it_was(learner, a_step_takes, caplog):
    a_step_takes(1e-6)
    training = strategies.train(learner, RECIPE, deadline=Melting())
    assert len(training.history) == 1
    assert "another epoch does not fit" in caplog.text
