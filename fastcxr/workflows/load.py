"""Loading of the data of a recipe: manifest, image cache and splits."""

import logging
import time
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL, resolve_task
from fastcxr.data.bit_depth import BitDepths, open_dataset_images
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.duplicates import union_exact_duplicates
from fastcxr.data.findings import is_multi_label, list_findings
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import drop_unlearnable_findings
from fastcxr.data.manifest import (
    describe_manifest,
    detect_datasets,
    drop_unreadable,
    read_manifest,
    replace_error_paths,
)
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.readers.registry import PUBLIC_DATASETS
from fastcxr.data.splits import (
    describe_split,
    has_given_splits,
    hold_out_source,
    select_fold,
    split_by_patient,
    split_into_folds,
)
from fastcxr.data.statistics import sample_patients
from fastcxr.errors import BadImagesError, ImageError
from fastcxr.io.formats import reject_other_format
from fastcxr.io.formatting import pluralize
from fastcxr.io.run_folders import require_run_file
from fastcxr.models.encoders import find_image_size
from fastcxr.progress.base import Progress, record_logging, replay_logging
from fastcxr.workflows.run_dir import OutputDir

log = logging.getLogger("fastcxr")
PUBLIC_DATASETS_KEY = "public_datasets"  # of run.json: names of the public datasets in the data
SPLITS_IGNORED_MESSAGE = "given splits are not used"


class Dataset:
    """The data of a recipe, shared by all of its runs: the manifest is read and the image cache opened once.

    Messages logged in the meantime are logged again for each later run, and stored in every run folder. `image_cache`
    contains all images, or the sample of `max_decoded`, and `decoded` is their manifest with bit depths; both are None
    before open_images. `features_file` is the features.npz of the last run, if any.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        only_test: bool = False,
        depths: BitDepths | None = None,
        max_decoded: int | None = None,
    ):
        """Prepare the data of a recipe; nothing is read.

        Args:
            recipe: recipe with the data options.
            only_test: whether a single class is enough.
            depths: bit depths determined during training.
            max_decoded: images to decode, a random sample of a larger dataset; default: all.
        """
        self.recipe, self.only_test, self.depths, self.max_decoded = recipe, only_test, depths, max_decoded
        self.image_cache: ImageCache | None = None
        self.decoded: pd.DataFrame | None = None
        self.features_file: Path | None = None
        self._manifest: pd.DataFrame | None = None
        self._image_errors: list[ImageError] = []
        self._manifest_records: list[logging.LogRecord] = []
        self._image_records: list[logging.LogRecord] = []

    def read_manifest(self) -> pd.DataFrame:
        """Return the manifest without reading any image."""
        try:
            if self._manifest is None:
                with record_logging(self._manifest_records):
                    self._manifest = read_recipe_manifest(self.recipe, only_test=self.only_test)
        finally:
            replay_logging(self._manifest_records)
        return self._manifest

    def open_images(self, progress: Progress) -> tuple[pd.DataFrame, list[ImageError]]:
        """Read every image into the image cache; return the manifest with bit depths, and the unreadable images.

        If only a sample is decoded, the manifest still has all images, and no bit depths.
        """
        manifest = self.read_manifest()
        log.info(describe_manifest(manifest))
        sample = self._draw_sample(manifest)
        is_sampled = len(sample) < len(manifest)
        try:
            if self.image_cache is None or self.decoded is None:
                with record_logging(self._image_records):
                    started = time.perf_counter()
                    self.decoded, self.image_cache = open_dataset_images(
                        sample, find_image_size(self.recipe), progress, self._image_errors, self.depths
                    )
                    if is_sampled:
                        _log_sample(len(sample), len(manifest), time.perf_counter() - started)
        finally:
            replay_logging(self._image_records)
        self.image_cache.log_warnings()
        return manifest if is_sampled else self.decoded, self._image_errors

    def _draw_sample(self, manifest: pd.DataFrame) -> pd.DataFrame:
        if self.max_decoded is None or len(manifest) <= self.max_decoded:
            return manifest
        return sample_patients(manifest, self.max_decoded, self.recipe.seed)


def _log_sample(n_decoded: int, n_images: int, seconds: float) -> None:
    text = "a random sample of %s of %s images was decoded, %s images/s; `decode_all=True` decodes all"
    log.info(text, f"{n_decoded:,}", f"{n_images:,}", f"{n_decoded / seconds:.3g}")


def load_dataset(recipe: Recipe, output_dir: OutputDir, dataset: Dataset | None = None) -> pd.DataFrame:
    """Read every image of the recipe's data into the image cache; return the manifest of the readable images.

    With `skip_bad` unreadable images are left out and listed in skipped.csv of `output_dir`; otherwise BadImagesError
    is raised with all of them. `dataset`: the data, if another run has already read it.
    """
    dataset = dataset or Dataset(recipe)
    manifest, image_errors = dataset.open_images(output_dir)
    if image_errors and not recipe.skip_bad:
        raise BadImagesError(replace_error_paths(image_errors, manifest))
    if image_errors:
        output_dir.write_skipped(image_errors, manifest)
        manifest = drop_unreadable(manifest, image_errors, only_test=dataset.only_test)
    # after unreadable files are dropped: the same placeholder file can belong to many patients
    return union_exact_duplicates(manifest)


def read_recipe_manifest(recipe: Recipe, *, only_test: bool = False) -> pd.DataFrame:
    """Return the manifest of the recipe's data without reading any image.

    Raises RecipeError for an option that has no meaning for the task of the data.
    """
    manifest = read_manifest(recipe.data or (), recipe, only_test=only_test)
    task = MULTI_LABEL if is_multi_label(manifest) else SINGLE_LABEL
    resolve_task(recipe, task)
    if task == MULTI_LABEL:
        log.info("task: %s, %s", task, pluralize(len(list_findings(manifest)), "finding"))
    return manifest


def name_public_datasets(recipe: Recipe) -> list[str]:
    """Return the names of the public datasets in the data of a recipe."""
    with record_logging([]):  # reading the data logs the same messages
        return [
            dataset.layout
            for dataset in detect_datasets(recipe.data or (), recipe.data_format)
            if dataset.layout in PUBLIC_DATASETS
        ]


def assign_recipe_splits(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Assign the splits of the recipe and log their sizes."""
    unit, seed, ignore_given_splits = recipe.split, recipe.seed, recipe.ignore_given_splits
    if (recipe.test_source or recipe.fold) and has_given_splits(manifest) and not ignore_given_splits:
        reason = "whole sources are held out" if recipe.test_source else "new folds are drawn"
        log.info("%s: %s", SPLITS_IGNORED_MESSAGE, reason)
    if recipe.test_source:
        manifest = hold_out_source(manifest, recipe.test_source, seed=seed)
    elif recipe.fold:
        manifest = split_into_folds(manifest, recipe.folds, unit=unit, seed=seed)
        manifest = select_fold(manifest, recipe.fold, unit=unit, seed=seed, uncertain=recipe.uncertain)
    else:
        earlier = None
        if recipe.reuse_split:
            reject_other_format(recipe.reuse_split)
            require_run_file(recipe.reuse_split, "manifest.csv")
            earlier = read_written_manifest(Path(recipe.reuse_split) / "manifest.csv")
        manifest = split_by_patient(
            manifest,
            unit=unit,
            seed=seed,
            earlier=earlier,
            ignore_given_splits=ignore_given_splits,
            uncertain=recipe.uncertain,
        )
    log.info(describe_split(manifest))
    has_other_runs = bool(recipe.fold or recipe.test_source)  # which must have the same findings
    return drop_unlearnable_findings(manifest, find_uncertain_policy(recipe), only_train=not has_other_runs)
