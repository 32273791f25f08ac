"""Commands that train: train, resume, run, scout."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastcxr.cli.app import Choices, ScoutChoices, app, console, next_folder, same_stem, with_data
from fastcxr.cli.launch import show_finished, start_training
from fastcxr.cli.tables import show_scouted
from fastcxr.config.recipe import Recipe, name_data
from fastcxr.errors import InputMissingError, OutputError
from fastcxr.progress.terminal import TerminalProgress


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
    from fastcxr.workflows.run_state import find_unfinished, is_unfinished

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
    from fastcxr.workflows.run_state import find_unfinished, is_finished, list_runs, read_begun

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
    from fastcxr.cli.study import cook_script

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
    from fastcxr.workflows.scout import CANDIDATES, read_weights
    from fastcxr.workflows.scout import scout as scout_backbones

    recipe = with_data(Recipe(strategy="probe", **asdict(choices)))
    folder = out or next_folder(f"scout-{name_data(recipe.data)}")
    names = backbones or CANDIDATES
    table = scout_backbones(recipe, names, read_weights(weights), folder, TerminalProgress(console))
    show_scouted(console, table)
    print(folder / "scout.svg")
    return 0
