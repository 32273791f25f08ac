"""A recipe's data flags come in; the manifest that they name, every image read once and split, goes out."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import BitDepths, open_dataset_images
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.duplicates import union_exact_duplicates
from fastcxr.data.manifest import (
    describe_manifest,
    drop_unreadable,
    read_manifest,
    read_written_manifest,
    replace_error_paths,
)
from fastcxr.data.splits import (
    describe_split,
    has_given_splits,
    hold_out_source,
    select_fold,
    split_by_patient,
    split_into_folds,
)
from fastcxr.errors import BadImagesError, ImageError
from fastcxr.io.formats import reject_other_format
from fastcxr.progress.base import Progress, record_logging, replay_logging
from fastcxr.workflows.run_dir import OutputDir

log = logging.getLogger("fastcxr")
SPLITS_IGNORED_MESSAGE = "the splits that the data gives are not used"


class Dataset:
    """The data of a recipe, for all of its runs: the manifest is read and the image cache opened once.

    What was logged meanwhile is logged again to each run that asks later, so that every run folder has it.
    """

    def __init__(self, recipe: Recipe, *, only_test: bool = False, depths: BitDepths | None = None):
        """`only_test`: one class will do. `depths`: those that the training of a model decided."""
        self.recipe, self.only_test, self.depths = recipe, only_test, depths
        self.image_cache: ImageCache | None = None  # of all images, once `open_images` was called
        self._manifest: pd.DataFrame | None = None
        self._manifest_with_depths: pd.DataFrame | None = None
        self._image_errors: list[ImageError] = []
        self._manifest_records: list[logging.LogRecord] = []
        self._image_records: list[logging.LogRecord] = []

    def read_manifest(self) -> pd.DataFrame:
        """The manifest, before any image is read."""
        try:
            if self._manifest is None:
                with record_logging(self._manifest_records):
                    self._manifest = read_recipe_manifest(self.recipe, only_test=self.only_test)
        finally:
            replay_logging(self._manifest_records)
        return self._manifest

    def open_images(self, progress: Progress) -> tuple[pd.DataFrame, list[ImageError]]:
        """Read every image into the image cache; returns the manifest with bit depths, and an error a bad image."""
        manifest = self.read_manifest()
        log.info(describe_manifest(manifest))
        try:
            if self.image_cache is None:
                with record_logging(self._image_records):
                    self._manifest_with_depths, self.image_cache = open_dataset_images(
                        manifest, self.recipe.image_size, progress, self._image_errors, self.depths
                    )
        finally:
            replay_logging(self._image_records)
        self.image_cache.log_warnings()
        return self._manifest_with_depths, self._image_errors


def load_dataset(recipe: Recipe, output_dir: OutputDir, dataset: Dataset | None = None) -> pd.DataFrame:
    """The manifest of the recipe's data, after every image of it was read once, into the store of pictures.

    `dataset`: where another run of the same data has read it. Raises BadImagesError with the whole list, unless the
    recipe leaves bad images out.
    """
    dataset = dataset or Dataset(recipe)
    manifest, image_errors = dataset.open_images(output_dir)
    if image_errors and not recipe.skip_bad:
        raise BadImagesError(replace_error_paths(image_errors, manifest))
    if image_errors:
        output_dir.write_skipped(image_errors, manifest)
        manifest = drop_unreadable(manifest, image_errors, only_test=dataset.only_test)
    return union_exact_duplicates(manifest)  # only now: a placeholder that could not be read belongs to many patients


def read_recipe_manifest(recipe: Recipe, *, only_test: bool = False) -> pd.DataFrame:
    """The manifest of the recipe's data, before any image is read."""
    return read_manifest(
        recipe.data,
        data_format=recipe.data_format,
        patient_table=recipe.patient_table,
        patient_regex=recipe.patient_regex,
        patient_tag=recipe.patient_tag,
        relabel=recipe.relabel,
        classes=recipe.classes,
        filter=recipe.filter,
        keep_columns=recipe.keep_columns,
        deduplicate=recipe.deduplicate,
        only_test=only_test,
    )


def log_ignored_splits(manifest: pd.DataFrame, recipe: Recipe) -> None:
    """Say that folds and held-out sources override the splits that the data gives, which would be obeyed elsewhere."""
    is_given = has_given_splits(manifest) and not recipe.ignore_given_splits
    if is_given and (recipe.fold or recipe.test_source):
        log.info(
            "%s: %s",
            SPLITS_IGNORED_MESSAGE,
            "whole sources are held out" if recipe.test_source else "folds are drawn anew",
        )


def read_earlier_split(recipe: Recipe) -> pd.DataFrame | None:
    """The manifest of the run whose split is reused; None where the recipe names none."""
    if not recipe.reuse_split:
        return None
    reject_other_format(recipe.reuse_split)
    return read_written_manifest(Path(recipe.reuse_split) / "manifest.csv")


def assign_recipe_splits(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The manifest with the splits that the recipe asks for, said aloud."""
    log_ignored_splits(manifest, recipe)
    if recipe.test_source:
        manifest = hold_out_source(manifest, recipe.test_source, seed=recipe.seed)
    elif recipe.fold:
        manifest = split_into_folds(manifest, recipe.folds, unit=recipe.split, seed=recipe.seed)
        manifest = select_fold(manifest, recipe.fold, unit=recipe.split, seed=recipe.seed)
    else:
        earlier = read_earlier_split(recipe)
        options = {"unit": recipe.split, "seed": recipe.seed, "ignore_given_splits": recipe.ignore_given_splits}
        manifest = split_by_patient(manifest, earlier=earlier, **options)
    log.info(describe_split(manifest))
    return manifest
