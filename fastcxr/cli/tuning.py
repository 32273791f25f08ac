"""Command that searches the options of a training: tune."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fastcxr.cli.app import (
    COMMON_PANEL,
    TRAIN_FIELDS,
    TRAINING,
    app,
    find_next_run_dir,
    list_numbered_run_dirs,
    make_options_class,
    set_default_data,
)
from fastcxr.cli.launch import describe_run, get_command, show_signal, validate_data
from fastcxr.cli.output import (
    console,
    make_error,
    make_open_step,
    print_error,
    print_line,
    print_next_steps,
    print_result,
)
from fastcxr.cli.processes import reject_torchrun
from fastcxr.cli.suggestions import reject_backbone_as_data, reject_path_as_backbone
from fastcxr.cli.workers import IN_THIS_PROCESS, WorkerOptions
from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.config.tasks import SEARCHED_OPTIONS
from fastcxr.io.run_folders import TUNING_TABLE_FILE
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.tracking.base import TrackerName
from fastcxr.training.interrupt import Interrupted, handle_signals

if TYPE_CHECKING:
    from pandas import DataFrame

    TuneOptions = Recipe
else:
    TuneOptions = make_options_class(
        "TuneOptions",
        *TRAIN_FIELDS,
        common_panel=True,
        unset=SEARCHED_OPTIONS,
        hidden=("folds", "fold", "leave_one_source_out"),
    )


@app.command(group=TRAINING, usage="Usage: fastcxr tune [BACKBONE] [OPTIONS]")
def tune(
    options: Annotated[TuneOptions, Parameter(name="*")] = TuneOptions(),  # noqa: B008  it is frozen
    *,
    trials: Annotated[int, Parameter(group=COMMON_PANEL)] = 20,
    search: Annotated[tuple[str, ...], Parameter(group=COMMON_PANEL)] = (),
    winner: Annotated[bool, Parameter(group=COMMON_PANEL)] = True,
    out: Annotated[Path | None, Parameter(group=COMMON_PANEL)] = None,
    track: Annotated[tuple[TrackerName, ...], Parameter(group=COMMON_PANEL)] = (),
    workers: Annotated[WorkerOptions, Parameter(name="*", show=False)] = IN_THIS_PROCESS,
) -> int:
    """Search learning rate, augmentation, image size, loss and other options on the validation images.

    ```
    fastcxr tune --data FOLDER --strategy linear_probe
    fastcxr tune resnet50 --data FOLDER --strategy full --search learning_rate layer_lr_ratio
    fastcxr tune --data FOLDER --search image_size=128,224,320 learning_rate=1e-4..1e-2
    ```

    The best trial is trained and tested once, as a run in the folder best. An option that is given is fixed. An
    interrupted tuning with the same options is resumed. --time-limit is that of all trials together.

    Parameters
    ----------
    trials
        number of trials, earlier ones of this tuning included
    search
        options to search: NAME, NAME=VALUE,VALUE or NAME=LOW..HIGH; default: all that the strategy uses
    winner
        training and test of the best trial; --no-winner: trials only, so that more can follow
    out
        folder to create, or that of the same tuning; default: runs/tune-DATA-BACKBONE-NUMBER
    track
        trackers that show the run of the best trial: tensorboard, mlflow, wandb; the trials are not tracked
    """
    reject_torchrun("tuning")
    workers.reject("each trial depends on the results of the trials before it", "Leave the option out")
    reject_path_as_backbone(options.backbone)
    reject_backbone_as_data(options.data)
    given = {name: value for name, value in vars(options).items() if name in SEARCHED_OPTIONS and value is not None}
    others = {name: value for name, value in vars(options).items() if name not in SEARCHED_OPTIONS}
    recipe = set_default_data(Recipe(**others, **given))
    validate_data(recipe)
    from fastcxr.workflows.tune import find_tuning
    from fastcxr.workflows.tune import tune as run_tuning
    from fastcxr.workflows.tuning_trial import METRICS, find_metric

    name = f"tune-{make_data_name(recipe.data)}-{recipe.backbone}"
    settings: dict[str, Any] = {"search": search or None, "fixed": tuple(given)}
    folder = out or find_tuning(list_numbered_run_dirs(name), recipe, **settings) or find_next_run_dir(name)
    if given:
        print_line(f"fixed: {', '.join(given)}")
    command = get_command()
    choices: dict[str, Any] = {"progress": TerminalProgress(console), "command": command, "track": track}
    try:
        with handle_signals(lambda line: show_signal(True, line), command):
            table = run_tuning(recipe, folder, trials, **settings, winner=winner, **choices)
    except Interrupted as interrupted:
        is_kept = (folder / TUNING_TABLE_FILE).is_file()
        fix = f"{'Finished trials are kept' if is_kept else 'No trial is finished yet'}. Resume with: {command}"
        return print_error(make_error(f"interrupted ({interrupted})", fix, interrupted.exit_code))
    return print_tuning(folder, table, METRICS[find_metric(recipe)])


def print_tuning(folder: Path, table: "DataFrame", metric: str) -> int:
    """Print the best trials, the metrics of the winner and the next steps; return the exit code."""
    from fastcxr.cli.tables import show_headline, show_trials
    from fastcxr.io.tables import to_json_rows

    show_trials(console, table, metric)
    best = folder / "best"
    document = {"folder": folder, "trials": to_json_rows(table), "winner": describe_run(best)}
    if document["winner"] is None:
        print_result(folder / "tuning.csv", document)
        print_next_steps(f"train and test the best trial: {get_command().replace(' --no-winner', '')}")
        return 0
    show_headline(console, best)
    print_result(best / "report.html", document)
    figures = [shlex.quote(str(path)) for path in (folder / "trials.svg", folder / "options.svg") if path.is_file()]
    print_next_steps(
        make_open_step(best / "report.html"),
        *([f"see the trials: {' and '.join(figures)}"] if figures else []),
        f"classify images: fastcxr predict {shlex.quote(str(best))} IMAGES",
        f"test on other data: fastcxr evaluate {shlex.quote(str(best))} --data DATA",
    )
    return 0
