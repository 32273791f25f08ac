"""Tuning: trials of a recipe with other options, judged on validation images; the best one becomes a normal run.

The test images are used once, by the run of the best trial.
"""

import logging
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.data.bit_depth import open_dataset_images
from fastcxr.data.findings import is_multi_label
from fastcxr.errors import OutputError, RecipeError, TrainingError, WeightsError, require_type
from fastcxr.io.formatting import format_duration, pluralize
from fastcxr.io.optional_outputs import describe_error
from fastcxr.io.packages import require_packages
from fastcxr.io.run_folders import TUNING_FILE
from fastcxr.models.encoders import find_image_size
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, silence_logging
from fastcxr.report.tuning_notice import describe_outside
from fastcxr.tracking.session import Tracking
from fastcxr.training.learner import validate_model_options
from fastcxr.training.time_budget import Deadline
from fastcxr.workflows.load import Dataset, assign_recipe_splits, load_dataset
from fastcxr.workflows.run_state import find_finished_report, is_finished
from fastcxr.workflows.train import run
from fastcxr.workflows.tuning_dir import TuneDir, describe_tuning, is_same_tuning
from fastcxr.workflows.tuning_space import (
    Dimension,
    apply_options,
    find_outside_options,
    find_recipe_options,
    make_space,
)
from fastcxr.workflows.tuning_study import COMPLETE, FAILED, PRUNED, Study, Trial, TrialEnded, make_table
from fastcxr.workflows.tuning_trial import (
    METRICS,
    MINIMIZED,
    TrialImages,
    TrialProgress,
    count_epochs,
    evaluate_trial,
    find_metric,
    log_warnings_only,
)

log = logging.getLogger("fastcxr")
DEFAULT_TRIALS = 20
MODULES = ("optuna",)  # of the extra tune
REPEATED = "same options as trial"  # reason of a trial that is not trained again


def tune(
    recipe: Recipe,
    folder: str | Path,
    n_trials: int = DEFAULT_TRIALS,
    *,
    search: Sequence[str] | None = None,
    fixed: Sequence[str] = (),
    winner: bool = True,
    progress: Progress | None = None,
    command: str | None = None,
    track: Sequence[str] = (),
) -> pd.DataFrame:
    """Try other options of a recipe, and train, test and report the best ones as a run in `folder`/best.

    The trials are judged on the validation images; none of them reads the test images. An interrupted tuning of the
    same recipe and search space in this folder is resumed: its trials are the same as without the interruption.

    Args:
        recipe: the recipe; its options are those of the first trial. Its time limit is that of all trials together.
        folder: the folder to create, or that of the same tuning.
        n_trials: number of trials, earlier ones included.
        search: options to search, as NAME, NAME=VALUE,VALUE or NAME=LOW..HIGH; by default all that the strategy uses,
            except those that differ from their default in the recipe.
        fixed: options that are not searched although they have their default value.
        winner: whether the best trial is trained and tested; later calls can do it.
        progress: the progress display; by default that of the terminal or notebook.
        command: the command line, for run.json.
        track: trackers of the run of the best trial: tensorboard, mlflow, wandb. The trials are not tracked.

    Returns:
        The table of tuning.csv, with a row for each trial: trial, state (complete, pruned, failed), objective
        (validation metric), seconds, the searched options, reason.

    Raises:
        RecipeError: options that cannot be tuned.
        TrackingError: before the trials, for a tracker that cannot be used.
        OutputError: the folder contains another tuning, or its winner is tested and more trials are requested.
        TrainingError: no trial is complete.
        FastcxrError: for data, weights or a folder that cannot be used.
    """
    require_type("recipe", recipe, Recipe)
    require_packages(MODULES, "tuning")
    reject_unsuitable(recipe, n_trials)
    tuning = Tuning(recipe, search, fixed)
    with TuneDir(folder, tuning.recipe, tuning.space, tuning.metric, command).open(
        progress or make_default_progress()
    ) as tune_dir:
        Tracking(tune_dir.best_folder, track).check()
        tune_dir.announce()
        study = Study(tune_dir.folder, tuning.space, recipe.seed, is_maximized=tuning.is_maximized)
        if not tuning.is_finished(tune_dir, n_trials):
            images = tuning.open_images(tune_dir)
            if tune_dir.read_winner() is None:
                tuning.run_trials(study, images, tune_dir, n_trials)
                reject_incomplete(study)
            if recipe.draws_figures:
                tune_dir.write_figures(study.trials, METRICS[tuning.metric], is_maximized=tuning.is_maximized)
            if winner:
                tuning.run_winner(study, tune_dir, n_trials, track)
        return make_table(study.trials, tuning.space)


def find_tuning(
    folders: Iterable[Path], recipe: Recipe, search: Sequence[str] | None, fixed: Sequence[str]
) -> Path | None:
    """Return the newest of these folders that holds the tuning of this recipe and search space, or None."""
    found = [folder for folder in folders if (folder / TUNING_FILE).is_file()]
    if not found:
        return None
    require_packages(MODULES, "tuning")
    reject_unsuitable(recipe, 1)
    tuning = Tuning(recipe, search, fixed)
    description = describe_tuning(tuning.recipe, tuning.space, tuning.metric)
    same = [folder for folder in found if is_same_tuning(folder, description)]
    return max(same, key=lambda folder: (folder / TUNING_FILE).stat().st_mtime, default=None)


def reject_unsuitable(recipe: Recipe, n_trials: int) -> None:
    """Raise RecipeError for options that cannot be tuned."""
    if n_trials < 1:
        raise RecipeError(f"n_trials is {n_trials}, it must be at least 1", "Pass the number of trials")
    if recipe.folds or recipe.leave_one_source_out:
        option = "folds" if recipe.folds else "leave_one_source_out"
        problem = (
            f"tuning cannot be combined with `{option}`: each fold would need other trials, otherwise its test images "
            "select the options"
        )
        raise RecipeError(problem, f"Leave out `{option}`, or cross-validate the recipe of the winner", code="E741")


def reject_incomplete(study: Study) -> None:
    """Raise TrainingError if no trial is complete."""
    if study.find_best() is None:
        problem = f"none of {pluralize(len(study.trials), 'trial')} is complete: {study.trials[0].reason}"
        raise TrainingError(problem, "Change the options, or choose another `folder`", code="E745")


class Tuning:
    """A recipe, its search space and its data."""

    def __init__(self, recipe: Recipe, search: Sequence[str] | None, fixed: Sequence[str]):
        """Read the tables of the data, not the images. Raises RecipeError and FastcxrError as tune does."""
        self.seconds_limit = Deadline.parse(recipe.time_limit).seconds
        self.recipe = recipe.replace(time_limit=None)
        validate_model_options(self.recipe)
        self.dataset = Dataset(self.recipe)
        with silence_logging():  # load_dataset logs the messages
            task = MULTI_LABEL if is_multi_label(self.dataset.read_manifest()) else SINGLE_LABEL
        self.space = make_space(self.recipe, task, search, fixed)
        self.first_options = find_recipe_options(self.recipe, task, self.space)
        self.outside = find_outside_options(self.recipe, task, self.space)
        self.metric, self.n_epochs = find_metric(self.recipe), count_epochs(self.recipe)
        self.is_maximized = self.metric not in MINIMIZED

    def is_finished(self, tune_dir: TuneDir, n_trials: int) -> bool:
        """Return whether the winner is tested. Raise OutputError if it is trained and more trials are requested."""
        selection = tune_dir.read_winner()
        if selection is None:
            return False
        n_requested = selection["requested"]
        if n_trials > n_requested:
            problem = (
                f"the best of {pluralize(selection['trials'], 'trial')} is already tested: with {n_trials} trials the "
                "test images would be used twice"
            )
            fix = f"Pass `trials={n_requested}`, or another `folder` for a new tuning"
            raise OutputError(problem, fix, path=tune_dir.folder, code="E744")
        recipe = apply_options(self.recipe, selection["options"])
        return is_finished(tune_dir.best_folder) and bool(
            find_finished_report(tune_dir.best_folder, recipe, self.dataset)
        )

    def open_images(self, tune_dir: TuneDir) -> TrialImages:
        """Read the images, and store their hashes and splits. Raise DataError if earlier trials had other images."""
        manifest = assign_recipe_splits(load_dataset(self.recipe, tune_dir, self.dataset), self.recipe)
        image_cache = self.dataset.image_cache and self.dataset.image_cache.select(
            manifest["file"].tolist(), find_image_size(self.recipe)
        )
        if image_cache is None:  # some images are left out, or listed twice
            manifest, image_cache = open_dataset_images(manifest, find_image_size(self.recipe), tune_dir)
        tune_dir.validate_images(manifest, image_cache)
        return TrialImages(manifest, image_cache)

    def run_trials(self, study: Study, images: TrialImages, tune_dir: TuneDir, n_trials: int) -> None:
        """Run the trials that are missing, and write tuning.csv after each."""
        self.log_start(study, n_trials)
        if study.trials:  # a killed process may have stored a trial only in the study
            tune_dir.write_trials(study.trials)
        while (n_finished := len(study.trials)) < n_trials:
            seconds = [trial.seconds for trial in study.trials]
            if seconds and sum(seconds) + sum(seconds) / n_finished > self.seconds_limit:
                log.warning("%d of %d trials: another trial does not fit into the time limit", n_finished, n_trials)
                return
            self.run_trial(study, images, tune_dir, n_trials)
            tune_dir.write_trials(study.trials)
            self.log_trial(study, n_trials)

    def run_trial(self, study: Study, images: TrialImages, tune_dir: TuneDir, n_trials: int) -> None:
        """Run the next trial and store its result."""
        earlier_trials, started = study.trials, time.perf_counter()
        proposed = study.propose(self.first_options, self.n_epochs)
        same = [t for t in earlier_trials if t.state != FAILED and t.options == proposed.options]
        state, objective, reason = FAILED, math.nan, ""
        if same:  # the same recipe has the same result
            state, objective, reason = same[0].state, same[0].objective, f"{REPEATED} {same[0].number}"
        else:
            prefix = f"trial {len(earlier_trials) + 1} of {n_trials}"
            progress = TrialProgress(tune_dir, prefix, self.metric, proposed.report_epoch)
            try:
                with log_warnings_only():
                    recipe = apply_options(self.recipe, proposed.options)
                    state, objective = COMPLETE, evaluate_trial(recipe, images, self.metric, progress)
            except TrialEnded as ended:
                state, objective, reason = PRUNED, ended.value, ended.reason
            except (RecipeError, TrainingError, WeightsError) as error:
                reason = describe_error(error)
        proposed.finish(state, objective, time.perf_counter() - started, reason)

    def log_start(self, study: Study, n_trials: int) -> None:
        """Log the metric, the search space and the number of finished trials."""
        direction = "highest" if self.is_maximized else "lowest"
        log.info("selection: %s %s of the validation images", direction, METRICS[self.metric])
        for dimension in self.space:
            log.info("search %s: %s", dimension.name, dimension.describe())
        if self.outside:
            log.info("%s", describe_outside(self.outside))
        if n_finished := len(study.trials):
            log.info("%d of %d trials are finished", n_finished, n_trials)

    def log_trial(self, study: Study, n_trials: int) -> None:
        """Log the last trial, the best one so far, and an estimate of the remaining time."""
        trials, best = study.trials, study.find_best()
        last, mean_seconds = trials[-1], sum(trial.seconds for trial in trials) / len(trials)
        result = last.state if last.state != COMPLETE else f"{METRICS[self.metric]} {last.objective:.4f}"
        options = ", ".join(f"{name} {value}" for name, value in last.options.items())
        best_text = f"best {best.objective:.4f} (trial {best.number})" if best else "no trial is complete"
        rest = (n_trials - len(trials)) * mean_seconds
        remaining = f", {format_duration(mean_seconds)} per trial, {format_duration(rest)} remaining" if rest else ""
        reason = f" ({last.reason})" if last.reason else ""
        log.info("trial %d: %s%s, %s; %s%s", last.number, result, reason, options, best_text, remaining)

    def run_winner(self, study: Study, tune_dir: TuneDir, n_trials: int, track: Sequence[str]) -> None:
        """Train, test and report the best trial as a run, which resumes an interrupted one."""
        reject_incomplete(study)
        best = study.find_best()
        assert best is not None
        recipe = apply_options(self.recipe, best.options)
        selection = summarize_selection(study.trials, best, self.space, self.metric) | {"outside": self.outside}
        tune_dir.write_winner(selection | {"requested": max(n_trials, len(study.trials))})
        log.info("training the recipe of trial %d, which is then tested once", best.number)
        has_size = find_image_size(recipe) == find_image_size(self.recipe)
        dataset = self.dataset if has_size else Dataset(recipe)
        options: dict[str, Any] = {"dataset": dataset, "tuning": selection, "track": track}
        run(recipe, tune_dir.best_folder, tune_dir.progress, tune_dir.command, **options)


def summarize_selection(
    trials: Sequence[Trial], best: Trial, space: Sequence[Dimension], metric: str
) -> dict[str, Any]:
    """Return how the winner was selected, for run.json and the report."""
    counts = {state: sum(trial.state == state for trial in trials) for state in (COMPLETE, PRUNED, FAILED)}
    return {
        "trials": len(trials),
        **counts,
        "repeated": sum(trial.reason.startswith(REPEATED) for trial in trials),
        "search": {dimension.name: dimension.describe() for dimension in space},
        "metric": METRICS[metric],
        "split": "valid",
        "trial": best.number,
        "value": best.objective,
        "options": dict(best.options),
    }
