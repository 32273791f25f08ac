"""A recipe and an empty folder become a finished run: the whole story on one page."""

from pathlib import Path

from fastcxr.config.recipe import Recipe
from fastcxr.inference.predict import predict
from fastcxr.metrics.predictions import INTERNAL
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.time_budget import Deadline
from fastcxr.training.trainer import train
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.load import read_cohort, split_cohort
from fastcxr.workflows.run_state import find_finished
from fastcxr.workflows.train_dir import RunFolder


def run(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    deadline: Deadline | None = None,
    mirror: str | Path | None = None,
) -> Path:
    """Train, predict and report into `folder`; returns the path of report.html.

    A recipe with folds runs the one that it names; cross_validate runs them all. A run of this recipe that was broken
    off in this folder is gone on with, one that is finished stays. `deadline`: without one, the recipe's time limit
    counts from here. `mirror`: a folder that gets a copy of each state.
    Raises a FastcxrError, before the first step of training, for data, images, weights or a folder that cannot be used.
    """
    deadline = deadline or Deadline.read(recipe.time_limit)
    if page := find_finished(folder, recipe):
        return page
    with RunFolder(folder, recipe, command, goes_on=True, mirror=mirror).open(progress or find_progress()) as record:
        manifest = split_cohort(read_cohort(recipe, record), recipe)
        check_before_training(record.folder, manifest)
        loaders = make_loaders(manifest, recipe, record)
        record.check_cohort(loaders)
        learner = make_learner(loaders, recipe)
        training = train(learner, recipe, record, deadline, record.checkpoints)
        splits = ("valid", "test", INTERNAL) + ("train",) * recipe.score_train
        predictions = predict(learner, manifest, splits=splits, progress=record)
        record.write(learner, training, predictions)
    return record.finish()
