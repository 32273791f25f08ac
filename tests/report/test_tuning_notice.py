"""Tests of the notice on the trials that selected the options of a run."""

import json

import pytest

from fastcxr.report.run_reader import read_run_record
from fastcxr.report.tuning_notice import OPTIMISM, describe_other_settings, find_tuned_selection

TUNING = {
    "trials": 20, "complete": 17, "pruned": 2, "failed": 1, "metric": "macro AUROC", "split": "valid", "trial": 7,
    "repeated": 3, "outside": {"image_size": 224},
    "value": 0.94321, "search": {"loss": "focal, cross_entropy", "image_size": "96, 128"},
}  # fmt: skip


def read_with(run_folder, tuning):
    path = run_folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tuning": tuning}))
    return read_run_record(run_folder)


def test_the_notice_states_trials_options_and_selection(run_folder):
    record = read_with(run_folder, TUNING)
    [(text, number)] = find_tuned_selection(record, {})
    assert number == "20 trials"
    assert (
        "Trials: 17 complete, 2 pruned, 1 failed; of these, 3 repeated the options of an earlier trial. The recipe has "
        in text
    )
    assert "The recipe has image_size 224, outside of the searched values: no trial is the recipe itself." in text
    assert "Options searched: loss (focal, cross_entropy) and image_size (96, 128)." in text
    assert "Trial 7 has the best macro AUROC of the validation images, 0.9432." in text
    assert OPTIMISM in text
    assert describe_other_settings(record).startswith("20 settings of loss and image_size were tried")


@pytest.mark.parametrize("tuning", [None, "x", [], {}, {"trials": "many"}])
def test_a_run_without_trials_has_no_notice(run_folder, tuning):
    record = read_with(run_folder, tuning)
    assert describe_other_settings(record) == ""
    assert list(find_tuned_selection(record, {})) == []


@pytest.mark.parametrize("tuning", [{"trials": 3}, {"trials": 3, "search": 1, "value": "high", "metric": None}])
def test_an_incomplete_entry_is_described_as_far_as_it_goes(run_folder, tuning):
    record = read_with(run_folder, tuning)
    [(text, number)] = find_tuned_selection(record, {})
    assert number == "3 trials" and OPTIMISM in text and describe_other_settings(record)
