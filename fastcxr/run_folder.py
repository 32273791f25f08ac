"""What a run leaves behind: it writes recipe.json first and history.csv as it goes, so that a crash loses little."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.data.manifest import read_written_manifest, write_manifest
from fastcxr.errors import DataError, OutputError
from fastcxr.evaluation.calibration import fit_calibration, scale_predictions
from fastcxr.evaluation.decisions import fit_decisions
from fastcxr.evaluation.predictions import Predictions, most_wrong, write_predictions
from fastcxr.evaluation.report import draw_report
from fastcxr.folder import CohortFolder, choose_samples, claim, write_table, write_thumbnails
from fastcxr.inference.bundle import save_model
from fastcxr.privacy import without_places
from fastcxr.progress import Progress
from fastcxr.recipe import Recipe, read_recipe
from fastcxr.storage import STATE, write_whole
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.strategies import Training
from fastcxr.unfinished import write_begun

log = logging.getLogger("fastcxr")
MOST_WRONG = 12
COHORT = "cohort.csv"  # in the folder of states: the images that the run began with
CONTENT = "picture_sha256"  # column of manifest.csv that tells a picture of this run in other data


class RunFolder(CohortFolder):
    """An open run folder: everything that is said and every epoch goes into it, and on to the one who watches."""

    def __init__(
        self, folder: str | Path, recipe: Recipe, command: str | None = None, mirror: str | Path | None = None
    ):
        super().__init__(folder, command)
        self.recipe = recipe
        self.rows: list[dict[str, Any]] = []
        self.contents: list[str] | None = None  # a checksum of each picture
        self.checkpoints = Checkpoints(self.folder / STATE, mirror)

    def claim(self) -> None:
        """An empty folder, or one in which the same recipe was begun."""
        claim_or_continue(self.folder, self.recipe)

    def begin(self) -> None:
        """The choices come first, and what the mirror has of this run where there is nothing here."""
        write_begun(self.folder, self.recipe)
        if mirror := self.checkpoints.mirror:
            claim_or_continue(mirror, self.recipe)
            write_whole(mirror / "recipe.json", without_places(self.recipe).to_json())
            self.checkpoints.fetch()

    def is_worth_keeping(self) -> bool:
        """A run that was trained for an epoch, or has a state, has learned something."""
        return bool(self.rows) or self.checkpoints.exist()

    def account(self) -> dict[str, Any]:
        """The content of run.json, with the GPU if there is one."""
        account = super().account()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return account | {"machine": f"{account['machine']}, {gpu}"}

    def epoch(self, row: dict[str, Any]) -> None:
        """One row more in history.csv, and shown by the watcher."""
        self.rows.append(row)
        write_table(self.folder / "history.csv", pd.DataFrame(self.rows))
        self.watcher.epoch(row)

    def check_cohort(self, loaders: DataLoaders) -> None:
        """A run that goes on must see the images that it began with. Raises DataError, with the difference."""
        self.contents = loaders.pictures.name_contents()
        now, place = loaders.manifest.assign(**{CONTENT: self.contents}), self.folder / STATE / COHORT
        if place.exists():
            compare_cohorts(read_written_manifest(place), now, place)
        else:
            place.parent.mkdir(exist_ok=True)
            write_manifest(now, place)
            self.checkpoints.reflect(COHORT)

    def write(self, learner: Learner, training: Training, predictions: Predictions) -> None:
        """All files that a report is drawn from; probabilities at the temperature that validation images ask for."""
        folder, manifest = self.folder, learner.dls.manifest
        manifest = manifest.assign(**{CONTENT: self.contents or learner.dls.pictures.name_contents()})
        write_table(folder / "history.csv", training.history)
        if len(training.curves):
            write_table(folder / "learning_rate.csv", training.curves)
        self.write_cohort(manifest)
        calibration = fit_calibration(predictions)
        predictions = scale_predictions(predictions, calibration["temperature"])
        wanted = self.recipe.sensitivity, self.recipe.specificity, self.recipe.abstain
        calibration |= fit_decisions(predictions, *wanted)
        save_model(folder, learner, self.recipe, make_choices(learner, self.recipe, training), calibration)
        write_predictions(predictions, folder / "predictions.csv")
        self.write_thumbnails(manifest, predictions)

    def write_thumbnails(self, manifest: pd.DataFrame, predictions: Predictions) -> None:
        """Samples of each class, and the images that the model got most wrong."""
        wrong = most_wrong(predictions, MOST_WRONG).merge(manifest[["source", "path", "file"]], on=["source", "path"])
        write_thumbnails(self.folder, pd.concat([choose_samples(manifest), wrong.assign(role="wrong")]))


def claim_or_continue(folder: Path, recipe: Recipe) -> None:
    """Claim an empty folder for this recipe, or take up one that the same recipe has begun.

    Raises OutputError for a folder that holds anything else, with the difference where it is another recipe.
    """
    begun = folder / "recipe.json"
    if not begun.is_file():
        claim(folder)
        return
    there, now = vars(without_places(read_recipe(begun))), vars(without_places(recipe))
    differing = [name for name in now if there[name] != now[name]]
    if differing:
        shown = "; ".join(f"{name} was {there[name]!r}, is {now[name]!r}" for name in differing)
        fix = "Give the flags that it was begun with, or choose another --out"
        raise OutputError(f"a run of another recipe is here ({shown})", fix, path=folder)


def find_finished(folder: str | Path, recipe: Recipe) -> Path | None:
    """The report of a run of this recipe that is finished in this folder. Raises OutputError for another recipe's."""
    page = Path(folder) / "report.html"
    if not page.is_file():
        return None
    claim_or_continue(page.parent, recipe)
    log.info("this run is finished: %s", page)
    return page


def compare_cohorts(before: pd.DataFrame, now: pd.DataFrame, place: Path) -> None:
    """Raises DataError where the images, their labels, splits or pictures are not those that they were."""
    both = before.merge(now.astype({"source": str, "path": str}), on=["source", "path"], how="outer", indicator=True)
    here = both["_merge"].eq("both")
    changed = both[here & (both[["label_x", "split_x", f"{CONTENT}_x"]].ne(
        both[["label_y", "split_y", f"{CONTENT}_y"]].to_numpy()).any(axis=1))]  # fmt: skip
    counts = {
        "new": both[both["_merge"].eq("right_only")],
        "gone": both[both["_merge"].eq("left_only")],
        "changed": changed,
    }
    shown = [f"{len(rows):,} {word} (as {rows['path'].iloc[0]})" for word, rows in counts.items() if len(rows)]
    if shown:
        what = f"images are not those that this run began with: {', '.join(shown)}"
        raise DataError(what, "Restore them, or start anew with --new", path=place.parent.parent)


def write_report(
    folder: str | Path, recipe: Recipe, learner: Learner, training: Training, predictions: Predictions
) -> Path:
    """Write the files of a run into a new folder and draw its report; returns the path of report.html."""
    claim(Path(folder))
    with RunFolder(folder, recipe).open(Progress()) as record:
        record.write(learner, training, predictions)
    return draw_report(folder)


def make_choices(learner: Learner, recipe: Recipe, training: Training) -> dict[str, Any]:
    """What the run decided for itself, for model.json."""
    return {
        "device": str(learner.dls.device),
        "precision": learner.precision,
        "threads": torch.get_num_threads(),
        "batch_size": learner.dls.train.bs,
        "learning_rates": training.rates,
        **training.best,
    }
