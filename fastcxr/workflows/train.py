"""A recipe and an empty folder become a finished run: the whole story on one page."""

from pathlib import Path

from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.inference.predict import predict
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.time_budget import Deadline
from fastcxr.training.trainer import train
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.load import Dataset, assign_recipe_splits, load_dataset
from fastcxr.workflows.run_state import find_finished_report
from fastcxr.workflows.train_dir import RunDir


def run(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    deadline: Deadline | None = None,
    mirror: str | Path | None = None,
    dataset: Dataset | None = None,
) -> Path:
    """Train, predict and report into `folder`; returns the path of report.html.

    A recipe with folds runs the one that it names; cross_validate runs them all. A run of this recipe that was broken
    off in this folder is gone on with, one that is finished stays. `deadline`: without one, the recipe's time limit
    counts from here. `mirror`: a folder that gets a copy of each state. `dataset`: the recipe's data, where
    they were read already.
    Raises a FastcxrError, before the first step of training, for data, images, weights or a folder that cannot be used.
    """
    deadline = deadline or Deadline.parse(recipe.time_limit)
    dataset = dataset or Dataset(recipe)
    if report_path := find_finished_report(folder, recipe, dataset):
        return report_path
    with RunDir(folder, recipe, command, resume=True, mirror=mirror).open(
        progress or make_default_progress()
    ) as run_dir:
        manifest = assign_recipe_splits(load_dataset(recipe, run_dir, dataset), recipe)
        check_before_training(run_dir.folder, manifest)
        loaders = make_loaders(manifest, recipe, run_dir, dataset.image_cache)
        run_dir.validate_dataset(loaders)
        learner = make_learner(loaders, recipe)
        training = train(learner, recipe, run_dir, deadline, run_dir.checkpoints)
        splits = ("valid", "test", INTERNAL_TEST) + ("train",) * recipe.predict_train
        predictions = predict(learner, manifest, splits=splits, progress=run_dir)
        run_dir.write_results(learner, training, predictions)
    return run_dir.finish()
