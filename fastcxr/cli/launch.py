"""Start a training from the command line and print its result."""

import shlex
import sys
from pathlib import Path

from fastcxr.cli.app import (
    console,
    set_default_data,
)
from fastcxr.cli.tables import show_headline
from fastcxr.config.recipe import Recipe
from fastcxr.progress.base import silence_logging
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.interrupt import Interrupted, handle_signals


def start_training(recipe: Recipe, folder: Path, mirror: Path | None = None) -> int:
    """Train a recipe, all its folds if it has some, into a folder, and show what came of it."""
    from fastcxr.data.manifest import detect_datasets

    recipe = set_default_data(recipe)
    with silence_logging():
        detect_datasets(recipe.data, recipe.data_format)  # a wrong folder is told before torch takes seconds to load
    from fastcxr.workflows.cross_validate import cross_validate
    from fastcxr.workflows.train import run

    recipe_file = folder / "recipe.json"
    console.print(f"run folder: {folder}" + (" (begun earlier)" if recipe_file.exists() else ""), highlight=False)
    run_recipe = cross_validate if recipe.is_multi_run else run
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    resume_command = shlex.join(
        ["fastcxr", "resume", str(folder), *(["--checkpoint-mirror", str(mirror)] if mirror else [])]
    )
    mirror = mirror and mirror / folder.name
    try:
        with handle_signals(print_warning, resume_command):
            run_recipe(recipe, folder, TerminalProgress(console), command=command, mirror=mirror)
    except Interrupted as interrupted:
        resume_command = resume_command if recipe_file.exists() else "the same command; nothing had been trained yet"
        print_warning(f"{interrupted}; go on with: {resume_command}")
        return interrupted.exit_code
    return print_run_result(folder)


def print_run_result(folder: Path) -> int:
    """The headline of a finished run, and where its page lies."""
    show_headline(console, folder)
    print(folder / "report.html")
    return 0


def print_warning(line: str) -> None:
    """One line about the end of a run."""
    console.print(f"fastcxr: {line}", style="bold yellow", markup=False, highlight=False, soft_wrap=True)
