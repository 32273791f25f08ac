"""Training run: load the data, train, predict and write the report."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.inference.predict import predict
from fastcxr.models.devices import configure_device, find_device
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner, validate_model_options
from fastcxr.training.loaders import make_loaders
from fastcxr.training.processes import (
    call_on_main,
    first_on_each_machine,
    is_main_process,
    leave_processes,
    validate_recipe_for_processes,
)
from fastcxr.training.time_budget import Deadline
from fastcxr.training.trainer import train
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.fold_plan import find_shared_batch_size
from fastcxr.workflows.initial_model import describe_initial_model
from fastcxr.workflows.load import (
    PUBLIC_DATASETS_KEY,
    Dataset,
    assign_recipe_splits,
    load_dataset,
    name_public_datasets,
)
from fastcxr.workflows.overlap import FEATURES_FILE
from fastcxr.workflows.run_state import find_finished_report
from fastcxr.workflows.train_dir import RunDir, UnwrittenDir


def run(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    deadline: Deadline | None = None,
    mirror: str | Path | None = None,
    dataset: Dataset | None = None,
    tuning: Mapping[str, Any] | None = None,
    track: Sequence[str] = (),
) -> Path:
    """Train, predict and write the report into `folder`; return the path of report.html.

    An interrupted run of the same recipe in this folder is resumed, and a finished run is not repeated. A recipe with
    folds runs the fold that it names; cross_validate runs all folds. Of several processes (training.processes), each
    loads the data and trains; the main process predicts and writes all files.

    Args:
        recipe: the experiment.
        folder: the run folder.
        progress: the progress display; by default that of the terminal or notebook.
        command: the command line, for run.json.
        deadline: the time limit; by default that of the recipe, counted from the call.
        mirror: a folder for copies of the checkpoints.
        dataset: the data of the recipe, if it is already read.
        tuning: how trials selected the options, for run.json and the report.
        track: trackers of the run: tensorboard, mlflow, wandb. A resumed run has those with which it was started.

    Raises:
        TrackingError: before training, for a tracker that cannot be used.
        FastcxrError: before training, for data, images, weights or a folder that cannot be used.
    """
    deadline = deadline or Deadline.parse(recipe.time_limit)
    dataset = dataset or Dataset(recipe)
    validate_recipe_for_processes(recipe)
    if report_path := call_on_main(lambda: find_finished_report(folder, recipe, dataset)):
        return report_path
    if is_main_process():
        new_dir = RunDir(folder, recipe, command, resume=True, mirror=mirror, tuning=tuning, track=track)
        new_dir.tracking.check()
    else:
        new_dir = UnwrittenDir(folder, recipe)
    with new_dir.open(progress or make_default_progress()) as run_dir, ExitStack() as cleanup:
        cleanup.enter_context(configure_device(find_device(recipe.device), deterministic=recipe.deterministic))
        with first_on_each_machine():
            if dataset.image_cache is None:  # before minutes of reading; otherwise make_learner follows at once
                validate_model_options(recipe)
            manifest = assign_recipe_splits(load_dataset(recipe, run_dir, dataset), recipe)
        run_dir.announce()
        run_dir.extra_metadata[PUBLIC_DATASETS_KEY] = name_public_datasets(recipe)
        run_dir.extra_metadata |= describe_initial_model(recipe.weights)
        if is_main_process():
            check_before_training(run_dir.folder, manifest, reuse_audit=recipe.reuse_audit)
        loaders = make_loaders(manifest, recipe, run_dir, dataset.image_cache)
        loaders.fastcxr.batch_size = find_shared_batch_size(recipe, run_dir.folder)
        cleanup.callback(loaders.fastcxr.images.release)
        run_dir.validate_dataset(loaders)
        learner = make_learner(loaders, recipe)
        cleanup.enter_context(run_dir.tracking).start(run_dir.progress.tracked_run)
        training = train(learner, recipe, run_dir, deadline, run_dir.checkpoints)
        if not leave_processes():
            return run_dir.folder
        splits = ("valid", "test", INTERNAL_TEST) + ("train",) * recipe.predict_train
        predictions = predict(learner, manifest, splits=splits, progress=run_dir)
        run_dir.write_results(learner, training, predictions, dataset.features_file)
        dataset.features_file = run_dir.folder / FEATURES_FILE
    return run_dir.finish()
