"""A recipe of several runs, one a fold or one a source, becomes these runs and one report of all that was held out."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.manifest_checks import check_manifest
from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.splits import INTERNAL_TEST, find_complete_sources
from fastcxr.errors import DataError
from fastcxr.io.files import CHECKSUMS_FILE, read_json, write_json
from fastcxr.io.lock import directory_lock
from fastcxr.metrics.predictions import OUT_OF_FOLD, Predictions, read_predictions, write_predictions
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, log_once
from fastcxr.report.run_reader import PATIENT_SPLIT_DIR, DatasetRecord, find_initial_weights, read_dataset_record
from fastcxr.training.time_budget import Deadline
from fastcxr.workflows.audit import write_findings
from fastcxr.workflows.load import SPLITS_IGNORED_MESSAGE, Dataset
from fastcxr.workflows.run_dir import write_table
from fastcxr.workflows.run_state import find_finished_report, validate_finished_parts
from fastcxr.workflows.train import run
from fastcxr.workflows.train_dir import RunDir

log = logging.getLogger("fastcxr")
IMAGE_WARNING = "FCX-W2"  # codes of what was remarked on images: the same ones in every fold
FOLD_METRICS = (
    "n_images",
    "n_patients",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "average_precision",
    "top2_accuracy",
)


def cross_validate(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    mirror: str | Path | None = None,
    dataset: Dataset | None = None,
) -> Path:
    """Run every fold into `folder`/fold-<k>, or every source held out into `folder`/source-<k>, and pool them.

    Returns the path of the pooled report.html. A run that is finished is not run again: remove its folder, give the
    same command, and it alone is redone. Folds that ignore patients, of heads that cost seconds, are run with patients
    apart as well: the report gives both. `dataset`: the recipe's data, where they were read already.
    """
    dataset = dataset or Dataset(recipe)
    fold_recipes = make_fold_recipes(recipe, dataset)
    run_dir = RunDir(folder, recipe, command, resume=True)
    run_dir.started, run_dir.progress = time.time(), progress or make_default_progress()
    run_dir.acquire()
    fold_dirs = make_fold_dirs(recipe, fold_recipes, run_dir.folder)
    if all((directory / "report.html").exists() for directory in (run_dir.folder, *fold_dirs.values())):
        return find_finished_report(folder, recipe, dataset)
    validate_finished_parts(fold_recipes, fold_dirs, find_held_out_unit(recipe), dataset)
    if needs_patient_level_folds(recipe):  # these would be told only when all others have run
        patient_level_recipes = make_fold_recipes(recipe.replace(split="patient"), dataset)
        validate_finished_parts(
            patient_level_recipes,
            make_fold_dirs(recipe, patient_level_recipes, run_dir.folder / PATIENT_SPLIT_DIR),
            find_held_out_unit(recipe),
            dataset,
        )
    with directory_lock(run_dir.folder), log_once(SPLITS_IGNORED_MESSAGE, IMAGE_WARNING):
        (run_dir.folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # all of the pool is written anew where one run was
        run_dir.setup()
        run_folds(run_dir, fold_recipes, fold_dirs, dataset, progress, mirror)
        return run_dir.finish()


def run_folds(
    run_dir: RunDir,
    fold_recipes: dict[str, Recipe],
    fold_dirs: dict[str, Path],
    dataset: Dataset,
    progress: Progress | None,
    mirror: str | Path | None,
) -> None:
    """Every run that is not finished, then what a report of all of them is drawn from."""
    recipe, unit, deadline = (
        run_dir.recipe,
        find_held_out_unit(run_dir.recipe),
        Deadline.parse(run_dir.recipe.time_limit),
    )
    for number, (name, fold_dir) in enumerate(fold_dirs.items()):
        if (fold_dir / "report.html").exists():
            log.info("%s %s of %d is finished already", unit, name, len(fold_dirs))
            continue
        log.info("%s %s of %d", unit, name, len(fold_dirs))
        fold_deadline = Deadline(deadline.seconds_left / (len(fold_dirs) - number))
        run(
            fold_recipes[name],
            fold_dir,
            progress,
            run_dir.command,
            fold_deadline,
            mirror and Path(mirror) / fold_dir.name,
            dataset,
        )
    manifest = write_pooled_files(run_dir, recipe, fold_dirs, dataset)
    if needs_patient_level_folds(recipe) and manifest["patient"].duplicated().any():
        log.info("the same folds once more, with patients apart")
        patient_level_recipe, patient_level_dir = recipe.replace(split="patient"), run_dir.folder / PATIENT_SPLIT_DIR
        cross_validate(patient_level_recipe, patient_level_dir, progress, run_dir.command, dataset=dataset)
    write_json(run_dir.folder / "run.json", run_dir.metadata())


def make_fold_recipes(recipe: Recipe, dataset: Dataset) -> dict[str, Recipe]:
    """The recipe of each run, by the name of what it holds out. Raises DataError where no source can be."""
    if recipe.leave_one_source_out:
        single_recipe = recipe.replace(leave_one_source_out=False)
        return {
            source: single_recipe.replace(test_source=source)
            for source in find_complete_sources(dataset.read_manifest())
        }
    return {str(fold): recipe.replace(fold=fold) for fold in range(1, recipe.folds + 1)}


def make_fold_dirs(recipe: Recipe, fold_names: Iterable[str], folder: Path) -> dict[str, Path]:
    """The run folder of each run, by the name of what it holds out."""
    return {name: folder / f"{find_held_out_unit(recipe)}-{number}" for number, name in enumerate(fold_names, 1)}


def needs_patient_level_folds(recipe: Recipe) -> bool:
    """Whether its runs ignore patients and cost seconds, so that they are run with patients apart too."""
    return recipe.split == "image" and recipe.strategy == "linear_probe"


def find_held_out_unit(recipe: Recipe) -> str:
    """What each run holds out."""
    return "source" if recipe.leave_one_source_out else "fold"


def write_pooled_files(run_dir: RunDir, recipe: Recipe, fold_dirs: dict[str, Path], dataset: Dataset) -> pd.DataFrame:
    """What a report of all runs together is drawn from; returns the manifest."""
    folder = run_dir.folder
    predictions = pool_predictions({name: read_predictions(p / "predictions.csv") for name, p in fold_dirs.items()})
    manifests = {name: read_written_manifest(fold_dir / "manifest.csv") for name, fold_dir in fold_dirs.items()}
    reject_inconsistent_folds(predictions, manifests, find_held_out_unit(recipe), folder)
    manifest = pool_manifest(manifests, dataset.read_manifest(), find_held_out_unit(recipe))
    write_findings(folder, check_manifest(manifest), manifest)
    write_predictions(predictions, folder / "predictions.csv")
    write_table(
        folder / "folds.csv", pd.DataFrame([read_fold_metrics(fold_dir, name) for name, fold_dir in fold_dirs.items()])
    )
    with run_dir.listening():
        run_dir.write_dataset_tables(manifest)
        run_dir.write_thumbnails(manifest, predictions)
    run_dir.extra_metadata |= {"first_weights": join_initial_weights(fold_dirs.values())}
    collect_messages(run_dir, {name: read_dataset_record(fold_dir) for name, fold_dir in fold_dirs.items()})
    return manifest


def join_initial_weights(fold_dirs: Iterable[Path]) -> str:
    """The name of the weights that the runs began with, which is one unless a library changed between them."""
    return " and ".join(
        dict.fromkeys(find_initial_weights(read_json(fold_dir / "model.json")) for fold_dir in fold_dirs)
    )


def collect_messages(run_dir: RunDir, fold_records: dict[str, DatasetRecord]) -> None:
    """Images that the runs left out into skipped.csv; their warnings into what is said of all runs."""
    write_skipped(run_dir.folder, pool_skipped([record.skipped for record in fold_records.values()]))
    fold_messages = {name: record.run.get("messages") or [] for name, record in fold_records.items()}
    run_dir.messages += [
        *pool_split_messages(fold_messages),
        *pool_warnings(fold_messages, find_held_out_unit(run_dir.recipe)),
    ]


def pool_predictions(fold_predictions: dict[str, Predictions]) -> Predictions:
    """The held-out rows of every run, split `oof`, with the name of what was held out as `fold`; then, where a source
    was, what each model said of test images of its own sources, split `internal_test`.
    """
    tables = [
        each.for_split("test").table.assign(split=OUT_OF_FOLD, fold=name) for name, each in fold_predictions.items()
    ]
    tables += [each.for_split(INTERNAL_TEST).table.assign(fold=name) for name, each in fold_predictions.items()]
    return Predictions(pd.concat(tables, ignore_index=True), next(iter(fold_predictions.values())).labels)


def reject_inconsistent_folds(
    predictions: Predictions, manifests: dict[str, pd.DataFrame], unit: str, folder: Path
) -> None:
    """Raises DataError for folds of which two hold out one image, or none does: they are not of the same images."""
    key = ["source", "path"]
    held_out = predictions.for_split(OUT_OF_FOLD).table[key]
    all_images = pd.concat(manifests.values())[key].drop_duplicates()
    n_twice = int(held_out.duplicated().sum())
    n_never = (
        len(all_images) - len(held_out.drop_duplicates()) if unit == "fold" else 0
    )  # a source that lacks a class is not
    if n_twice or n_never:
        problem = f"the {unit}s are not of the same images: {n_twice:,} are held out twice, and {n_never:,} never"
        raise DataError(problem, "Remove the folders of all of them and run them anew", path=folder, code="E313")


def pool_manifest(manifests: dict[str, pd.DataFrame], current_manifest: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The cohort with what held each image out as its split, and the file that this machine has it in.

    An image that nothing held out, for its source lacks a class, is of train. Raises DataError
    for images that are gone.
    """
    key = ["source", "path"]
    held_out = [table[table["split"] == "test"].assign(split=f"{unit} {name}") for name, table in manifests.items()]
    train_tables = [table.assign(split="train") for table in manifests.values()]
    table = pd.concat([*held_out, *train_tables]).drop_duplicates(key)
    pooled = current_manifest[[*key, "file"]].merge(table, on=key)[[*table.columns, "file"]]
    if len(pooled) < len(table):
        problem = f"{len(table) - len(pooled):,} images of the finished {unit}s are not in the data any more"
        raise DataError(problem, f"Give the data that the {unit}s were run on, or choose another --out", code="E313")
    return pooled


def pool_skipped(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Each image that the runs left out, once: every run reads the whole cohort."""
    # two sources may hold one path: its first row in each run is one image, its second another
    numbered_tables = [table.assign(number=table.groupby("path").cumcount()) for table in tables]
    return pd.concat(numbered_tables).drop_duplicates(["path", "number"]).drop(columns="number")


def write_skipped(folder: Path, skipped: pd.DataFrame) -> None:
    """skipped.csv, where anything was left out."""
    if len(skipped):
        write_table(folder / "skipped.csv", skipped)
    else:  # of runs that were done again since, with images that are whole now
        (folder / "skipped.csv").unlink(missing_ok=True)


def pool_warnings(fold_messages: dict[str, list[dict[str, str]]], unit: str) -> list[dict[str, str]]:
    """Each warning of the runs once; before one that not all of them gave stands which did: `fold 2: ...`."""
    folds_by_text: dict[str, list[str]] = {}
    for name, lines in fold_messages.items():
        for text in dict.fromkeys(line["text"] for line in lines if line["level"] == "warning"):
            folds_by_text.setdefault(text, []).append(name)
    prefixes = {
        text: "" if len(names) == len(fold_messages) else f"{unit} {', '.join(names)}: "
        for text, names in folds_by_text.items()
    }
    return [{"level": "warning", "text": prefix + text} for text, prefix in prefixes.items()]


def pool_split_messages(fold_messages: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """What the runs said of given splits, once."""
    texts = dict.fromkeys(line["text"] for lines in fold_messages.values() for line in lines)
    return [{"level": "info", "text": text} for text in texts if text.startswith(SPLITS_IGNORED_MESSAGE)]


def read_fold_metrics(fold_dir: Path, name: str) -> dict[str, Any]:
    """One row of folds.csv: the held-out figures of a run, macro where a figure has several parts."""
    test_metrics = json.loads((fold_dir / "metrics.json").read_text(encoding="utf-8"))["test"]
    metrics = {name: test_metrics[name] for name in FOLD_METRICS}
    return {"fold": name} | {name: v["macro"] if isinstance(v, dict) else v for name, v in metrics.items()}
