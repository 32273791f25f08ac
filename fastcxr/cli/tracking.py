"""The command track: send a finished run to an experiment tracker."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastcxr.cli.app import RUNS, app
from fastcxr.cli.output import console, print_line, print_result
from fastcxr.progress.terminal import print_plain
from fastcxr.tracking.base import TRACKING_FILE, TrackerName


@app.command(group=RUNS, usage="Usage: fastcxr track FOLDER [--to TRACKER]")
def track(folder: Path, *, to: Annotated[tuple[TrackerName, ...], Parameter(name="--to")] = ()) -> int:
    """Send a finished run to TensorBoard, MLflow or W&B: recipe, epochs, final metrics and the report without images.

    ```
    fastcxr track runs/first --to mlflow
    fastcxr track runs/folds --to tensorboard mlflow    # each fold and the pooled run
    MLFLOW_TRACKING_URI=http://localhost:5000 fastcxr track runs/first --to mlflow
    ```

    `fastcxr train --track TRACKER` does the same during the run. Only what is missing is sent: after a failure of the
    tracker, this command sends the rest.

    Parameters
    ----------
    folder
        run folder; of a cross-validation, its folds are sent, too
    to
        trackers: tensorboard, mlflow, wandb; default: those of the run
    """
    from fastcxr.tracking.session import find_complete_trackers, find_tracker_names, track_finished_run

    for name in track_finished_run(folder, to, lambda line: print_plain(console, line)):
        print_line(f"{name} has this run completely")
    complete = find_complete_trackers(folder, find_tracker_names(folder, to))
    print_result(folder / TRACKING_FILE, {"folder": folder, "complete": complete})
    return 0
