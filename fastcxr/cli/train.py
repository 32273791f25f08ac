"""Commands that train: train, resume, run, scout."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastcxr.cli.app import (
    ScoutOptions,
    TrainOptions,
    app,
    console,
    find_next_run_dir,
    list_numbered_run_dirs,
    set_default_data,
)
from fastcxr.cli.launch import print_run_result, start_training
from fastcxr.cli.tables import show_scout_table
from fastcxr.config.recipe import Recipe, make_data_name
from fastcxr.errors import InputMissingError, OutputError
from fastcxr.io.formats import reject_other_format
from fastcxr.progress.terminal import TerminalProgress


@app.command
def train(
    options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),  # noqa: B008  it is frozen
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
    from fastcxr.workflows.run_state import find_resumable_run, is_unfinished

    recipe = set_default_data(Recipe(**vars(options)))
    name = f"{make_data_name(recipe.data)}-{recipe.backbone}"
    resumable_run = None if new or out else find_resumable_run(list_numbered_run_dirs(name), recipe)
    if new and out and is_unfinished(out):
        raise OutputError("a run was begun here", "Choose another --out, or remove it", path=out)
    return start_training(recipe, out or resumable_run or find_next_run_dir(name), mirror)


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
    from fastcxr.workflows.run_state import find_resumable_run, is_finished, list_runs, read_run_config

    folder = folder or find_resumable_run(list_runs())
    if folder is None:
        raise InputMissingError("no unfinished run is in runs/", "Name a run folder after resume")
    reject_other_format(folder)
    if is_finished(folder):  # recipe.json keeps no place of its data, and none is needed
        console.print(f"this run is finished: {folder / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
        return print_run_result(folder)
    return start_training(read_run_config(folder), folder, mirror)


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
    from fastcxr.cli.study import run_script

    return run_script(script, list(words))


@app.command
def scout(
    *backbones: str,
    options: Annotated[ScoutOptions, Parameter(name="*")] = ScoutOptions(),  # noqa: B008  it is frozen
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
    from fastcxr.workflows.scout import DEFAULT_BACKBONES, parse_weights
    from fastcxr.workflows.scout import scout as scout_backbones

    recipe = set_default_data(Recipe(strategy="probe", **asdict(options)))
    folder = out or find_next_run_dir(f"scout-{make_data_name(recipe.data)}")
    candidates = backbones or DEFAULT_BACKBONES
    table = scout_backbones(recipe, candidates, parse_weights(weights), folder, TerminalProgress(console))
    show_scout_table(console, table)
    print(folder / "scout.svg")
    return 0
