"""Start a training from the command line and print its result."""

import shlex
import sys
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
from fastcxr.cli.tables import show_headline
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions, open_executor
from fastcxr.config.recipe import Recipe
from fastcxr.io.files import read_json
from fastcxr.progress.base import silence_logging
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.interrupt import Interrupted, handle_signals


def start_training(
    recipe: Recipe, folder: Path, mirror: Path | None = None, workers: WorkerOptions = IN_THIS_PROCESS
) -> int:
    """Train a recipe, or all its folds, in a run folder, print the result and return the exit code."""
    recipe = set_default_data(recipe)
    validate_data(recipe)
    from fastcxr.workflows.cross_validate import cross_validate
    from fastcxr.workflows.run_state import is_finished
    from fastcxr.workflows.train import run

    was_finished = is_finished(folder)
    if not recipe.is_multi_run:
        workers.reject("a single run has no folds", "Pass `folds=5`, or leave the option out")
    command = get_command()
    mirror_option = ["--checkpoint-mirror", str(mirror)] if mirror else []
    resume_command = shlex.join(["fastcxr", "resume", str(folder), *mirror_option])
    mirror = mirror and mirror / folder.name
    try:
        with handle_signals(lambda line: print_warning(f"fastcxr: {line}"), resume_command):
            progress = TerminalProgress(console)
            if recipe.is_multi_run:
                with open_executor(workers, recipe.device) as executor:
                    cross_validate(recipe, folder, progress, command=command, mirror=mirror, executor=executor)
            else:
                run(recipe, folder, progress, command=command, mirror=mirror)
    except Interrupted as interrupted:
        has_state = (folder / "recipe.json").exists()
        fix = f"Resume with: {resume_command}" if has_state else "No training step is saved yet: repeat the command"
        return print_error(make_error(f"interrupted ({interrupted})", fix, interrupted.exit_code))
    if was_finished:  # the log message of the run names its report
        print_result(folder / "report.html", describe_run(folder))
        return 0
    return print_run_result(folder, recipe)


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
