"""Base class of the folders with a model's predictions and their report: runs, and evaluations on other data.

This module does not import torch: an exported model is evaluated without it.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.io.files import STATE_DIR
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.metrics.predictions import Predictions
from fastcxr.report.run_page import write_run_report
from fastcxr.workflows.run_dir import OutputDir, select_sample_images, select_wrong_images, write_thumbnails
from fastcxr.workflows.run_state import IMAGE_KEY, write_run_config

if TYPE_CHECKING:  # torch takes seconds to import
    from fastcxr.data.cache.images import ImageCache
    from fastcxr.models.bundle import Classifier


class ResultDir(OutputDir):
    """An output folder with the recipe, predictions, example images, saliency maps and the report."""

    guard = staticmethod(skip_on_error)  # a failed figure or table must not lose the predictions

    def __init__(self, folder: str | Path, recipe: Recipe, command: str | None = None):
        super().__init__(folder, command)
        self.recipe = recipe

    def setup(self) -> None:
        """Write the recipe."""
        self.command = write_run_config(self.folder, self.recipe, self.command)

    def finish(self) -> Path:
        """Write the report and remove the state of an unfinished folder; return the path of report.html."""
        report_path = write_run_report(self.folder, figures=self.recipe.draws_figures)
        shutil.rmtree(self.folder / STATE_DIR, ignore_errors=True)
        return report_path

    def write_thumbnails(self, manifest: pd.DataFrame, predictions: Predictions) -> None:
        """Write thumbnails of example images of each class and of the worst errors."""
        wrong = select_wrong_images(predictions)[IMAGE_KEY].drop_duplicates()  # an image may be wrong for two findings
        misclassified = wrong.merge(manifest, on=IMAGE_KEY)
        images = pd.concat([select_sample_images(manifest), misclassified.assign(role="wrong")])
        write_thumbnails(self.folder, images, self.guard)

    def write_saliency_maps(
        self,
        classifier: "Classifier",
        manifest: pd.DataFrame,
        predictions: Predictions,
        image_cache: "ImageCache | None" = None,
    ) -> None:
        """Write saliency maps of the worst errors and of typical images; if one fails, remove all."""
        from fastcxr.workflows.explain import MAPS_DIR, write_run_saliency

        with skip_on_error("saliency maps") as attempt:
            write_run_saliency(self.folder, classifier, manifest, predictions, image_cache)
        if attempt.reason:
            (self.folder / "saliency.csv").unlink(missing_ok=True)
            shutil.rmtree(self.folder / MAPS_DIR, ignore_errors=True)
