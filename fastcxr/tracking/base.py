"""What a tracker receives of a run, and what each tracker implements.

A tracker reads nothing itself: it receives numbers, the recipe and the report without images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
TRACKING_FILE = "tracking.json"  # of a run folder: the trackers of the run, and its number in each of them
TENSORBOARD_DIR = "tensorboard"  # of a run folder
STEP = "epoch"  # name of the number of the epoch among its values
Status = Literal["finished", "failed", "killed"]
Parameters = dict[str, str | int | float | bool]
Saved = dict[str, Any]  # of one tracker in tracking.json


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What a tracker states about a run from its start.

    Attributes:
        name: of the run folder; of a fold with that of its cross-validation.
        project: name of the dataset.
        group: name of the cross-validation, for a fold and for the pooled run.
        parameters: the recipe, reduced to what may be shared.
        tags: version of fastcxr, and whether this is a run, a fold or the pooled run.
    """

    name: str
    project: str
    group: str | None
    parameters: Parameters
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a tracker receives at the end of a run.

    Attributes:
        metrics: final metrics and the ends of their confidence intervals, by names such as test/accuracy.low.
        report: HTML of the report without images; empty for a tracker that has no files.
        step: number of epochs.
        seconds: of all epochs.
    """

    metrics: dict[str, float]
    report: str
    step: int
    seconds: float


class Tracker:
    """One tracked run. Any exception of a method means that the tracker cannot be used.

    Attributes:
        name: of the tracker in commands and in tracking.json.
        title: of the tracker in messages.
        module: package that it needs.
        fix: what to do if it cannot be used.
        has_files: whether it stores the report.
        saved: what tracking.json keeps of this tracker.
        n_epochs: number of epochs that the tracked run has.
    """

    name: TrackerName
    title, module, fix, has_files = "", "", "", True

    def __init__(self, folder: Path, store_dir: Path, saved: Saved):
        self.folder, self.store_dir, self.saved = folder, store_dir, dict(saved)
        self.n_epochs = 0

    def check(self) -> None:
        """Test whether the tracker can be used; nothing is stored."""

    def start(self, description: RunDescription) -> None:
        """Create the tracked run, or continue the one in `saved`; set `n_epochs`."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return where the tracked run is, and the command that shows or sends it; after `start`."""
        raise NotImplementedError

    def send_values(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Store values of an epoch. `seconds`: from the start of the training to the end of the epoch."""
        raise NotImplementedError

    def send_results(self, results: Results) -> None:
        """Store the final metrics and the report; a repeated call stores them once."""
        raise NotImplementedError

    def add_parts(self, parts: Iterable[Saved]) -> None:
        """Mark tracked runs as the folds of this one, if the tracker has such a mark. `parts`: `saved` of each."""

    def end(self, status: Status) -> None:
        """Store how the run ended and close the tracker."""

    def drop(self) -> None:
        """Release what the tracker holds after an error; it receives nothing more."""

    def discard(self) -> None:
        """Remove the tracked run, which has no epoch: its run folder is removed, too."""


def show_path(path: Path) -> str:
    """Return the path, relative if it is in the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def split_into_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Return the items in lists of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]
