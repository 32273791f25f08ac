"""What a run leaves behind: it writes recipe.json first and history.csv as it goes, so that a crash loses little."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe, without_places
from fastcxr.data.cache.images import Pictures
from fastcxr.data.manifest import read_written_manifest, write_manifest
from fastcxr.io.files import STATE, write_whole
from fastcxr.io.optional_outputs import optional
from fastcxr.metrics.calibration import fit_calibration, scale_predictions
from fastcxr.metrics.predictions import Predictions, most_wrong, write_predictions
from fastcxr.metrics.thresholds import fit_decisions
from fastcxr.models.bundle import Classifier, classifier_of, save_model
from fastcxr.progress.base import Progress
from fastcxr.report.run_page import draw_report
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.trainer import Training
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.explain import MAPS, write_run_maps
from fastcxr.workflows.run_dir import CohortFolder, choose_samples, write_table, write_thumbnails
from fastcxr.workflows.run_state import CONTENT, claim_or_continue, compare_cohorts, write_begun

log = logging.getLogger("fastcxr")
MOST_WRONG = 12
COHORT = "cohort.csv"  # in the folder of states: the images that the run began with


class RunFolder(CohortFolder):
    """An open run folder: everything that is said and every epoch goes into it, and on to the one who watches."""

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        command: str | None = None,
        *,
        goes_on: bool = False,
        mirror: str | Path | None = None,
    ):
        super().__init__(folder, command)
        self.recipe, self.goes_on = recipe, goes_on
        self.rows: list[dict[str, Any]] = []
        self.contents: list[str] | None = None  # a checksum of each picture
        self.checkpoints = Checkpoints(self.folder / STATE, mirror)

    def claim(self) -> None:
        """An empty folder, or, for what can go on, one in which the same recipe was begun."""
        if self.goes_on:
            claim_or_continue(self.folder, self.recipe)
        else:
            super().claim()

    def begin(self) -> None:
        """The choices come first, and what the mirror has of this run where there is nothing here."""
        self.command = write_begun(self.folder, self.recipe, self.command)
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

    def finish(self) -> Path:
        """Draw the report; nothing is left to go on with. Returns the path of report.html."""
        page = draw_report(self.folder)
        self.checkpoints.remove()
        return page

    def write(self, learner: Learner, training: Training, predictions: Predictions) -> None:
        """All files that a report is drawn from; probabilities at the temperature that validation images ask for."""
        folder, manifest = self.folder, learner.dls.manifest
        manifest = manifest.assign(**{CONTENT: self.contents or learner.dls.pictures.name_contents()})
        write_table(folder / "history.csv", training.history)
        if len(training.curves):
            write_table(folder / "learning_rate.csv", training.curves)
        calibration = fit_calibration(predictions)
        predictions = scale_predictions(predictions, calibration["temperature"])
        wanted = self.recipe.sensitivity, self.recipe.specificity, self.recipe.abstain
        calibration |= fit_decisions(predictions, *wanted)
        save_model(folder, learner, self.recipe, make_choices(learner, self.recipe, training), calibration)
        write_predictions(predictions, folder / "predictions.csv")
        # what comes now is read from images once more, and may fail without harm to what was trained
        self.write_cohort(manifest)
        self.write_thumbnails(manifest, predictions)
        if not self.recipe.folds:  # a fold is one of many: what it looks at is asked for with fastcxr explain
            self.write_maps(classifier_of(learner), manifest, predictions, learner.dls.pictures)

    def write_measured(self, manifest: pd.DataFrame) -> None:
        """Gray values, kinds and sizes of the images."""
        with optional("gray values, kinds and sizes of the images"):
            super().write_measured(manifest)

    def write_thumbnails(self, manifest: pd.DataFrame, predictions: Predictions) -> None:
        """Samples of each class, and the images that the model got most wrong."""
        wrong = most_wrong(predictions, MOST_WRONG)[["source", "path"]].merge(manifest, on=["source", "path"])
        write_thumbnails(self.folder, pd.concat([choose_samples(manifest), wrong.assign(role="wrong")]), optional)

    def write_maps(
        self,
        classifier: Classifier,
        manifest: pd.DataFrame,
        predictions: Predictions,
        pictures: Pictures | None = None,
    ) -> None:
        """Saliency maps of the most wrong and of typical images, all of them or none."""
        with optional("saliency maps") as attempt:
            wrong = most_wrong(predictions, MOST_WRONG)
            write_run_maps(self.folder, classifier, manifest, predictions, wrong, pictures)
        if attempt.reason:
            (self.folder / "explain.csv").unlink(missing_ok=True)
            shutil.rmtree(self.folder / MAPS, ignore_errors=True)


def write_report(
    folder: str | Path, recipe: Recipe, learner: Learner, training: Training, predictions: Predictions
) -> Path:
    """Check the data, write the files of a run into a new folder, draw its report; returns the path of report.html."""
    with RunFolder(folder, recipe).open(Progress()) as record:
        check_before_training(record.folder, learner.dls.manifest)
        record.write(learner, training, predictions)
    return record.finish()


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
