"""Commands that train: train, resume, run, scout."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fastcxr.cli.app import (
    COMMON_PANEL,
    PANELS,
    TRAINING,
    ScoutOptions,
    TrainOptions,
    app,
    find_next_run_dir,
    list_numbered_run_dirs,
    set_default_data,
)
from fastcxr.cli.dry_run import start_dry_run
from fastcxr.cli.launch import reject_workers_with_gpus, start_prepared_training
from fastcxr.cli.option_names import format_options, name_options
from fastcxr.cli.output import console, make_open_step, print_next_steps, print_result, print_warning
from fastcxr.cli.pieces import start_piece
from fastcxr.cli.processes import count_gpus, is_first_process, is_launched
from fastcxr.cli.suggestions import COMMAND_SYNONYMS, reject_backbone_as_data, reject_path_as_backbone
from fastcxr.cli.tables import show_scout_table
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions, open_executor
from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.errors import InputMissingError, OutputError
from fastcxr.io.formats import is_unfinished, reject_other_format
from fastcxr.io.lock import reject_locked
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.tracking.base import TrackerName


@app.command(group=TRAINING, synonym=COMMAND_SYNONYMS["train"], usage="Usage: fastcxr train [BACKBONE] [OPTIONS]")
def train(
    options: Annotated[TrainOptions, Parameter(name="*")] = TrainOptions(),  # noqa: B008  it is frozen
    *,
    out: Annotated[Path | None, Parameter(group=COMMON_PANEL)] = None,
    resume: Annotated[bool, Parameter(group=PANELS["Compute"])] = True,
    checkpoint_mirror: Annotated[Path | None, Parameter(group=PANELS["Compute"])] = None,
    gpus: Annotated[str | None, Parameter(group=PANELS["Compute"])] = None,
    track: Annotated[tuple[TrackerName, ...], Parameter(group=COMMON_PANEL)] = (),
    dry_run: Annotated[bool, Parameter(group=COMMON_PANEL)] = False,
    workers: WorkerOptions = IN_THIS_PROCESS,
) -> int:
    """Train a classifier and write its report.

    ```
    fastcxr train --data FOLDER    # one subfolder of images per class
    fastcxr train resnet50 --data images.csv --patient-table patients.csv
    fastcxr train --data SITE_A SITE_B --folds 5 --image-size 320
    ```

    An interrupted run with the same options is resumed. Without --data it uses the class folders in data/, or the
    bundled synthetic sample.

    Parameters
    ----------
    out
        run folder to create; default: runs/DATA-BACKBONE-NUMBER
    resume
        resumption of an interrupted run with the same options; --no-resume: always a new run
    checkpoint_mirror
        folder for a copy of each checkpoint, on another disk, such as Google Drive in Colab
    gpus
        number of GPUs of this machine for one training, or all: one process per GPU, started with torchrun
    track
        trackers that show the run: tensorboard, mlflow, wandb; nothing is sent without this option, and never an image
    dry_run
        images, estimated time, disk, memory and weights of the run, which is not started
    """
    from fastcxr.workflows.run_state import find_resumable_run

    reject_path_as_backbone(options.backbone)
    reject_backbone_as_data(options.data)
    given_recipe, piece = split_piece(vars(options))

    def prepare() -> tuple[Recipe, Path]:
        recipe = set_default_data(given_recipe)
        name = f"{make_data_name(recipe.data)}-{recipe.backbone}"
        resumable_run = find_resumable_run(list_numbered_run_dirs(name), recipe) if resume and not out else None
        if out and not resume and is_unfinished(out):
            reject_locked(out)
            fix = "Choose another --out, or remove the folder"
            raise OutputError("the folder holds an interrupted run", fix, path=out)
        return recipe, out or resumable_run or find_next_run_dir(name)

    if piece:
        workers.reject("this is one piece", "Leave the option out, or run all folds")
    if dry_run:
        reject_workers_with_gpus(workers, gpus)
        n_processes = count_gpus(gpus) if gpus is not None and not is_launched() else None
        return start_dry_run(*prepare(), workers.jobs or 1, n_processes) if is_first_process() else 0
    if piece:
        return start_piece(prepare, piece, checkpoint_mirror, gpus, track)
    return start_prepared_training(prepare, checkpoint_mirror, gpus, workers, track)


def split_piece(values: dict[str, Any]) -> tuple[Recipe, str | None]:
    """Return the recipe of the whole run, and the fold or held-out source of these options that is one piece of it."""
    if values["leave_one_source_out"] and values["test_source"]:
        without_source: dict[str, Any] = values | {"test_source": None}
        return Recipe(**without_source), values["test_source"]
    recipe = Recipe(**values)
    return (recipe.replace(fold=None), str(recipe.fold)) if recipe.fold else (recipe, None)


@app.command(group=TRAINING, usage="Usage: fastcxr resume [FOLDER] [OPTIONS]")
def resume(
    folder: Path | None = None,
    *,
    checkpoint_mirror: Path | None = None,
    gpus: str | None = None,
    workers: WorkerOptions = IN_THIS_PROCESS,
) -> int:
    """Resume an interrupted run; the result is identical to an uninterrupted one.

    Parameters
    ----------
    folder
        run folder; default: the newest interrupted run in runs/
    checkpoint_mirror
        folder for a copy of each checkpoint, on another disk
    gpus
        number of GPUs of this machine, or all; it may differ from that of the interrupted run
    """
    from fastcxr.io.run_folders import list_runs
    from fastcxr.workflows.run_state import find_resumable_run, is_finished, read_run_config

    def prepare() -> tuple[Recipe | None, Path]:
        run_dir = folder or find_resumable_run(list_runs())
        if run_dir is None:
            raise InputMissingError("runs/ holds no unfinished run", "Pass a run folder after resume")
        reject_other_format(run_dir)
        # the recipe of a finished run has redacted paths
        return None if is_finished(run_dir) else read_run_config(run_dir), run_dir

    return start_prepared_training(prepare, checkpoint_mirror, gpus, workers)


@app.command(group=TRAINING, usage="Usage: fastcxr run SCRIPT VARIANT [--variant VARIANT] [OPTIONS OF TRAIN]")
def run(script: Path, *variant: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run one variant, or all variants, of a recipe script: fastcxr run recipes/rachha2020.py resnet101.

    Parameters
    ----------
    script
        Python file with a dict RECIPES of the variants
    variant
        name of a variant, or several after --variant, or --all, and then the options of train to change
    """
    from fastcxr.cli.study import run_script

    return run_script(script, list(variant))


@app.command(group=TRAINING, usage="Usage: fastcxr scout [BACKBONES...] [OPTIONS]")
def scout(
    *backbones: str,
    options: Annotated[ScoutOptions, Parameter(name="*")] = ScoutOptions(),  # noqa: B008  it is frozen
    chest: bool = False,
    weights: tuple[str, ...] = (),
    out: Path | None = None,
    workers: WorkerOptions = IN_THIS_PROCESS,
) -> int:
    """Compare backbones on a dataset: a linear probe on each frozen candidate, scored on held-out patients.

    Parameters
    ----------
    backbones
        candidates; default: twelve of different architectures
    chest
        chest encoders whose weights are on this computer as candidates; the others are listed, and not downloaded
    weights
        NAME=FILE: weights file of a candidate; default: pretrained weights; repeatable
    out
        folder to create; default: runs/scout-DATA-NUMBER
    """
    from fastcxr.io.tables import to_json_rows
    from fastcxr.workflows.scout import DEFAULT_BACKBONES, TABLE_FILE, UNRANKED_FIX, parse_weights, scout_encoders
    from fastcxr.workflows.scout import scout as scout_backbones

    for name in backbones:
        reject_path_as_backbone(name)
    recipe = set_default_data(Recipe(strategy="linear_probe", **asdict(options)))
    folder = out or find_next_run_dir(f"scout-{make_data_name(recipe.data)}")
    weights_files, progress = parse_weights(weights), TerminalProgress(console)
    with open_executor(workers, recipe.device) as executor:
        if chest:
            table = scout_encoders(recipe, backbones, weights_files, folder, progress, executor)
        else:
            names = backbones or DEFAULT_BACKBONES
            table = scout_backbones(recipe, names, weights_files, folder, progress, executor)
    show_scout_table(console, table)
    figure = folder / "scout.svg" if table["auroc"].notna().any() else None
    print_result(figure or folder / TABLE_FILE, {"folder": folder, "figure": figure, "backbones": to_json_rows(table)})
    if not figure:
        print_warning(f"no candidate was ranked, only timed. {name_options(UNRANKED_FIX)}")
        return 0
    best = table["backbone"].iloc[0]
    values = vars(options) | {"weights": weights_files.get(best, "pretrained")}
    train_step = f"train the best: fastcxr train {best} {format_options(values)}"
    print_next_steps(make_open_step(figure), train_step)
    return 0
