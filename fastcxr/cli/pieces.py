"""Pieces of a run as separate commands: one fold or source, and merge, which pools them."""

import shlex
from pathlib import Path

from fastcxr.cli.app import TRAINING, app, set_default_data
from fastcxr.cli.launch import get_command, print_finished_run, start_training, validate_data
from fastcxr.cli.output import print_next_steps
from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError


def start_piece(recipe: Recipe, name: str, folder: Path, mirror: Path | None = None) -> int:
    """Run one fold or source of a run and return the exit code.

    Args:
        recipe: the recipe of the whole run.
        name: fold number or held-out source.
        folder: the folder of the whole run.
        mirror: a folder for copies of the checkpoints.
    """
    recipe = set_default_data(recipe)
    validate_data(recipe)
    from fastcxr.data.manifest_file import read_written_manifest
    from fastcxr.report.run_reader import PATIENT_SPLIT_DIR
    from fastcxr.workflows.fold_plan import needs_patient_level_folds
    from fastcxr.workflows.merge import find_unfinished_pieces
    from fastcxr.workflows.pieces import claim_piece, is_run_of_piece

    if is_run_of_piece(folder, recipe, name):  # of an earlier version
        return start_training(recipe.replace(fold=int(name)), folder, mirror)
    runs = [(recipe, folder)]
    if needs_patient_level_folds(recipe):
        runs.append((recipe.replace(split="patient"), folder / PATIENT_SPLIT_DIR))
    for run_recipe, run_folder in runs:
        piece_recipe, piece_dir = claim_piece(run_recipe, name, run_folder, get_command())
        if code := start_training(piece_recipe, piece_dir, mirror and mirror / run_folder.name):
            return code
        if not needs_patient_level_folds(recipe, read_written_manifest(piece_dir / "manifest.csv")):
            break
    if not find_unfinished_pieces(folder, recipe):
        print_next_steps(f"pool all folds: fastcxr merge {shlex.quote(str(folder))}")
    return 0


@app.command(group=TRAINING, usage="Usage: fastcxr merge FOLDER")
def merge(folder: Path) -> int:
    """Pool the folds that separate commands ran: the result is that of one command.

    ```
    fastcxr train --data FOLDER --folds 5 --fold 1 --out RUN    # and 2 to 5
    fastcxr merge RUN
    ```

    Parameters
    ----------
    folder
        run folder with the folds of `train --fold`, or the sources of `train --test-source`
    """
    from fastcxr.io.formats import reject_other_format
    from fastcxr.workflows.merge import reject_unfinished_pieces
    from fastcxr.workflows.run_state import is_finished, read_run_config

    reject_other_format(folder)
    if is_finished(folder):
        return print_finished_run(folder)
    recipe = read_run_config(folder)
    if not recipe.is_multi_run:
        raise RecipeError(f"{folder} is a single run, which has no folds", "Pass the folder of a run with folds")
    reject_unfinished_pieces(folder, recipe)
    return start_training(recipe, folder)
