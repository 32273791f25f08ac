"""Commands that train: train, run, scout."""

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
    find_data,
    next_folder,
)
from fastcxr.recipe import Recipe, name_data
from fastcxr.terminal import (
    TerminalProgress,
    show_headline,
    show_scouted,
)


@app.command
def train(recipe: Choices = Recipe(), *, out: Path | None = None) -> int:  # noqa: B008  a Recipe is frozen
    """Train a classifier and write its report.

    Parameters
    ----------
    out
        run folder to make; without it runs/DATA-BACKBONE-NUMBER
    """
    recipe = recipe if recipe.data else recipe.but(data=find_data())
    return start_training(recipe, out or next_folder(f"{name_data(recipe.data)}-{recipe.backbone}"))


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

    recipe = Recipe(strategy="probe", **asdict(choices))
    recipe = recipe if recipe.data else recipe.but(data=find_data())
    folder = out or next_folder(f"scout-{name_data(recipe.data)}")
    names = backbones or CANDIDATES
    table = scout_backbones(recipe, names, read_weights(weights), folder, TerminalProgress(console))
    show_scouted(console, table)
    print(folder / "scout.svg")
    return 0


def start_training(recipe: Recipe, folder: Path) -> int:
    """Train a recipe, all its folds if it has some, into a new folder, and show what came of it."""
    from fastcxr.data.manifest import find_cohorts

    recipe = recipe if recipe.data else recipe.but(data=find_data())
    find_cohorts(recipe.data, recipe.layout)  # a wrong folder is told before torch takes seconds to load
    from fastcxr.cross_validation import cross_validate
    from fastcxr.run import run

    console.print(f"run folder: {folder}", highlight=False)
    start = cross_validate if recipe.is_pooled else run
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    page = start(recipe, folder, TerminalProgress(console), command=command)
    show_headline(console, folder)
    print(page)
    return 0
