"""A recipe and an empty folder become a finished run: the whole story on one page."""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.images import check_images
from fastcxr.data.manifest import describe_manifest, leave_out, read_manifest, read_written_manifest
from fastcxr.data.splits import describe_split, split_by_patient
from fastcxr.errors import BadImagesError
from fastcxr.evaluation.report import draw_report
from fastcxr.inference.predict import predict
from fastcxr.progress import Progress, find_progress
from fastcxr.recipe import Recipe
from fastcxr.run_folder import RunFolder
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.strategies import train

log = logging.getLogger("fastcxr")


def run(recipe: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None) -> Path:
    """Train, predict and report into `folder`; returns the path of report.html.

    Raises a FastcxrError, before the first step of training, for data, images, weights or a folder that cannot be used.
    """
    with RunFolder(folder, recipe, command).open(progress or find_progress()) as record:
        manifest = split_cohort(read_cohort(recipe, record), recipe)
        loaders = make_loaders(manifest, recipe)
        learner = make_learner(loaders, recipe)
        training = train(learner, recipe, record)
        splits = ("train", "valid", "test") if recipe.score_train else ("valid", "test")
        predictions = predict(learner, manifest, splits=splits, progress=record)
        record.write(learner, training, predictions)
    return draw_report(folder)


def read_cohort(recipe: Recipe, record: RunFolder) -> pd.DataFrame:
    """The manifest of the recipe's data, after every image of it was read once.

    Raises BadImagesError with the whole list, unless the recipe leaves bad images out.
    """
    manifest = read_chosen(recipe)
    log.info(describe_manifest(manifest))
    bad = check_images(manifest["file"].tolist(), record)
    if not bad:
        return manifest
    if not recipe.skip_bad:
        raise BadImagesError(bad)
    record.write_skipped(bad, manifest)
    return leave_out(manifest, bad)


def read_chosen(recipe: Recipe) -> pd.DataFrame:
    """The manifest of the recipe's data; no image was read yet."""
    return read_manifest(
        recipe.data,
        layout=recipe.layout,
        patients=recipe.patients,
        patient_regex=recipe.patient_regex,
        patient_tag=recipe.patient_tag,
        relabel=recipe.relabel,
        classes=recipe.classes,
        where=recipe.where,
        drop_copies=recipe.drop_copies,
    )


def split_cohort(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """The manifest with the splits that the recipe asks for, said aloud."""
    earlier = read_written_manifest(Path(recipe.split_from) / "manifest.csv") if recipe.split_from else None
    manifest = split_by_patient(
        manifest, unit=recipe.split, seed=recipe.seed, earlier=earlier, given=recipe.given_splits
    )
    log.info(describe_split(manifest))
    return manifest
