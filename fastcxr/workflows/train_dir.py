"""Run folder of a training run: recipe.json is written first, history.csv after every epoch."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Self

import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner

from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.errors import ImageError, require_type
from fastcxr.inference.predict import predict
from fastcxr.io.files import STATE_DIR, atomic_write, read_json, write_json
from fastcxr.io.run_folders import TUNING_FILE
from fastcxr.metrics.calibration import fit_calibration, scale_predictions
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.feature_map import FEATURE_MAP_FILE
from fastcxr.metrics.predictions import Predictions, write_predictions
from fastcxr.metrics.thresholds import fit_thresholds
from fastcxr.models.bundle import extract_classifier, save_model
from fastcxr.models.devices import describe_gpu
from fastcxr.models.state import require_images
from fastcxr.progress.base import Progress
from fastcxr.report.tuning_notice import TUNING_KEY
from fastcxr.tracking.session import Tracking
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.processes import require_equal_data
from fastcxr.training.trainer import TrainingResult, summarize_own_training
from fastcxr.workflows.audit import check_before_training
from fastcxr.workflows.overlap import write_features
from fastcxr.workflows.recipe_check import reject_other_recipe
from fastcxr.workflows.result_dir import ResultDir
from fastcxr.workflows.run_dir import write_table
from fastcxr.workflows.run_state import (
    IMAGE_HASH_COLUMN,
    acquire_or_resume,
    validate_unchanged_images,
)

INITIAL_MANIFEST = "initial_manifest.csv"  # in the checkpoint folder: the images at the start of the run


class RunDir(ResultDir):
    """A run folder. While it is open, it records log messages, every epoch and checkpoints."""

    def __init__(
        self,
        folder: str | Path,
        recipe: Recipe,
        command: str | None = None,
        *,
        resume: bool = False,
        mirror: str | Path | None = None,
        tuning: Mapping[str, Any] | None = None,
        track: Sequence[str] = (),
    ):
        super().__init__(folder, recipe, command)
        self.tuning = tuning
        self.tracking = Tracking(folder, track, self.keep_on_error)
        self.resume, self.is_resumed = resume, False
        self.history_rows: list[dict[str, Any]] = []
        self.image_hashes: list[str] | None = None
        self.checkpoints = Checkpoints(self.folder / STATE_DIR, mirror)

    def acquire(self) -> None:
        """Create the folder, or with `resume` accept one with a run of the same recipe. Raise OutputError otherwise."""
        if self.resume:
            self.is_resumed = (self.folder / "recipe.json").is_file()
            acquire_or_resume(self.folder, self.recipe)
        else:
            super().acquire()

    def announce(self) -> None:
        """Show the folder on the other display, and whether it holds a run that is resumed."""
        self.progress.output_folder(f"run folder: {self.folder}" + " (started earlier)" * self.is_resumed)

    def setup(self) -> None:
        """Write the recipe; restore the checkpoints from the mirror if the folder has none."""
        super().setup()
        self.keep_tuning()
        if self.checkpoints.mirror:
            mirror = Path(self.checkpoints.mirror)
            acquire_or_resume(mirror, self.recipe)
            atomic_write(mirror / "recipe.json", redact_paths(self.recipe).to_json())
            self.checkpoints.copy_from_mirror()

    def keep_tuning(self) -> None:
        """Store how trials selected the options, also for a run that is resumed by itself, in run.json."""
        path = self.folder / STATE_DIR / TUNING_FILE
        if self.tuning is not None:
            write_json(path, dict(self.tuning))
        if path.is_file():
            self.extra_metadata[TUNING_KEY] = read_json(path)

    def keep_on_error(self) -> bool:
        """Return whether an epoch is finished or a checkpoint exists."""
        return bool(self.history_rows) or self.checkpoints.has_states()

    def metadata(self) -> dict[str, Any]:
        """Return the content of run.json, with the name of the GPU."""
        metadata = super().metadata()
        return metadata | {"machine": f"{metadata['machine']}, {describe_gpu()}"}

    def epoch(self, row: dict[str, Any]) -> None:
        """Add a row to history.csv, send it to the trackers and show it on the other display."""
        self.history_rows.append(row)
        write_table(self.folder / "history.csv", pd.DataFrame(self.history_rows))
        self.tracking.send_epochs()
        self.progress.epoch(row)

    def validate_dataset(self, loaders: DataLoaders) -> None:
        """Raise DataError if the images differ from those of the interrupted run; a new run stores its images."""
        self.image_hashes = require_equal_images(loaders)
        current_manifest = loaders.fastcxr.manifest.assign(**{IMAGE_HASH_COLUMN: self.image_hashes})
        manifest_path = self.folder / STATE_DIR / INITIAL_MANIFEST
        if manifest_path.exists():
            validate_unchanged_images(read_written_manifest(manifest_path), current_manifest, self.folder)
        else:
            manifest_path.parent.mkdir(exist_ok=True)
            write_manifest(current_manifest, manifest_path)
            self.checkpoints.copy_to_mirror(INITIAL_MANIFEST)

    def finish(self) -> Path:
        """Write the report, remove the checkpoints and complete the tracked runs; return the path of report.html."""
        with self.tracking:
            report_path = super().finish()
            self.checkpoints.remove()
            self.tracking.complete(self.progress.tracked_run)
        return report_path

    def write_results(
        self,
        learner: Learner,
        training: TrainingResult,
        predictions: Predictions,
        earlier_features: Path | None = None,
    ) -> None:
        """Write all files of the report. The temperature of the probabilities is fitted on validation images.

        `earlier_features`: features.npz of a run that read the same data.
        """
        folder, image_cache = self.folder, learner.dls.fastcxr.image_cache
        image_hashes = self.image_hashes or image_cache.hash_images()
        manifest = learner.dls.fastcxr.manifest.assign(**{IMAGE_HASH_COLUMN: image_hashes})
        write_table(folder / "history.csv", training.history)
        if len(training.curves):
            write_table(folder / "learning_rate.csv", training.curves)
        if len(training.feature_map):
            write_table(folder / FEATURE_MAP_FILE, training.feature_map)
        calibration = fit_calibration(predictions)
        predictions = scale_predictions(predictions, calibration)
        targets = self.recipe.sensitivity, self.recipe.specificity, self.recipe.abstain_rate
        calibration |= fit_thresholds(predictions, *targets)
        if predictions.is_multi_label:
            predictions = apply_thresholds(predictions, calibration)
        save_model(folder, learner, self.recipe, collect_choices(learner, self.recipe, training), calibration)
        write_predictions(predictions, folder / "predictions.csv")
        # the rest reads images again and may fail: the model is already saved
        self.write_dataset_tables(manifest)
        self.write_thumbnails(manifest, predictions)
        with self.guard("features of the images"):
            write_features(folder, manifest, self, earlier_features)
        if not self.recipe.folds:  # saliency maps of a fold are made with fastcxr explain
            self.write_saliency_maps(extract_classifier(learner), manifest, predictions, image_cache)


class UnwrittenDir(RunDir):
    """The run folder for all but the main process of a training: nothing is read from it or written into it."""

    def __init__(self, folder: str | Path, recipe: Recipe):
        super().__init__(folder, recipe)
        self.checkpoints, self.tracking.names = None, ()  # the main process tracks the run

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Self]:
        """Set the display for the length of the block."""
        self.progress = progress
        yield self

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the row on the other display."""
        self.progress.epoch(row)

    def write_skipped(self, errors: list[ImageError], manifest: pd.DataFrame) -> None:
        """Write nothing: the main process leaves out the same images."""

    def validate_dataset(self, loaders: DataLoaders) -> None:
        """Raise DataError if the main process has other images."""
        require_equal_images(loaders)


def require_equal_images(loaders: DataLoaders) -> list[str]:
    """Return the checksums of the images. Raise DataError if another process of this training has other data."""
    image_hashes = loaders.fastcxr.image_cache.hash_images()

    def compute_digest() -> bytes:
        manifest = loaders.fastcxr.manifest.drop(columns="file").assign(**{IMAGE_HASH_COLUMN: image_hashes})
        return hashlib.sha256(manifest.to_csv().encode("utf-8", "surrogateescape")).digest()

    require_equal_data(compute_digest)
    return image_hashes


def write_report(
    folder: str | Path,
    recipe: Recipe,
    learner: Learner,
    training: TrainingResult | None = None,
    predictions: Predictions | None = None,
    track: Sequence[str] = (),
) -> Path:
    """Write the files and the report of a trained learner into a new folder; return the path of report.html.

    Args:
        folder: the folder to create.
        recipe: the recipe of the learner.
        learner: a Learner of make_learner.
        training: the result of `train`; leave it out after own calls of fine_tune, fit_one_cycle or fit.
        predictions: of the validation and test images; by default they are computed.
        track: trackers of the run: tensorboard, mlflow, wandb.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        InputMissingError: the learner was loaded without the images of its run.
        RecipeError: the learner was made or trained with other options than those of `recipe`.
    """
    require_type("folder", folder, str, Path)
    require_type("recipe", recipe, Recipe)
    require_type("learner", learner, Learner)
    require_type("training", training, TrainingResult, NoneType)
    require_type("predictions", predictions, Predictions, NoneType)
    manifest = require_images(learner.dls).manifest
    reject_other_recipe(learner, recipe)
    training = training or summarize_own_training(learner)
    predictions = predictions or predict(learner, manifest)
    new_dir = RunDir(folder, recipe, track=track)
    new_dir.tracking.check()
    with new_dir.open(Progress()) as run_dir, run_dir.tracking:
        check_before_training(run_dir.folder, learner.dls.fastcxr.manifest, reuse_audit=recipe.reuse_audit)
        run_dir.tracking.start(run_dir.progress.tracked_run)
        run_dir.write_results(learner, training, predictions)
    return run_dir.finish()


def collect_choices(learner: Learner, recipe: Recipe, training: TrainingResult) -> dict[str, Any]:
    """Return the settings chosen during the run, for model.json."""
    precision = learner.fastcxr.precision
    skipped = {"skipped_steps": learner.mixed_precision.n_skipped_steps} if precision == "fp16" else {}
    probe = {"probe": training.probe} if training.probe else {}
    return {
        "device": str(learner.dls.device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "batch_size": learner.dls.train.bs,
        "learning_rates": training.rates,
        **training.best,
        **skipped,
        **probe,
    }
