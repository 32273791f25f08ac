"""Commands that train: train, resume, run, scout."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastcxr.commands.shared import (
    Choices,
    ScoutChoices,
    app,
    console,
    next_folder,
    same_stem,
    with_data,
)
from fastcxr.errors import InputMissingError, OutputError
from fastcxr.progress import unheard
from fastcxr.recipe import Recipe, name_data
from fastcxr.stopping import Stopped, stoppable
from fastcxr.terminal import (
    TerminalProgress,
    show_headline,
    show_scouted,
)


@app.command
def train(
    choices: Annotated[Choices, Parameter(name="*")] = Choices(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
    new: bool = False,
    mirror: Path | None = None,
) -> int:
    """Train a classifier and write its report. A run of the same flags that was broken off is gone on with.

    Parameters
    ----------
    out
        run folder to make; without it runs/DATA-BACKBONE-NUMBER
    new
        begin anew, whatever was broken off
    mirror
        folder on another disk, such as Colab's Drive, that gets a copy of each state of an unfinished run
    """
    from fastcxr.unfinished import find_unfinished, is_unfinished

    recipe = with_data(Recipe(**vars(choices)))
    name = f"{name_data(recipe.data)}-{recipe.backbone}"
    begun = None if new or out else find_unfinished(same_stem(name), recipe)
    if new and out and is_unfinished(out):
        raise OutputError("a run was begun here", "Choose another --out, or remove it", path=out)
    return start_training(recipe, out or begun or next_folder(name), mirror)


@app.command
def resume(folder: Path | None = None, *, mirror: Path | None = None) -> int:
    """Go on with a run that was broken off, as if it never had been.

    Parameters
    ----------
    folder
        run folder; without it the newest unfinished one in runs/
    mirror
        folder on another disk that has, and gets, a copy of each state
    """
    from fastcxr.unfinished import find_unfinished, is_finished, list_runs, read_begun

    folder = folder or find_unfinished(list_runs())
    if folder is None:
        raise InputMissingError("no unfinished run is in runs/", "Name a run folder after resume")
    if is_finished(folder):  # recipe.json keeps no place of its data, and none is needed
        console.print(f"this run is finished: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
        return show_finished(folder)
    return start_training(read_begun(folder), folder, mirror)


@app.command
def run(script: Path, *words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run an arm of a recipe script, as `python SCRIPT ARM` does: fastcxr run recipes/rachha2020.py resnet101.

    Parameters
    ----------
    script
        file with a dict RECIPES
    words
        name of an arm, or --all; then flags of train that change it
    """
    from fastcxr.cooking import cook_script

    return cook_script(script, list(words))


@app.command
def scout(
    *backbones: str,
    choices: Annotated[ScoutChoices, Parameter(name="*")] = ScoutChoices(),  # noqa: B008  it is frozen
    weights: tuple[str, ...] = (),
    out: Path | None = None,
) -> int:
    """Which backbone suits this cohort: a linear head on each frozen candidate, scored on patients it has not seen.

    Parameters
    ----------
    backbones
        names of candidates; without any, a dozen of all kinds
    weights
        NAME=FILE: a weights file for one of them; the others take their pretrained weights
    out
        folder to make; without it runs/scout-DATA-NUMBER
    """
    from fastcxr.scout import CANDIDATES, read_weights
    from fastcxr.scout import scout as scout_backbones

    recipe = with_data(Recipe(strategy="probe", **asdict(choices)))
    folder = out or next_folder(f"scout-{name_data(recipe.data)}")
    names = backbones or CANDIDATES
    table = scout_backbones(recipe, names, read_weights(weights), folder, TerminalProgress(console))
    show_scouted(console, table)
    print(folder / "scout.svg")
    return 0


def start_training(recipe: Recipe, folder: Path, mirror: Path | None = None) -> int:
    """Train a recipe, all its folds if it has some, into a folder, and show what came of it."""
    from fastcxr.data.manifest import find_cohorts

    recipe = with_data(recipe)
    with unheard():
        find_cohorts(recipe.data, recipe.layout)  # a wrong folder is told before torch takes seconds to load
    from fastcxr.cross_validation import cross_validate
    from fastcxr.run import run

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
