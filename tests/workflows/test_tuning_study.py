"""Tests of the study of a tuning: its trials after interruptions, the early end of trials, and the stored file."""

import math

import pytest

from fastcxr.errors import OutputError
from fastcxr.workflows.tuning_space import Dimension
from fastcxr.workflows.tuning_study import COMPLETE, FAILED, PRUNED, STUDY_FILE, Study, TrialEnded, make_table

pytestmark = pytest.mark.needs("optuna")

SPACE = (
    Dimension(name="learning_rate", low=1e-4, high=1e-2),
    Dimension(name="loss", choices=("cross_entropy", "focal")),
    Dimension(name="focal_gamma", low=0.5, high=5, is_log=False, loss="focal"),
    Dimension(name="hflip_tta", choices=(True, False)),
)
FIRST = {"learning_rate": 2e-3, "loss": "cross_entropy", "hflip_tta": True}
N_TRIALS = 12  # more than are random


def open_study(folder, seed=7, *, is_maximized=True) -> Study:
    folder.mkdir(exist_ok=True)
    return Study(folder, SPACE, seed, is_maximized=is_maximized)


def compute_objective(options) -> float:
    return -abs(math.log10(options["learning_rate"]) + 2.5) + 0.1 * (options["loss"] == "focal")


def run_trial(study, fails=False):
    proposed = study.propose(FIRST, None)
    if fails:
        proposed.finish(FAILED, math.nan, 1.0, "out of memory")
    else:
        proposed.finish(COMPLETE, compute_objective(proposed.options), 1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trials of an uninterrupted study; the fourth one fails."""
    study = open_study(tmp_path_factory.mktemp("whole"))
    for number in range(N_TRIALS):
        run_trial(study, fails=number == 3)
    return study


def test_an_interrupted_study_has_the_same_trials_as_an_uninterrupted_one(whole, tmp_path):
    for number in range(N_TRIALS):
        study = open_study(tmp_path / "study")
        assert len(study.trials) == number
        if number in (0, 5, 8):  # a trial is interrupted, in each process that follows
            study.propose(FIRST, None)
            study = open_study(tmp_path / "study")
        run_trial(study, fails=number == 3)
    assert study.trials == whole.trials
    assert study.find_best() == whole.find_best()


def test_a_first_trial_that_is_only_queued_is_proposed_once(whole, tmp_path, monkeypatch):
    study = open_study(tmp_path / "study")
    study._study.enqueue_trial(FIRST)  # the process ends here
    study = open_study(tmp_path / "study")
    for _ in range(3):
        run_trial(study)
    assert [trial.options for trial in study.trials] == [trial.options for trial in whole.trials[:3]]


def test_the_first_trial_has_the_given_options_and_a_loss_its_own(whole):
    assert whole.trials[0].options == FIRST
    for trial in whole.trials:
        assert ("focal_gamma" in trial.options) == (trial.options["loss"] == "focal")
    assert len({str(trial.options) for trial in whole.trials}) == N_TRIALS


def test_another_seed_proposes_other_options(whole, tmp_path):
    study = open_study(tmp_path / "study", seed=8)
    for _ in range(3):
        run_trial(study)
    assert study.trials[0].options == FIRST
    assert study.trials[1].options != whole.trials[1].options


def test_the_best_trial_is_the_first_of_equal_ones_and_never_a_pruned_one(tmp_path):
    study = open_study(tmp_path / "study", is_maximized=False)
    assert study.find_best() is None
    for state, objective in ((COMPLETE, 2.0), (FAILED, math.nan), (COMPLETE, 1.0), (COMPLETE, 1.0)):
        study.propose(FIRST, None).finish(state, objective, 0.1, "reason")
    proposed = study.propose(FIRST, 3)
    proposed.report_epoch(1, 0.5)
    proposed.finish(PRUNED, 0.5, 0.1, "worse")
    best = study.find_best()
    assert best and best.number == 3
    assert [trial.state for trial in study.trials] == [COMPLETE, FAILED, COMPLETE, COMPLETE, PRUNED]
    table = make_table(study.trials, SPACE)
    assert table["objective"].fillna(-1).tolist() == [2, -1, 1, 1, 0.5] and table["reason"].iloc[4] == "worse"


def test_a_trial_worse_than_the_median_is_ended_early_but_not_in_its_last_epoch(tmp_path):
    study = open_study(tmp_path / "study")
    for value in (0.6, 0.7, 0.8, 0.9):  # none of these is ended
        proposed = study.propose(FIRST, 6)
        for epoch in range(1, 7):
            proposed.report_epoch(epoch, value if value > 0.6 else math.nan if epoch == 2 else value)
        proposed.finish(COMPLETE, value, 0.1)
    proposed = study.propose(FIRST, 6)
    for epoch in (1, 2):  # a third of the epochs
        proposed.report_epoch(epoch, 0.5)
    with pytest.raises(TrialEnded, match="worse than the median after epoch 3 of 6") as ended:
        proposed.report_epoch(3, 0.5)
    assert ended.value.value == 0.5
    proposed.finish(PRUNED, 0.5, 0.1, ended.value.reason)
    proposed = study.propose(FIRST, 6)
    proposed.report_epoch(6, 0.1)
    assert len(study.trials) == 5


def test_an_incomplete_last_line_is_removed(whole, tmp_path):
    study = open_study(tmp_path / "study")
    for _ in range(2):
        run_trial(study)
    path = tmp_path / "study" / STUDY_FILE
    content = path.read_bytes()
    path.write_bytes(content[:-10])  # in the line with the result of the second trial
    study = open_study(tmp_path / "study")
    assert study.trials == whole.trials[:1]
    run_trial(study)
    assert open_study(tmp_path / "study").trials == whole.trials[:2]


def test_a_damaged_study_is_an_error_of_one_line(tmp_path):
    (tmp_path / STUDY_FILE).write_bytes(b"no journal\n" * 10)
    with pytest.raises(OutputError, match="the study cannot be read") as error:
        open_study(tmp_path)
    assert error.value.code == "E743"
