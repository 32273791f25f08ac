"""Tests of tuning: trials on validation images only, resumption, the winner, and what its report states."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tuning_toys
from PIL import Image
from toy_findings import write_finding_toys
from tuning_toys import SEARCH, make_tuning_recipe, write_tuning_toys

import fastcxr
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.errors import (
    DataError,
    DeviceError,
    InputMissingError,
    OutputError,
    PackageError,
    RecipeError,
    TrainingError,
)
from fastcxr.io.run_folders import name_run, require_run_file
from fastcxr.progress.base import Progress
from fastcxr.tracking.run_log import find_store_dir
from fastcxr.training.non_finite_loss import BATCH_WARNING
from fastcxr.workflows import tune as tune_module
from fastcxr.workflows.compare import _make_unique_names
from fastcxr.workflows.list_runs import describe_runs
from fastcxr.workflows.run_state import read_run_config
from fastcxr.workflows.tune import find_tuning, tune
from fastcxr.workflows.tuning_study import Trial
from fastcxr.workflows.tuning_trial import log, log_warnings_only
from fastcxr.workflows.verify import verify

pytestmark = [pytest.mark.needs("optuna"), pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")]

N_TRIALS = 3


class Crash(BaseException):
    """A simulated power failure."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tuning_toys(tmp_path_factory.mktemp("tuned") / "toys")


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    """The table and the folder of a finished tuning."""
    folder = tmp_path_factory.mktemp("finished") / "tuning"
    return tune(make_tuning_recipe(data), folder, N_TRIALS, search=SEARCH, command="fastcxr tune"), folder


def run_tuning(data, folder, n_trials=N_TRIALS, **options):
    return tune(make_tuning_recipe(data), folder, n_trials, search=SEARCH, progress=Progress(), **options)


@pytest.fixture
def without_training(monkeypatch):
    """Replace the training of trials; return the list of their objectives."""
    objectives = []

    def evaluate(*arguments):
        objectives.append(0.5 + len(objectives) / 100)
        return objectives[-1]

    monkeypatch.setattr(tune_module, "evaluate_trial", evaluate)
    return objectives


def drop_times(table):
    return table.drop(columns="seconds")


def crash_in(trial_number, monkeypatch):
    """Simulate a power failure in this trial, from 1."""
    evaluate, count = tune_module.evaluate_trial, [0]

    def evaluate_or_crash(*arguments):
        count[0] += 1
        if count[0] == trial_number:
            raise Crash
        return evaluate(*arguments)

    monkeypatch.setattr(tune_module, "evaluate_trial", evaluate_or_crash)


def test_python_has_the_function():
    assert fastcxr.tune is tune


def test_the_folder_has_the_table_and_the_run_of_the_best_trial(tuned):
    table, folder = tuned
    assert table["state"].tolist() == ["complete"] * N_TRIALS
    assert table["objective"].nunique() > 1, "the toys must distinguish trials"
    saved = pd.read_csv(folder / "tuning.csv")
    assert saved["objective"].tolist() == pytest.approx(table["objective"].tolist())
    assert {path.name for path in folder.iterdir()} == {
        "SHA256SUMS", "best", "manifest.csv", "run.json", "study.jsonl", "tuning.csv", "tuning.json",
    }  # fmt: skip
    assert (folder / "best" / "report.html").is_file()


def test_list_shows_the_tuning_and_the_run_of_its_best_trial(tuned):
    rows = {row["run"]: row for row in describe_runs(tuned[1].parent)}
    assert {name: (row["state"], row["split"]) for name, row in rows.items()} == {
        "tuning": ("tuning, 3 trials", "valid"), "tuning/best": ("finished", "test"),
    }  # fmt: skip
    assert {row["run"] for row in describe_runs(tuned[1])} == {"tuning", "best"}


def test_verify_checks_the_files_of_the_tuning_and_of_its_best_run(tuned):
    folder = tuned[1]
    faults, n_files = verify(folder)
    assert not faults and n_files > 10
    table = (folder / "tuning.csv").read_text()
    (folder / "tuning.csv").write_text(table.replace("complete", "pruned"))
    assert [fault.path.name for fault in verify(folder)[0]] == ["tuning.csv"]
    (folder / "tuning.csv").write_text(table)


def test_a_tuning_is_no_run_and_the_error_names_its_best_run(tuned, tmp_path):
    with pytest.raises(InputMissingError, match="a tuning, not a run. Repeat its command `fastcxr tune`"):
        read_run_config(tuned[1])
    with pytest.raises(InputMissingError, match="a tuning, which has no metrics.json. Pass .*tuning/best"):
        require_run_file(tuned[1], "metrics.json")
    (tmp_path / "tuning.json").touch()
    with pytest.raises(InputMissingError, match="Its best trial is not trained yet: repeat its command"):
        require_run_file(tmp_path, "metrics.json")


def test_the_best_run_has_the_name_of_its_tuning(tuned):
    best = tuned[1] / "best"
    assert name_run(best) == "tuning/best" and name_run(tuned[1]) == "tuning"
    assert _make_unique_names([best, tuned[1].parent / "other"]) == ["tuning/best", "other"]
    assert find_store_dir(best) == tuned[1].parent.resolve(), "the files of the tuning have checksums"


def test_the_objective_is_the_validation_metric_of_the_report_of_the_winner(tuned):
    table, folder = tuned
    metrics = json.loads((folder / "best" / "metrics.json").read_text())
    assert metrics["valid"]["auroc"]["macro"] == pytest.approx(table["objective"].max(), abs=1e-12)
    model = json.loads((folder / "best" / "model.json").read_text())
    assert model["fitted_on"]["valid_predictions"] == "train_only_head"


def test_the_winner_has_the_options_of_the_best_trial_and_the_splits_of_the_trials(tuned):
    table, folder = tuned
    best = table.loc[table["objective"].idxmax()]
    recipe = json.loads((folder / "best" / "recipe.json").read_text())
    assert {name: recipe[name] for name in ("loss", "class_weights", "hflip_tta")} == {
        name: best[name] for name in ("loss", "class_weights", "hflip_tta")
    }
    splits = [
        read_written_manifest(one / "manifest.csv")[["path", "split", "patient"]] for one in (folder, folder / "best")
    ]
    assert splits[0].equals(splits[1])


def test_the_first_trial_is_the_recipe_itself(tuned):
    first = tuned[0].iloc[0]
    assert (first["loss"], first["label_smoothing"], first["hflip_tta"]) == ("label_smoothing", 0.1, True)


def test_report_model_card_and_checklist_state_the_trials_and_that_validation_is_optimistic(tuned):
    best = tuned[1] / "best"
    tuning = json.loads((best / "run.json").read_text())["tuning"]
    assert (tuning["trials"], tuning["complete"], tuning["pruned"], tuning["failed"]) == (N_TRIALS, N_TRIALS, 0, 0)
    page, card, checklist = ((best / name).read_text() for name in ("report.html", "MODEL_CARD.md", "CLAIM.md"))
    for text in (page, card):
        assert "The options were selected by 3 trials" in text
        assert "3 complete, 0 pruned, 0 failed" in text and "macro AUROC of the validation images" in text
        assert "The validation metrics are optimistic" in text
        assert "hflip_tta (True, False)" in text
    assert "3 settings of loss, label_smoothing, focal_gamma, class_weights and hflip_tta were tried" in checklist


def test_test_images_and_their_labels_change_nothing_in_the_trials(data, tuned, tmp_path, monkeypatch):
    folder = tmp_path / "toys"
    shutil.copytree(data.parent, folder)
    table = pd.read_csv(folder / "labels.csv")
    is_test = table["split"] == "test"
    assert is_test.sum() == 18
    rng = np.random.default_rng(1)
    table.loc[is_test, "label"] = rng.permutation(table.loc[is_test, "label"].to_numpy())
    table.to_csv(folder / "labels.csv", index=False)
    for path in table.loc[is_test, "path"]:
        Image.fromarray(rng.integers(0, 255, (80, 80), np.uint8)).save(folder / path)
    splits, evaluate = set(), tune_module.evaluate_trial

    def evaluate_and_record(recipe, images, *arguments):
        splits.update(images.manifest["split"])
        return evaluate(recipe, images, *arguments)

    monkeypatch.setattr(tune_module, "evaluate_trial", evaluate_and_record)
    other = run_tuning(folder / "labels.csv", tmp_path / "out", winner=False)
    assert splits == {"train", "valid"}
    assert drop_times(other).equals(drop_times(tuned[0]))
    assert not (tmp_path / "out" / "best").exists()


def test_an_interrupted_tuning_has_the_same_trials_as_an_uninterrupted_one(data, tuned, tmp_path, monkeypatch):
    run_tuning(data, tmp_path / "out", 2, winner=False)  # more trials follow the earlier ones
    table = (tmp_path / "out" / "tuning.csv").read_text()
    (tmp_path / "out" / "tuning.csv").write_text(table[: table.rindex("2,complete")])  # killed before it was written
    with monkeypatch.context() as patch:
        crash_in(1, patch)
        with pytest.raises(Crash):
            run_tuning(data, tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "tuning.csv")) == 2
    table = run_tuning(data, tmp_path / "out", winner=False)
    assert drop_times(table).equals(drop_times(tuned[0]))


def test_without_a_finished_trial_nothing_is_kept(data, tmp_path, monkeypatch):
    crash_in(1, monkeypatch)
    with pytest.raises(Crash):
        run_tuning(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_tuning_is_not_repeated(data, tuned, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a trial or a test")

    monkeypatch.setattr(tune_module, "evaluate_trial", fail)
    monkeypatch.setattr("fastcxr.workflows.train.predict", fail)
    before = (tuned[1] / "best" / "predictions.csv").stat().st_mtime_ns
    assert drop_times(run_tuning(data, tuned[1])).equals(drop_times(tuned[0]))
    assert (tuned[1] / "best" / "predictions.csv").stat().st_mtime_ns == before


def test_more_trials_after_the_test_are_refused(data, tuned):
    with pytest.raises(OutputError, match="with 9 trials the test images would be used twice") as error:
        run_tuning(data, tuned[1], 9)
    assert error.value.code == "E744" and "`trials=3`" in error.value.fix


def test_a_folder_of_another_recipe_or_search_is_refused_with_the_difference(data, tuned):
    recipe = make_tuning_recipe(data)
    with pytest.raises(OutputError, match="different options .seed was 42, is 7.") as error:
        tune(recipe.replace(seed=7), tuned[1], search=SEARCH)
    assert error.value.code == "E742"
    with pytest.raises(OutputError, match="search of hflip_tta was 'True, False', is None"):
        tune(recipe, tuned[1], search=SEARCH[:-1])
    with pytest.raises(OutputError, match="metric was 'auroc', is 'accuracy'"):
        tune(recipe.replace(monitor="accuracy"), tuned[1], search=SEARCH)


def test_a_folder_of_the_same_tuning_is_found(data, tuned, tmp_path):
    recipe, folders = make_tuning_recipe(data), [tmp_path, tuned[1]]
    assert find_tuning(folders, recipe, SEARCH, ()) == tuned[1]
    assert find_tuning(folders, recipe.replace(seed=7), SEARCH, ()) is None
    assert find_tuning(folders, recipe, SEARCH[:2], ()) is None


@pytest.mark.slow
def test_other_images_than_those_of_the_earlier_trials_are_refused(data, tmp_path):
    folder = tmp_path / "toys"
    shutil.copytree(data.parent, folder)
    run_tuning(folder / "labels.csv", tmp_path / "out", 1, winner=False)
    path = folder / pd.read_csv(folder / "labels.csv")["path"].iloc[0]
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (80, 80), np.uint8)).save(path)
    with pytest.raises(DataError, match="the images differ from those of the interrupted run: 1 changed"):
        run_tuning(folder / "labels.csv", tmp_path / "out", 1)


def test_a_trial_that_fails_has_its_reason_and_the_others_continue(data, tmp_path, monkeypatch):
    count = [0]

    def fail_once(*arguments):
        count[0] += 1
        if count[0] == 1:
            raise TrainingError("out of memory: 32 images of 64 px per batch", "Pass `batch_size=16`")
        return 0.5

    monkeypatch.setattr(tune_module, "evaluate_trial", fail_once)
    table = run_tuning(data, tmp_path / "out", 2, winner=False)
    assert table["state"].tolist() == ["failed", "complete"]
    assert table["reason"].iloc[0] == "out of memory: 32 images of 64 px per batch"
    assert np.isnan(table["objective"].iloc[0])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory"), DeviceError("out of memory", "")])
def test_memory_that_is_too_small_fails_one_trial_and_other_errors_end_the_tuning(data, tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error from (RuntimeError("CUDA out of memory") if isinstance(error, DeviceError) else None)

    monkeypatch.setattr("fastcxr.workflows.tuning_trial.make_learner", fail)
    with pytest.raises(TrainingError, match="none of 1 trial is complete: out of memory"):
        run_tuning(data, tmp_path / "out", 1, winner=False)
    error = DeviceError("the GPU was lost", "Start again")
    monkeypatch.setattr("fastcxr.workflows.tuning_trial.make_learner", lambda *arguments: raise_it(error))
    with pytest.raises(DeviceError, match="the GPU was lost"):
        run_tuning(data, tmp_path / "out", 2, winner=False)
    assert len(pd.read_csv(tmp_path / "out" / "tuning.csv")) == 1  # the trial is repeated by the same command


def raise_it(error):
    raise error


def test_without_a_complete_trial_there_is_one_error_with_the_first_reason(data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise TrainingError("the loss is NaN", "Pass a lower rate")

    monkeypatch.setattr(tune_module, "evaluate_trial", fail)
    with pytest.raises(TrainingError, match="none of 2 trials is complete: the loss is NaN") as error:
        run_tuning(data, tmp_path / "out", 2)
    assert error.value.code == "E745"
    assert (tmp_path / "out" / "tuning.csv").is_file() and not (tmp_path / "out" / "best").exists()


def test_the_images_of_a_batch_are_not_listed_in_a_trial_and_other_warnings_are(caplog):
    with log_warnings_only():
        log.warning(BATCH_WARNING, "patient_7.png")
        log.warning("other")
    assert caplog.messages == ["other"]


def test_the_selection_counts_trials_that_repeat_options():
    trials = [
        Trial(number=number, state="complete", options={}, objective=0.5, seconds=1.0, reason=reason)
        for number, reason in enumerate(("", "same options as trial 1"), 1)
    ]
    selection = tune_module.summarize_selection(trials, trials[0], [], "auroc")
    assert (selection["complete"], selection["repeated"]) == (2, 1)


def test_an_unknown_tracker_is_refused_before_the_trials(data, tmp_path):
    with pytest.raises(RecipeError, match="no tracker called 'mlfow'"):
        run_tuning(data, tmp_path / "out", track=["mlfow"])
    assert not (tmp_path / "out").exists()


def test_a_trial_with_the_options_of_an_earlier_one_is_not_trained_again(data, tmp_path, without_training):
    table = tune(make_tuning_recipe(data), tmp_path / "out", 3, search=["hflip_tta"], winner=False)
    repeated = table[table["reason"] != ""]
    assert len(repeated) >= 1 and repeated["reason"].str.fullmatch("same options as trial [12]").all()
    assert len(without_training) == 3 - len(repeated)
    assert table.groupby("hflip_tta")["objective"].nunique().max() == 1


def test_a_trial_of_epochs_is_ended_early_with_its_reason(data, tmp_path, monkeypatch):
    monkeypatch.setattr("optuna.trial.Trial.should_prune", lambda trial: trial.number == 1)
    recipe = make_tuning_recipe(data, strategy="full", epochs=2, batch_size=36, image_size=32)
    table = tune(recipe, tmp_path / "out", 2, search=["learning_rate=1e-4..1e-2"], winner=False)
    assert table["state"].tolist() == ["complete", "pruned"]
    assert table["reason"].iloc[1] == "worse than the median after epoch 1 of 2"
    assert np.isfinite(table["objective"]).all()


def test_no_further_trial_starts_after_the_time_limit(data, tmp_path, caplog):
    table = tune(make_tuning_recipe(data, time_limit="0.001s"), tmp_path / "out", 5, search=SEARCH, winner=False)
    assert len(table) == 1 and "1 of 5 trials: another trial does not fit into the time limit" in caplog.text


@pytest.mark.slow
def test_findings_are_tuned_by_the_macro_auroc_of_the_findings(tmp_path):
    data = write_finding_toys(tmp_path / "toys")
    recipe = make_tuning_recipe(data)
    table = tune(recipe, tmp_path / "out", 2, search=["loss", "focal_gamma"], winner=True)
    metrics = json.loads((tmp_path / "out" / "best" / "metrics.json").read_text())
    assert metrics["valid"]["auroc"]["macro"] == pytest.approx(table["objective"].max(), abs=1e-12)
    assert set(table["loss"]) <= {"binary_cross_entropy", "focal", "asymmetric"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 5}, "tuning cannot be combined with `folds`: each fold would need other trials"),
        ({"folds": 5, "fold": 1}, "tuning cannot be combined with `folds`"),
        ({"leave_one_source_out": True}, "tuning cannot be combined with `leave_one_source_out`"),
    ],
)
def test_folds_are_refused_with_the_reason(data, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        tune(make_tuning_recipe(data, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_number_of_trials_is_at_least_one(data, tmp_path):
    with pytest.raises(RecipeError, match="n_trials is 0"):
        run_tuning(data, tmp_path / "out", 0)


@pytest.mark.slow
def test_an_interrupted_winner_is_resumed_by_itself_and_still_states_the_trials(data, tmp_path, monkeypatch):
    from fastcxr.workflows.run_state import read_run_config
    from fastcxr.workflows.train import run

    def crash(*arguments, **options):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("fastcxr.workflows.train.predict", crash)
        patch.setattr("fastcxr.workflows.train_dir.RunDir.keep_on_error", lambda self: True)
        with pytest.raises(Crash):
            run_tuning(data, tmp_path / "out", 2)
    best = tmp_path / "out" / "best"
    with pytest.raises(OutputError, match="would be used twice"):
        run_tuning(data, tmp_path / "out", 3)
    run(read_run_config(best), best)
    assert json.loads((best / "run.json").read_text())["tuning"]["trials"] == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {support!r})
from tuning_toys import SEARCH, make_tuning_recipe
from fastcxr.workflows import tune as module
evaluate, count = module.evaluate_trial, [0]
def evaluate_or_die(*arguments):
    count[0] += 1
    if count[0] == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(*arguments)
module.evaluate_trial = evaluate_or_die
module.tune(make_tuning_recipe({data!r}), {folder!r}, {n_trials}, search=SEARCH)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_twice_and_repeated_has_the_same_trials_and_winner(data, tuned, tmp_path):
    values = {"support": str(Path(tuning_toys.__file__).parent), "data": str(data), "folder": str(tmp_path / "out")}
    for number in (1, 2):  # in the first trial, and in the second one of the repeated command
        code = KILLED.format(**values, number=number, n_trials=N_TRIALS)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "out" / ".lock").exists()
    table = run_tuning(data, tmp_path / "out")
    assert drop_times(table).equals(drop_times(tuned[0]))
    for name in ("predictions.csv", "model.safetensors"):
        assert (tmp_path / "out" / "best" / name).read_bytes() == (tuned[1] / "best" / name).read_bytes()


def test_a_missing_package_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.io.packages._is_installed", lambda module: module != "optuna")
    with pytest.raises(PackageError, match="tuning needs optuna, which is not installed"):
        run_tuning(data, tmp_path / "out")
