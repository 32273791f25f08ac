"""A recipe with folds becomes one finished run a fold, and one report of all images, each scored while held out."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit import write_findings
from fastcxr.checks.tables import check_tables
from fastcxr.cohort import find_manifest
from fastcxr.data.manifest import read_written_manifest
from fastcxr.errors import DataError
from fastcxr.evaluation.predictions import OUT_OF_FOLD, Predictions, read_predictions, write_predictions
from fastcxr.evaluation.record import APART
from fastcxr.evaluation.report import draw_report
from fastcxr.folder import write_table
from fastcxr.lock import held
from fastcxr.progress import Progress, find_progress
from fastcxr.recipe import Recipe
from fastcxr.run import run
from fastcxr.run_folder import RunFolder, find_finished
from fastcxr.storage import write_json
from fastcxr.training.time_limit import Deadline

log = logging.getLogger("fastcxr")
FIGURES = ("n_images", "n_patients", "accuracy", "balanced_accuracy", "auroc", "average_precision", "top2_accuracy")


def cross_validate(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    mirror: str | Path | None = None,
) -> Path:
    """Run every fold into `folder`/fold-<k>, pool them, and return the path of the pooled report.html.

    A fold that is finished is not run again: remove its folder, give the same command, and it alone is redone.
    Folds that ignore patients, of heads that cost seconds, are run with patients apart as well: the report gives both.
    """
    record = RunFolder(folder, recipe, command)
    record.started, record.watcher = time.time(), progress or find_progress()
    record.claim()
    if all((place / "report.html").exists() for place in (record.folder, *fold_places(record))):
        return find_finished(folder, recipe)
    with held(record.folder):
        record.begin()
        run_folds(record, recipe, progress, command, mirror)
        page = draw_report(record.folder)
        record.checkpoints.remove()
        return page


def fold_places(record: RunFolder) -> list[Path]:
    """Where each fold is run."""
    return [record.folder / f"fold-{fold}" for fold in range(1, record.recipe.folds + 1)]


def run_folds(
    record: RunFolder, recipe: Recipe, progress: Progress | None, command: str | None, mirror: str | Path | None
) -> None:
    """Every fold that is not finished, then what a report of all of them is drawn from."""
    whole = Deadline.read(recipe.time_limit)
    for fold, place in enumerate(fold_places(record), 1):
        if (place / "report.html").exists():
            log.info("fold %d of %d is finished already", fold, recipe.folds)
            continue
        log.info("fold %d of %d", fold, recipe.folds)
        share = Deadline(whole.left / (recipe.folds - fold + 1))
        run(recipe.but(fold=fold), place, progress, command, share, mirror and Path(mirror) / place.name)
    manifest = write_pool(record, recipe)
    if recipe.split == "image" and recipe.strategy == "probe" and manifest["patient"].duplicated().any():
        log.info("the same folds once more, with patients apart")
        cross_validate(recipe.but(split="patient"), record.folder / APART, progress, command)
    write_json(record.folder / "run.json", record.account())


def write_pool(record: RunFolder, recipe: Recipe) -> pd.DataFrame:
    """predictions.csv, manifest.csv, folds.csv and thumbnails of all folds together; returns the manifest."""
    folder = record.folder
    places = dict(enumerate(fold_places(record), 1))
    predictions = pool_predictions({fold: read_predictions(p / "predictions.csv") for fold, p in places.items()})
    manifest = pool_manifest(read_written_manifest(places[1] / "manifest.csv"), find_manifest(recipe))
    write_findings(folder, check_tables(manifest), manifest)
    record.write_cohort(manifest)
    write_predictions(predictions, folder / "predictions.csv")
    write_table(folder / "folds.csv", pd.DataFrame([read_figures(place, fold) for fold, place in places.items()]))
    record.write_thumbnails(manifest, predictions)
    return manifest


def pool_predictions(folds: dict[int, Predictions]) -> Predictions:
    """The held-out rows of every fold, split `oof`, with the fold that held them out."""
    parts = [each.part("test").table.assign(split=OUT_OF_FOLD, fold=fold) for fold, each in folds.items()]
    return Predictions(pd.concat(parts, ignore_index=True), folds[min(folds)].labels)


def pool_manifest(written: pd.DataFrame, read: pd.DataFrame) -> pd.DataFrame:
    """The cohort with each image's fold as its split, and the file that this machine has it in."""
    table = written.merge(read[["source", "path", "file"]], on=["source", "path"])
    if len(table) < len(written):
        what = f"{len(written) - len(table):,} images of the finished folds are not in the data any more"
        raise DataError(what, "Give the data that the folds were run on, or choose another --out", code="E302")
    return table.assign(split="fold " + table["fold"])


def read_figures(place: Path, fold: int) -> dict[str, Any]:
    """One row of folds.csv: the held-out figures of a fold, macro where a figure has several parts."""
    part = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["test"]
    figures = {name: part[name] for name in FIGURES}
    return {"fold": fold} | {name: v["macro"] if isinstance(v, dict) else v for name, v in figures.items()}
