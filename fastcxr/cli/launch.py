"""Start a training from the command line and print its result."""

import shlex
import sys
from pathlib import Path
from typing import Any

from fastcxr.cli.app import set_default_data
from fastcxr.cli.output import console, print_line, print_next_steps, print_result, print_warning
from fastcxr.cli.tables import show_headline
from fastcxr.config.recipe import Recipe
from fastcxr.io.files import read_json
from fastcxr.progress.base import silence_logging
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.interrupt import Interrupted, handle_signals


def start_training(recipe: Recipe, folder: Path, mirror: Path | None = None) -> int:
    """Train a recipe, or all its folds, in a run folder, print the result and return the exit code."""
    from fastcxr.data.manifest import detect_datasets

    recipe = set_default_data(recipe)
    with silence_logging():  # report an invalid dataset before torch takes seconds to load
        detect_datasets(recipe.data or (), recipe.data_format)
    from fastcxr.workflows.cross_validate import cross_validate
    from fastcxr.workflows.train import run

    recipe_file = folder / "recipe.json"
    print_line(f"run folder: {folder}" + (" (started earlier)" if recipe_file.exists() else ""))
    run_recipe = cross_validate if recipe.is_multi_run else run
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    mirror_option = ["--checkpoint-mirror", str(mirror)] if mirror else []
    resume_command = shlex.join(["fastcxr", "resume", str(folder), *mirror_option])
    mirror = mirror and mirror / folder.name
    try:
        with handle_signals(lambda line: print_warning(f"fastcxr: {line}"), resume_command):
            run_recipe(recipe, folder, TerminalProgress(console), command=command, mirror=mirror)
    except Interrupted as interrupted:
        has_state = recipe_file.exists()
        fix = f"resume with: {resume_command}" if has_state else "no training step is saved yet: repeat the command"
        print_warning(f"fastcxr: interrupted ({interrupted}); {fix}")
        return interrupted.exit_code
    return print_run_result(folder)


def describe_run(folder: Path | None) -> dict[str, Any] | None:
    """Return folder, report and metrics of a finished run for --json; None for a run without metrics."""
    if folder is None or not (folder / "metrics.json").is_file():
        return None
    return {"folder": folder, "report": folder / "report.html", "metrics": read_json(folder / "metrics.json")}


def print_run_result(folder: Path) -> int:
    """Print the headline and the path of the report of a finished run, and what to do next."""
    report = folder / "report.html"
    show_headline(console, folder)
    print_result(report, describe_run(folder))
    run = shlex.quote(str(folder))
    compare_step = f"compare with another run: fastcxr compare {run} RUN"
    predict_step = f"classify images: fastcxr predict {run} IMAGES"
    audit_step = "check for leakage and shortcuts: fastcxr audit, with the data options of this run"
    evaluate_step = f"test on other data: fastcxr evaluate {run} --data DATA"
    has_model = (folder / "model.safetensors").is_file()
    print_next_steps(f"open {report}", *([audit_step, predict_step, evaluate_step] if has_model else [compare_step]))
    return 0
