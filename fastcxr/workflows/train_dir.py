"""What a run leaves behind: it writes recipe.json first and history.csv as it goes, so that a crash loses little."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe, redact_paths
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.manifest import read_written_manifest, write_manifest
from fastcxr.io.files import STATE_DIR, atomic_write
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.metrics.calibration import fit_calibration, scale_predictions
from fastcxr.metrics.predictions import Predictions, select_most_wrong, write_predictions
from fastcxr.metrics.thresholds import fit_thresholds
from fastcxr.models.bundle import Classifier, extract_classifier, save_model
from fastcxr.progress.base import Progress
from fastcxr.report.run_page import write_run_report
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.trainer import TrainingResult
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.explain import MAPS_DIR, write_run_saliency
from fastcxr.workflows.run_dir import OutputDir, select_sample_images, write_table, write_thumbnails
from fastcxr.workflows.run_state import (
    IMAGE_HASH_COLUMN,
    acquire_or_resume,
    validate_unchanged_images,
    write_run_config,
)

log = logging.getLogger("fastcxr")
N_MISCLASSIFIED = 12
INITIAL_MANIFEST = "initial_manifest.csv"  # in the folder of states: the images that the run began with


class RunDir(OutputDir):
    """An open run folder: everything that is said and every epoch goes into it, and on to the one who watches."""

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        command: str | None = None,
        *,
        resume: bool = False,
        mirror: str | Path | None = None,
    ):
        super().__init__(folder, command)
        self.recipe, self.resume = recipe, resume
        self.history_rows: list[dict[str, Any]] = []
        self.image_hashes: list[str] | None = None  # a checksum of each picture
        self.checkpoints = Checkpoints(self.folder / STATE_DIR, mirror)

    def acquire(self) -> None:
        """An empty folder, or, for what can go on, one in which the same recipe was begun."""
        if self.resume:
            acquire_or_resume(self.folder, self.recipe)
        else:
            super().acquire()

    def setup(self) -> None:
        """The choices come first, and what the mirror has of this run where there is nothing here."""
        self.command = write_run_config(self.folder, self.recipe, self.command)
        if mirror := self.checkpoints.mirror:
            acquire_or_resume(mirror, self.recipe)
            atomic_write(mirror / "recipe.json", redact_paths(self.recipe).to_json())
            self.checkpoints.copy_from_mirror()

    def keep_on_error(self) -> bool:
        """A run that was trained for an epoch, or has a state, has learned something."""
        return bool(self.history_rows) or self.checkpoints.has_states()

    def metadata(self) -> dict[str, Any]:
        """The content of run.json, with the GPU if there is one."""
        metadata = super().metadata()
        gpu_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return metadata | {"machine": f"{metadata['machine']}, {gpu_name}"}

    def epoch(self, row: dict[str, Any]) -> None:
        """One row more in history.csv, and shown by the watcher."""
        self.history_rows.append(row)
        write_table(self.folder / "history.csv", pd.DataFrame(self.history_rows))
        self.progress.epoch(row)

    def validate_dataset(self, loaders: DataLoaders) -> None:
        """A run that goes on must see the images that it began with. Raises DataError, with the difference."""
        self.image_hashes = loaders.fastcxr.image_cache.hash_images()
        current_manifest, manifest_path = (
            loaders.fastcxr.manifest.assign(**{IMAGE_HASH_COLUMN: self.image_hashes}),
            self.folder / STATE_DIR / INITIAL_MANIFEST,
        )
        if manifest_path.exists():
            validate_unchanged_images(read_written_manifest(manifest_path), current_manifest, manifest_path)
        else:
            manifest_path.parent.mkdir(exist_ok=True)
            write_manifest(current_manifest, manifest_path)
            self.checkpoints.copy_to_mirror(INITIAL_MANIFEST)

    def finish(self) -> Path:
        """Draw the report; nothing is left to go on with. Returns the path of report.html."""
        report_path = write_run_report(self.folder)
        self.checkpoints.remove()
        return report_path

    def write_results(self, learner: Learner, training: TrainingResult, predictions: Predictions) -> None:
        """All files that a report is drawn from; probabilities at the temperature that validation images ask for."""
        folder, manifest = self.folder, learner.dls.fastcxr.manifest
        manifest = manifest.assign(
            **{IMAGE_HASH_COLUMN: self.image_hashes or learner.dls.fastcxr.image_cache.hash_images()}
        )
        write_table(folder / "history.csv", training.history)
        if len(training.curves):
            write_table(folder / "learning_rate.csv", training.curves)
        calibration = fit_calibration(predictions)
        predictions = scale_predictions(predictions, calibration["temperature"])
        targets = self.recipe.sensitivity, self.recipe.specificity, self.recipe.abstain_rate
        calibration |= fit_thresholds(predictions, *targets)
        save_model(folder, learner, self.recipe, collect_choices(learner, self.recipe, training), calibration)
        write_predictions(predictions, folder / "predictions.csv")
        # what comes now is read from images once more, and may fail without harm to what was trained
        self.write_dataset_tables(manifest)
        self.write_thumbnails(manifest, predictions)
        if not self.recipe.folds:  # a fold is one of many: what it looks at is asked for with fastcxr explain
            self.write_saliency_maps(
                extract_classifier(learner), manifest, predictions, learner.dls.fastcxr.image_cache
            )

    def write_measured(self, manifest: pd.DataFrame) -> None:
        """Gray values, kinds and sizes of the images."""
        with skip_on_error("gray values, kinds and sizes of the images"):
            super().write_measured(manifest)

    def write_thumbnails(self, manifest: pd.DataFrame, predictions: Predictions) -> None:
        """Samples of each class, and the images that the model got most wrong."""
        misclassified = select_most_wrong(predictions, N_MISCLASSIFIED)[["source", "path"]].merge(
            manifest, on=["source", "path"]
        )
        write_thumbnails(
            self.folder, pd.concat([select_sample_images(manifest), misclassified.assign(role="wrong")]), skip_on_error
        )

    def write_saliency_maps(
        self,
        classifier: Classifier,
        manifest: pd.DataFrame,
        predictions: Predictions,
        image_cache: ImageCache | None = None,
    ) -> None:
        """Saliency maps of the most wrong and of typical images, all of them or none."""
        with skip_on_error("saliency maps") as attempt:
            misclassified = select_most_wrong(predictions, N_MISCLASSIFIED)
            write_run_saliency(self.folder, classifier, manifest, predictions, misclassified, image_cache)
        if attempt.reason:
            (self.folder / "saliency.csv").unlink(missing_ok=True)
            shutil.rmtree(self.folder / MAPS_DIR, ignore_errors=True)


def write_report(
    folder: str | Path, recipe: Recipe, learner: Learner, training: TrainingResult, predictions: Predictions
) -> Path:
    """Check the data, write the files of a run into a new folder, draw its report; returns the path of report.html."""
    with RunDir(folder, recipe).open(Progress()) as run_dir:
        check_before_training(run_dir.folder, learner.dls.fastcxr.manifest)
        run_dir.write_results(learner, training, predictions)
    return run_dir.finish()


def collect_choices(learner: Learner, recipe: Recipe, training: TrainingResult) -> dict[str, Any]:
    """What the run decided for itself, for model.json."""
    return {
        "device": str(learner.dls.device),
        "precision": learner.fastcxr.precision,
        "threads": torch.get_num_threads(),
        "batch_size": learner.dls.train.bs,
        "learning_rates": training.rates,
        **training.best,
    }
