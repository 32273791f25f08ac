"""Start a training from the command line and print its result."""

import shlex
import sys
from pathlib import Path

from fastcxr.cli.app import console, print_line, set_default_data
from fastcxr.cli.tables import show_headline
from fastcxr.config.recipe import Recipe
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
        with handle_signals(print_warning, resume_command):
            run_recipe(recipe, folder, TerminalProgress(console), command=command, mirror=mirror)
    except Interrupted as interrupted:
        has_state = recipe_file.exists()
        fix = f"resume with: {resume_command}" if has_state else "no training step is saved yet: repeat the command"
        print_warning(f"{interrupted}; {fix}")
        return interrupted.exit_code
    return print_run_result(folder)


def print_run_result(folder: Path) -> int:
    """Print the headline and the path of the report of a finished run."""
    show_headline(console, folder)
    print(folder / "report.html")
    return 0


def print_warning(line: str) -> None:
    """Print a warning about the end of a run."""
    print_line(f"fastcxr: {line}", "bold yellow")
