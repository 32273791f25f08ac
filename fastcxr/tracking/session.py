"""The trackers of one run: started before the training, sent each epoch and the results, closed however the run ends.

Everything that is sent is read from the files of the run folder. Its tracking.json has the trackers of the run, so that
a resumed run continues the same tracked runs.
"""

import logging
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from fastcxr.config.fields import unknown_name_error
from fastcxr.errors import FastcxrError, OutputError, RecipeError, TrackingError
from fastcxr.io.files import CHECKSUMS_FILE, list_files, read_json, write_checksums, write_json
from fastcxr.io.formatting import join_names
from fastcxr.io.lock import directory_lock
from fastcxr.io.optional_outputs import describe_error, skip_on_error
from fastcxr.io.packages import require_packages
from fastcxr.io.run_folders import is_part, require_run_file
from fastcxr.tracking.base import STEP, TENSORBOARD_DIR, TRACKING_FILE, Results, Saved, Status, Tracker
from fastcxr.tracking.mlflow import MLflow
from fastcxr.tracking.run_log import (
    find_store_dir,
    list_parts,
    read_description,
    read_epochs,
    read_final_metrics,
    read_learning_rates,
)
from fastcxr.tracking.tensorboard import TensorBoard
from fastcxr.tracking.wandb import WeightsAndBiases

log = logging.getLogger("fastcxr")
TRACKERS: dict[str, type[Tracker]] = {one.name: one for one in (TensorBoard, MLflow, WeightsAndBiases)}
FORMAT = 1
MAX_REASON_CHARS = 120
CREDENTIALS = re.compile(r"://[^/@\s]*@")  # in an address of the tracker
COMPLETE_KEY = "is_complete"  # in tracking.json: the results are sent, too
EPOCHS = "epochs"  # heading of the curves; those of the final metrics are the splits


def read_saved_trackers(folder: Path) -> dict[str, Saved]:
    """Return what tracking.json keeps of each tracker; empty if there is none. Raises OutputError if it is damaged."""
    path = folder / TRACKING_FILE
    if not path.exists():
        return {}
    try:
        content = read_json(path)
        return {name: dict(content["trackers"][name]) for name in content["trackers"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Remove it: a resumed run is then not tracked"
        raise OutputError("the file is damaged", fix, path=path, code="E732") from error


def find_tracker_names(folder: str | Path, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the trackers given, and those with which the run in this folder was started.

    A fold has those of the whole run, and a run without own ones those of its folds.
    """
    folder = Path(folder)
    saved = read_saved_trackers(folder)
    if not saved and is_part(folder.resolve()):
        saved = read_saved_trackers(folder.resolve().parent)
    if not saved:
        saved = {name: {} for part in list_parts(folder) for name in read_saved_trackers(part)}
    return tuple(dict.fromkeys([*([names] if isinstance(names, str) else names), *saved]))


def require_trackers(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that does not exist, PackageError for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown_name_error(name, TRACKERS, "there is no tracker called")
        require_packages([TRACKERS[name].module], f"tracking with {TRACKERS[name].title}")


class Tracking:
    """The trackers of the run in a folder; without trackers, every method returns at once.

    Args:
        folder: the run folder.
        names: trackers, in addition to those with which the run was started.
        is_kept: returns whether the run folder is kept after an error now.
    """

    def __init__(self, folder: str | Path, names: Sequence[str] = (), is_kept: Callable[[], bool] = lambda: True):
        self.folder, self.is_kept = Path(folder), is_kept
        self.names = find_tracker_names(folder, names)
        self.trackers: list[Tracker] = []
        self.is_started = False

    def check(self) -> None:
        """Raise an error if a tracker cannot be used, before the data is read: see require_trackers.

        Raises TrackingError for a server that does not answer or rejects the key.
        """
        require_trackers(self.names)
        for tracker in self._make_trackers():
            with _explain_errors(tracker):
                tracker.check()

    def remember(self) -> None:
        """Write the names of the trackers into the run folder: a resumed run has the same ones."""
        if self.names:
            self._write(read_saved_trackers(self.folder))

    def start(self, show: Callable[[str], None]) -> None:
        """Create the tracked runs, or continue them, and show where they are.

        Raises TrackingError, and removes what this call created.
        """
        description = read_description(self.folder) if self.names else None
        self.is_started, trackers = True, self._make_trackers()
        saved = read_saved_trackers(self.folder)
        for number, tracker in enumerate(trackers):
            assert description is not None
            try:
                with _explain_errors(tracker):
                    tracker.start(description)
            except BaseException:
                _discard(one for one in trackers[:number] if "run_id" not in saved.get(one.name, {}))
                raise
            show(f"tracking: {tracker.title}, {tracker.describe()}")
        self.trackers = trackers
        if trackers:
            self._write(saved)

    def send_epochs(self) -> None:
        """Send the rows of history.csv that a tracker does not have."""
        rows = read_epochs(self.folder) if self.trackers else []
        for tracker in self.trackers.copy():
            with self._drop_on_error(tracker):
                for step, row in enumerate(rows[tracker.n_epochs :], start=tracker.n_epochs + 1):
                    values = {f"{EPOCHS}/{name}": value for name, value in row.items() if name != "elapsed"}
                    tracker.send_values(values | {STEP: step}, step, row["elapsed"])
                    tracker.n_epochs = step

    def complete(self, show: Callable[[str], None] = lambda line: None) -> None:
        """Send the rest of a finished run: epochs, learning rates, final metrics and the report without images.

        A tracker that is not started yet is started. A failure is a warning.
        """
        if not self.is_started:
            try:
                self.start(show)
            except TrackingError as error:
                log.warning("%s", error)
        self.send_epochs()
        results = self._read_results() if self.trackers else None
        rows = read_epochs(self.folder) if self.trackers else []
        parts = [read_saved_trackers(part) for part in list_parts(self.folder)]
        for tracker in self.trackers.copy():
            assert results is not None
            with self._drop_on_error(tracker):
                for step, (row, rate) in enumerate(zip(rows, read_learning_rates(self.folder), strict=False), 1):
                    if rate is not None:
                        tracker.send_values({f"{EPOCHS}/peak_learning_rate": rate}, step, row["elapsed"])
                tracker.send_results(results)
                tracker.add_parts(part[tracker.name] for part in parts if tracker.name in part)
                tracker.end("finished")
                tracker.saved[COMPLETE_KEY] = True
        if self.trackers:
            self._write(read_saved_trackers(self.folder))
        self.trackers = []
        self._update_checksums()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        """After an error, store how the run ended; if the run folder is not kept, remove the tracked runs."""
        if error is None:
            return
        status: Status = "killed" if isinstance(error, KeyboardInterrupt) else "failed"
        if self.is_kept():
            for tracker in self.trackers:
                with suppress(Exception):
                    tracker.end(status)
        else:
            _discard(self.trackers)
        self.trackers = []

    def _make_trackers(self) -> list[Tracker]:
        saved, store_dir = read_saved_trackers(self.folder), find_store_dir(self.folder)
        return [TRACKERS[name](self.folder, store_dir, saved.get(name, {})) for name in self.names]

    def _read_results(self) -> Results:
        from fastcxr.report.run_page import render_image_free_report

        rows, report = read_epochs(self.folder), ""
        if any(tracker.has_files for tracker in self.trackers):
            with skip_on_error("the report for the trackers"):
                report = render_image_free_report(self.folder)
        return Results(
            metrics=read_final_metrics(self.folder),
            report=report,
            step=len(rows),
            seconds=rows[-1]["elapsed"] if rows else 0.0,
        )

    @contextmanager
    def _drop_on_error(self, tracker: Tracker) -> Iterator[None]:
        """Send nothing more to a tracker after an Exception in the block: trackers raise errors of many types."""
        try:
            yield
        except Exception as error:
            self.trackers.remove(tracker)
            # the type only: the message of the run stays in run.json, and that of the error can name a server and a key
            log.warning(
                "%s cannot be reached (%s): the run goes on without it. After the run, send the rest with "
                "`fastcxr track %s --to %s`",
                tracker.title, type(error).__name__, shlex.quote(str(self.folder)), tracker.name,
            )  # fmt: skip
            log.debug("traceback of %s", tracker.title, exc_info=True)
            with suppress(Exception):
                tracker.drop()

    def _write(self, saved: dict[str, Saved]) -> None:
        saved = {name: {} for name in self.names} | saved | {one.name: one.saved for one in self.trackers}
        write_json(self.folder / TRACKING_FILE, {"format": FORMAT, "trackers": saved})

    def _update_checksums(self) -> None:
        """Update the checksums of a finished run folder, whose tracking files have changed since."""
        if not self.names or not (self.folder / CHECKSUMS_FILE).is_file():
            return
        files = list_files(self.folder)
        write_checksums(self.folder, [one for one in files if one.startswith((TRACKING_FILE, f"{TENSORBOARD_DIR}/"))])


def _discard(trackers: Iterator[Tracker] | Sequence[Tracker]) -> None:
    for tracker in trackers:
        with suppress(Exception):
            tracker.discard()


@contextmanager
def _explain_errors(tracker: Tracker) -> Iterator[None]:
    """Raise TrackingError for an Exception in the block."""
    try:
        yield
    except FastcxrError:
        raise
    except Exception as error:
        log.debug("traceback of %s", tracker.title, exc_info=True)
        reason = textwrap.shorten(CREDENTIALS.sub("://", describe_error(error)), MAX_REASON_CHARS, placeholder=" ...")
        problem = f"{tracker.title} cannot be used ({reason})"
        raise TrackingError(problem, tracker.fix, code="E731") from error


def find_complete_trackers(folder: Path, names: Sequence[str]) -> list[str]:
    """Return those of the trackers that have the run and its folds completely."""
    saved = [read_saved_trackers(run) for run in (*list_parts(folder), folder)]
    return [name for name in names if all(one.get(name, {}).get(COMPLETE_KEY) for one in saved)]


def track_finished_run(folder: str | Path, names: Sequence[str], show: Callable[[str], None]) -> list[str]:
    """Send a finished run, or what is missing of it, to trackers; return the names of those that had it completely.

    Args:
        folder: the run folder; of a cross-validation, the folds are sent, too.
        names: the trackers; by default those of the run.
        show: shows a line for each tracked run.

    Raises:
        InputMissingError: the folder is not a finished run.
        TrackingError: a tracker cannot be used.
    """
    folder = Path(folder)
    require_run_file(folder, "metrics.json")
    names = tuple(names) or find_tracker_names(folder)
    if not names:
        raise RecipeError("the run has no tracker", "Pass one, such as `to='mlflow'`")
    runs = [*list_parts(folder), folder]
    complete = find_complete_trackers(folder, names)
    for run in runs:
        saved = read_saved_trackers(run)
        tracking = Tracking(run)
        tracking.names = tuple(name for name in names if not saved.get(name, {}).get(COMPLETE_KEY))
        with directory_lock(run), tracking:
            tracking.check()
            tracking.start(show)
            tracking.complete()
        if missing := [name for name in tracking.names if not read_saved_trackers(run)[name].get(COMPLETE_KEY)]:
            raise TrackingError(f"{run} was not sent to {join_names(missing)}", "Repeat the command", code="E731")
    return complete
