"""Start a training from the command line and print its result."""

import shlex
import sys
from pathlib import Path

from fastcxr.cli.app import console, with_data
from fastcxr.cli.tables import show_headline
from fastcxr.config.recipe import Recipe
from fastcxr.progress.base import unheard
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.training.interrupt import Stopped, stoppable


def start_training(recipe: Recipe, folder: Path, mirror: Path | None = None) -> int:
    """Train a recipe, all its folds if it has some, into a folder, and show what came of it."""
    from fastcxr.data.manifest import find_cohorts

    recipe = with_data(recipe)
    with unheard():
        find_cohorts(recipe.data, recipe.layout)  # a wrong folder is told before torch takes seconds to load
    from fastcxr.workflows.cross_validate import cross_validate
    from fastcxr.workflows.train import run

    begun = folder / "recipe.json"
    console.print(f"run folder: {folder}" + (" (begun earlier)" if begun.exists() else ""), highlight=False)
    start = cross_validate if recipe.is_pooled else run
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    way_on = shlex.join(["fastcxr", "resume", str(folder), *(["--mirror", str(mirror)] if mirror else [])])
    mirror = mirror and mirror / folder.name
    try:
        with stoppable(say, way_on):
            start(recipe, folder, TerminalProgress(console), command=command, mirror=mirror)
    except Stopped as stopped:
        way_on = way_on if begun.exists() else "the same command; nothing had been trained yet"
        say(f"{stopped}; go on with: {way_on}")
        return stopped.exit_code
    return show_finished(folder)


def show_finished(folder: Path) -> int:
    """The headline of a finished run, and where its page lies."""
    show_headline(console, folder)
    print(folder / "report.html")
    return 0


def say(line: str) -> None:
    """One line about the end of a run."""
    console.print(f"fastcxr: {line}", style="bold yellow", markup=False, highlight=False, soft_wrap=True)
