"""Pieces of a run as separate commands: one fold or source, and merge, which joins folds or shards."""

import shlex
from collections.abc import Callable
from pathlib import Path

from fastcxr.cli.app import TRAINING, app
from fastcxr.cli.launch import (
    get_command,
    print_finished_run,
    start_prepared_training,
    start_training,
    validate_data,
)
from fastcxr.cli.output import print_next_steps, print_result
from fastcxr.cli.processes import is_launched, reject_torchrun
from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError


def start_piece(
    prepare: Callable[[], tuple[Recipe, Path]],
    name: str,
    mirror: Path | None = None,
    gpus: str | None = None,
    track: tuple[str, ...] = (),
) -> int:
    """Run one fold or source of a run and return the exit code.

    Args:
        prepare: returns the recipe and the folder of the whole run.
        name: fold number or held-out source.
        mirror: a folder for copies of the checkpoints.
        gpus: see start_prepared_training.
        track: trackers of the run.
    """
    if gpus is not None or is_launched():
        return start_prepared_training(lambda: claim_for_processes(*prepare(), name), mirror, gpus, track=track)
    recipe, folder = prepare()
    from fastcxr.tracking.session import require_trackers

    require_trackers(track)
    validate_data(recipe)
    from fastcxr.data.manifest_file import read_written_manifest
    from fastcxr.report.run_reader import PATIENT_SPLIT_DIR
    from fastcxr.workflows.fold_plan import needs_patient_level_folds
    from fastcxr.workflows.merge import find_unfinished_pieces
    from fastcxr.workflows.pieces import claim_piece, is_run_of_piece

    if is_run_of_piece(folder, recipe, name):  # of an earlier version
        return start_training(recipe.replace(fold=int(name)), folder, mirror, track=track)
    runs = [(recipe, folder)]
    if needs_patient_level_folds(recipe):
        runs.append((recipe.replace(split="patient"), folder / PATIENT_SPLIT_DIR))
    for run_recipe, run_folder in runs:
        piece_recipe, piece_dir = claim_piece(run_recipe, name, run_folder, get_command())
        piece_track = track if run_folder == folder else ()  # the second split is part of the report of the first one
        if code := start_training(piece_recipe, piece_dir, mirror and mirror / run_folder.name, track=piece_track):
            return code
        if not needs_patient_level_folds(recipe, read_written_manifest(piece_dir / "manifest.csv")):
            break
    if not find_unfinished_pieces(folder, recipe):
        print_next_steps(f"pool all folds: fastcxr merge {shlex.quote(str(folder))}")
    return 0


def claim_for_processes(recipe: Recipe, folder: Path, name: str) -> tuple[Recipe, Path]:
    """Return recipe and run folder of a fold or source that all processes of torchrun train together.

    Raises RecipeError for a fold that is also run with a patient-level split: torchrun starts one training.
    """
    from fastcxr.workflows.fold_plan import needs_patient_level_folds
    from fastcxr.workflows.pieces import claim_piece, is_run_of_piece

    if is_run_of_piece(folder, recipe, name):  # of an earlier version
        return recipe.replace(fold=int(name)), folder
    if needs_patient_level_folds(recipe):
        reject_torchrun("the second, patient-level split of image-level folds of a linear probe")
    return claim_piece(recipe, name, folder, get_command())


@app.command(group=TRAINING, usage="Usage: fastcxr merge FOLDER")
def merge(folder: Path) -> int:
    """Join what separate commands ran, the folds of a run or the shards of a prediction, to the result of one command.

    ```
    fastcxr train --data FOLDER --folds 5 --fold 1 --out RUN    # and 2 to 5
    fastcxr merge RUN
    fastcxr predict RUN IMAGES --csv FILE --shard 1/8    # and 2 to 8
    fastcxr merge FILE.shards
    ```

    Parameters
    ----------
    folder
        run folder with the folds of `train --fold` or the sources of `train --test-source`; or the folder FILE.shards
    """
    from fastcxr.workflows.prediction_shards import is_sharded, merge_shards

    if is_sharded(folder):
        file = merge_shards(folder)
        print_result(file, {"file": file})
        return 0
    from fastcxr.io.formats import reject_other_format
    from fastcxr.io.run_folders import require_run_file
    from fastcxr.workflows.merge import reject_unfinished_pieces
    from fastcxr.workflows.run_state import is_finished, read_run_config

    reject_torchrun("merge")
    reject_other_format(folder)
    require_run_file(folder, "recipe.json", "Pass the folder of a run with folds or sources, or the folder FILE.shards")
    if is_finished(folder):
        return print_finished_run(folder)
    recipe = read_run_config(folder)
    if not recipe.is_multi_run:
        raise RecipeError(f"{folder} is a single run, which has no folds", "Pass the folder of a run with folds")
    reject_unfinished_pieces(folder, recipe)
    return start_training(recipe, folder)
