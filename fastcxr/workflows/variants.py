"""Variants of a study as tasks of an executor."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path

from fastcxr.config.recipe import Recipe
from fastcxr.errors import FastcxrError
from fastcxr.executors.run_tasks import run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Outcome, Task
from fastcxr.progress.base import Progress
from fastcxr.training.interrupt import InterruptibleProgress, interrupt_when
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.pieces import describe_metrics
from fastcxr.workflows.train import run

# recipe, run folder, mirror of the checkpoints, and trackers
Variants = Mapping[str, tuple[Recipe, Path, Path | None, tuple[str, ...]]]


def run_variants(
    variants: Variants,
    executor: Executor,
    progress: Progress,
    command: str | None,
    on_error: Callable[[str, FastcxrError], None],
) -> None:
    """Run each variant, with all its folds, in a worker of the executor.

    Args:
        variants: the variants by name; their run folders are in one folder, which all workers share.
        executor: any Executor with one task per process.
        progress: shows a bar of finished variants.
        command: the command line, for run.json.
        on_error: called with name and error of a variant that fails; the others go on.
    """
    folder = next(iter(variants.values()))[1].parent
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {
        name: Task(run_variant, (recipe, run_dir.resolve(), mirror, command, track))
        for name, (recipe, run_dir, mirror, track) in variants.items()
    }

    def describe(name: str, outcome: Outcome) -> str:
        if outcome.result is None:
            return describe_metrics(variants[name][1])
        on_error(name, outcome.result)
        return "an error"

    with SharedFolder(folder, interrupt_when) as shared:
        run_tasks(tasks, executor, progress, shared=shared, on_finished=describe)


def run_variant(
    recipe: Recipe, folder: Path, mirror: Path | None, command: str | None, track: tuple[str, ...] = ()
) -> FastcxrError | None:
    """Run a recipe, with all its folds, in a worker; return its error."""
    run_recipe = cross_validate if recipe.is_multi_run else run
    mirror = mirror and mirror / folder.name  # as start_training does
    try:
        run_recipe(recipe, folder, InterruptibleProgress(), command=command, mirror=mirror, track=track)
    except FastcxrError as error:
        return error
    return None
