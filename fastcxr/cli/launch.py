"""Start a training from the command line and print its result."""

import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastcxr.cli.app import DESCRIBE_FIELDS, set_default_data
from fastcxr.cli.option_names import format_options
from fastcxr.cli.output import (
    console,
    make_error,
    make_open_step,
    print_error,
    print_line,
    print_next_steps,
    print_result,
    print_warning,
)
from fastcxr.cli.processes import is_first_process, is_launched, launch, make_torchrun_command, run_in_processes
from fastcxr.cli.tables import show_headline
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions, open_executor
from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.io.files import read_json
from fastcxr.progress.base import Progress, silence_logging
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.interrupt import Interrupted, handle_signals


def start_training(
    recipe: Recipe,
    folder: Path,
    mirror: Path | None = None,
    workers: WorkerOptions = IN_THIS_PROCESS,
    track: tuple[str, ...] = (),
) -> int:
    """Train a recipe, or all its folds, in a run folder, print the result and return the exit code."""
    return start_prepared_training(lambda: (set_default_data(recipe), folder), mirror, workers=workers, track=track)


def start_prepared_training(
    prepare: Callable[[], tuple[Recipe | None, Path]],
    mirror: Path | None = None,
    gpus: str | None = None,
    workers: WorkerOptions = IN_THIS_PROCESS,
    track: tuple[str, ...] = (),
) -> int:
    """Train in this process, in this and others that torchrun started, or start torchrun; return the exit code.

    Args:
        prepare: returns the recipe, or None for a finished run, and the run folder.
        mirror: folder for copies of the checkpoints.
        gpus: all, or a number, to start torchrun; the processes of torchrun ignore it.
        workers: where the folds run.
        track: trackers of the run.
    """
    reject_workers_with_gpus(workers, gpus)
    if is_launched():
        workers.reject("torchrun divides a single one among all processes", "Leave one of both out")
        train = partial(train_and_print, mirror=mirror, track=track)
        return run_in_processes(prepare, train, partial(describe_resumption, mirror))
    if gpus is not None:
        return launch(gpus)
    recipe, folder = prepare()
    try:
        return train_and_print(recipe, folder, mirror, workers, track)
    except Interrupted as interrupted:
        fix = describe_resumption(mirror, folder, workers)
        return print_error(make_error(f"interrupted ({interrupted})", fix, interrupted.exit_code))


def reject_workers_with_gpus(workers: WorkerOptions, gpus: str | None) -> None:
    """Raise RecipeError if pieces in workers and one training on several GPUs are both requested."""
    if gpus is not None and workers != IN_THIS_PROCESS:
        raise RecipeError(f"{workers.format()[0]} and --gpus cannot be combined", "Leave one of them out")


def describe_resumption(mirror: Path | None, folder: Path, workers: WorkerOptions = IN_THIS_PROCESS) -> str:
    """Return how to continue an interrupted run."""
    if not (folder / "recipe.json").exists():
        return "No training step is saved yet: repeat the command"
    return f"Resume with: {make_resume_command(folder, mirror, workers)}"


def make_resume_command(folder: Path, mirror: Path | None, workers: WorkerOptions = IN_THIS_PROCESS) -> str:
    """Return the command that resumes a run, in as many processes and with the same workers as now."""
    mirror_arguments = ["--checkpoint-mirror", str(mirror)] if mirror else []
    arguments = ["resume", str(folder), *mirror_arguments, *workers.format()]
    return make_torchrun_command(arguments) if is_launched() else shlex.join(["fastcxr", *arguments])


def train_and_print(
    recipe: Recipe | None,
    folder: Path,
    mirror: Path | None = None,
    workers: WorkerOptions = IN_THIS_PROCESS,
    track: tuple[str, ...] = (),
) -> int:
    """Train a recipe, or all its folds, in a run folder, print the result and return the exit code.

    Without a recipe, print that the run is finished. Of several processes, only the main one prints.
    """
    if recipe is None:
        return print_finished_run(folder) if is_first_process() else 0
    from fastcxr.tracking.session import find_tracker_names, require_trackers, track_finished_run

    require_trackers(find_tracker_names(folder, track))
    validate_data(recipe)
    from fastcxr.workflows.cross_validate import cross_validate
    from fastcxr.workflows.run_state import is_finished
    from fastcxr.workflows.train import run

    has_folds = recipe.is_multi_run and not is_launched()
    if not has_folds:
        workers.reject("a single run has no folds", "Pass `folds=5`, or leave the option out")
    was_finished, is_main = is_finished(folder), is_first_process()
    command, resume_command = get_command(), make_resume_command(folder, mirror, workers)
    mirror = mirror and mirror / folder.name
    progress = TerminalProgress(console) if is_main else Progress()
    with handle_signals(partial(show_signal, is_main), resume_command, is_repeated=is_launched()):
        if has_folds:
            with open_executor(workers, recipe.device) as executor:
                cross_validate(recipe, folder, progress, command=command, mirror=mirror, executor=executor, track=track)
        else:
            run(recipe, folder, progress, command=command, mirror=mirror, track=track)
    if not is_main:
        return 0
    if was_finished:  # the log message of the run names its report
        if track:
            track_finished_run(folder, track, print_line)
        print_result(folder / "report.html", describe_run(folder))
        return 0
    return print_run_result(folder, recipe)


def show_signal(is_main: bool, line: str) -> None:
    """Print that a signal ended the training, in the main process."""
    if is_main:
        print_warning(f"fastcxr: {line}")


def validate_data(recipe: Recipe) -> None:
    """Report an invalid dataset before torch takes seconds to load."""
    from fastcxr.data.manifest import detect_datasets

    with silence_logging():
        detect_datasets(recipe.data or (), recipe.data_format)


def get_command() -> str:
    """Return the command line of this process, for run.json."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def print_finished_run(folder: Path) -> int:
    """Print that the run is finished, with the path of its report."""
    report = folder / "report.html"
    print_line(f"this run is finished: {report}")
    print_result(report, describe_run(folder))
    return 0


def describe_run(folder: Path | None) -> dict[str, Any] | None:
    """Return folder, report and metrics of a finished run for --json; None for a run without metrics."""
    if folder is None or not (folder / "metrics.json").is_file():
        return None
    return {"folder": folder, "report": folder / "report.html", "metrics": read_json(folder / "metrics.json")}


def print_run_result(folder: Path, recipe: Recipe | None = None) -> int:
    """Print the headline and the path of the report of a finished run, and what to do next.

    `recipe`: the recipe with full paths; without it the next steps have a placeholder for the data.
    """
    report = folder / "report.html"
    show_headline(console, folder)
    print_result(report, describe_run(folder))
    run = shlex.quote(str(folder))
    if (folder / "model.safetensors").is_file():
        audited = {name: getattr(recipe, name) for name in DESCRIBE_FIELDS} if recipe else None
        steps = [
            f"check for leakage and shortcuts: fastcxr audit {format_options(audited)}",
            f"classify images: fastcxr predict {run} IMAGES",
            f"test on other data: fastcxr evaluate {run} --data DATA",
            f"use without torch: fastcxr export {run}",
        ]
    else:
        steps = [f"compare with another run: fastcxr compare {run} RUN"]
    print_next_steps(make_open_step(report), *steps)
    return 0
