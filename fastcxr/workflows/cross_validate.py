"""Cross-validation and leave-one-source-out: one run for each fold or source, and a pooled report."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.manifest_checks import check_manifest
from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import DataError
from fastcxr.io.files import CHECKSUMS_FILE, read_json, write_json
from fastcxr.io.formats import reject_other_format
from fastcxr.io.formatting import pluralize
from fastcxr.io.lock import directory_lock
from fastcxr.metrics.predictions import OUT_OF_FOLD, Predictions, read_predictions, write_predictions
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, log_once
from fastcxr.report.run_reader import PATIENT_SPLIT_DIR, find_initial_weights, read_dataset_record
from fastcxr.report.training_summary import has_refitted_head
from fastcxr.report.weights_notices import INITIAL_MODEL_KEY
from fastcxr.training.learner import validate_model_options
from fastcxr.workflows.audit import write_findings
from fastcxr.workflows.fold_plan import find_held_out_unit, needs_patient_level_folds, plan_folds
from fastcxr.workflows.load import PUBLIC_DATASETS_KEY, SPLITS_IGNORED_MESSAGE, Dataset
from fastcxr.workflows.pieces import FoldOptions, run_pieces
from fastcxr.workflows.run_dir import write_table
from fastcxr.workflows.run_state import IMAGE_KEY, Folds, find_finished_report, validate_finished_folds
from fastcxr.workflows.train_dir import RunDir

log = logging.getLogger("fastcxr")
IMAGE_WARNING = "FCX-W2"  # start of the codes of image warnings, which are the same in every fold
FOLD_METRICS = (
    "n_images", "n_patients", "accuracy", "balanced_accuracy", "auroc", "average_precision", "top2_accuracy",
    "exact_match", "hamming_loss",
)  # fmt: skip


def cross_validate(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    mirror: str | Path | None = None,
    dataset: Dataset | None = None,
    executor: Executor | None = None,
    track: Sequence[str] = (),
) -> Path:
    """Run all folds of a recipe, or hold out every source in turn; return the path of the pooled report.html.

    Each run is in `folder`/fold-<k> or `folder`/source-<k>. Finished runs are not repeated; to repeat one, remove its
    folder. Image-level folds of a linear probe are also run with a patient-level split, and the report compares both.
    `mirror`: a folder for copies of the checkpoints. `dataset`: the data of the recipe, if it is already read.
    `executor`: any Executor of concurrent.futures with one task per process, which runs the folds; the run folder and
    the data are on a file system that its workers share. By default the folds run in this process. `track`: trackers
    of each fold and of the pooled run: tensorboard, mlflow, wandb.
    """
    dataset = dataset or Dataset(recipe)
    folds = plan_folds(recipe, Path(folder), dataset)
    is_finished = all((fold_dir / "report.html").exists() for _, fold_dir in folds.values())
    if not is_finished:
        reject_other_format(folder)
        validate_model_options(recipe)
    run_dir = RunDir(folder, recipe, command, resume=True, track=track)
    if not is_finished:
        run_dir.tracking.check()
    run_dir.started, run_dir.progress = time.time(), progress or make_default_progress()
    run_dir.acquire()
    if is_finished and (report := find_finished_report(folder, recipe, dataset)):
        return report
    validate_finished_folds(folds, find_held_out_unit(recipe), dataset)
    if needs_patient_level_folds(recipe):  # before the image-level folds run, not after
        patient_level_folds = plan_folds(recipe.replace(split="patient"), run_dir.folder / PATIENT_SPLIT_DIR, dataset)
        validate_finished_folds(patient_level_folds, "fold", dataset)
    with directory_lock(run_dir.folder), log_once(SPLITS_IGNORED_MESSAGE, IMAGE_WARNING):
        (run_dir.folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # all pooled files are written again
        run_dir.setup()
        run_dir.tracking.remember()
        run_dir.announce()
        run_folds(run_dir, folds, dataset, progress, mirror, executor)
        return run_dir.finish()


def run_folds(
    run_dir: RunDir,
    folds: Folds,
    dataset: Dataset,
    progress: Progress | None,
    mirror: str | Path | None,
    executor: Executor | None,
) -> None:
    """Run all unfinished folds, then write the files of the pooled report."""
    recipe = run_dir.recipe
    run_pieces(run_dir, folds, FoldOptions(dataset, progress, mirror, executor))
    manifest = write_pooled_files(run_dir, {name: fold_dir for name, (_, fold_dir) in folds.items()}, dataset)
    if needs_patient_level_folds(recipe, manifest):
        log.info("running the same folds with a patient-level split")
        patient_level_recipe, patient_level_dir = recipe.replace(split="patient"), run_dir.folder / PATIENT_SPLIT_DIR
        cross_validate(
            patient_level_recipe, patient_level_dir, progress, run_dir.command, dataset=dataset, executor=executor
        )
    write_json(run_dir.folder / "run.json", run_dir.metadata())


def write_pooled_files(run_dir: RunDir, fold_dirs: dict[str, Path], dataset: Dataset) -> pd.DataFrame:
    """Write the files of the pooled report except run.json; return the pooled manifest."""
    folder, unit = run_dir.folder, find_held_out_unit(run_dir.recipe)
    predictions = pool_predictions({name: read_predictions(p / "predictions.csv") for name, p in fold_dirs.items()})
    manifests = {name: read_written_manifest(fold_dir / "manifest.csv") for name, fold_dir in fold_dirs.items()}
    reject_inconsistent_folds(predictions, manifests, unit, folder)
    manifest = pool_manifest(manifests, dataset.read_manifest(), unit)
    write_findings(folder, check_manifest(manifest), manifest)
    write_predictions(predictions, folder / "predictions.csv")
    fold_metrics = [read_fold_metrics(fold_dir, name) for name, fold_dir in fold_dirs.items()]
    write_table(folder / "folds.csv", pd.DataFrame(fold_metrics))
    with run_dir.record_messages():
        run_dir.write_dataset_tables(manifest)
        run_dir.write_thumbnails(manifest, predictions)
    # more than one name if a library changed between the folds
    models = {name: read_json(fold_dir / "model.json") for name, fold_dir in fold_dirs.items()}
    weights = dict.fromkeys(map(find_initial_weights, models.values()))
    refitted = [name for name, model in models.items() if has_refitted_head(model)]
    fold_records = {name: read_dataset_record(fold_dir) for name, fold_dir in fold_dirs.items()}
    public = {name: None for record in fold_records.values() for name in record.run.get(PUBLIC_DATASETS_KEY, [])}
    run_dir.extra_metadata |= {"first_weights": " and ".join(weights), "refitted_heads": refitted}
    run_dir.extra_metadata |= {PUBLIC_DATASETS_KEY: list(public)}
    for record in fold_records.values():
        run_dir.extra_metadata |= {key: record.run[key] for key in (INITIAL_MODEL_KEY,) if key in record.run}
    write_skipped(folder, pool_skipped([record.skipped for record in fold_records.values()]))
    run_dir.messages += pool_messages({name: r.run.get("messages") or [] for name, r in fold_records.items()}, unit)
    return manifest


def pool_predictions(fold_predictions: dict[str, Predictions]) -> Predictions:
    """Return the held-out rows of every run as split `oof`, with a column `fold`.

    For held-out sources the test rows of the training sources follow, as split `internal_test`.
    """
    tables = [
        each.for_split("test").table.assign(split=OUT_OF_FOLD, fold=name) for name, each in fold_predictions.items()
    ]
    tables += [each.for_split(INTERNAL_TEST).table.assign(fold=name) for name, each in fold_predictions.items()]
    return Predictions(pd.concat(tables, ignore_index=True), next(iter(fold_predictions.values())).labels)


def reject_inconsistent_folds(
    predictions: Predictions, manifests: dict[str, pd.DataFrame], unit: str, folder: Path
) -> None:
    """Raise DataError if an image is held out twice, or by no fold: the folds were run on different images."""
    held_out = predictions.for_split(OUT_OF_FOLD).table[IMAGE_KEY]
    n_images = len(pd.concat(manifests.values())[IMAGE_KEY].drop_duplicates())
    n_twice = int(held_out.duplicated().sum())
    # a source that lacks a class is never held out
    n_never = n_images - len(held_out.drop_duplicates()) if unit == "fold" else 0
    if n_twice or n_never:
        problem = f"the {unit}s were run on different images ({n_twice:,} held out twice, {n_never:,} never held out)"
        raise DataError(problem, f"Remove all {unit} folders and run them again", path=folder, code="E313")


def pool_manifest(manifests: dict[str, pd.DataFrame], current_manifest: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return all images with the fold or source that held them out as `split`, and the file from the current data.

    An image that is never held out (its source lacks a class) is in split `train`. Raises DataError for images that are
    no longer in the data.
    """
    held_out = [table[table["split"] == "test"].assign(split=f"{unit} {name}") for name, table in manifests.items()]
    train_tables = [table.assign(split="train") for table in manifests.values()]
    table = pd.concat([*held_out, *train_tables]).drop_duplicates(IMAGE_KEY)
    pooled = current_manifest[[*IMAGE_KEY, "file"]].merge(table, on=IMAGE_KEY)[[*table.columns, "file"]]
    if len(pooled) < len(table):
        problem = f"{pluralize(len(table) - len(pooled), 'image')} of the finished {unit}s not found in the data"
        raise DataError(problem, f"Pass the data of these {unit}s, or choose another `folder`", code="E313")
    return pooled


def pool_skipped(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return each image that the runs left out once: every run reads all images."""
    # two sources can have the same path: the n-th row of a path is the same image in every run
    numbered_tables = [table.assign(number=table.groupby("path").cumcount()) for table in tables]
    return pd.concat(numbered_tables).drop_duplicates(["path", "number"]).drop(columns="number")


def write_skipped(folder: Path, skipped: pd.DataFrame) -> None:
    """Write skipped.csv; remove an old one if no image is left out any more."""
    if len(skipped):
        write_table(folder / "skipped.csv", skipped)
    else:
        (folder / "skipped.csv").unlink(missing_ok=True)


def pool_messages(fold_messages: dict[str, list[dict[str, str]]], unit: str) -> list[dict[str, str]]:
    """Return the messages about given splits and the warnings of all runs, each once.

    A warning that not all runs logged is prefixed with their names: `fold 1, 3: ...`.
    """
    folds_by_warning: dict[str, list[str]] = {}
    split_messages: dict[str, dict[str, str]] = {}
    for name, messages in fold_messages.items():
        for text in dict.fromkeys(message["text"] for message in messages if message["level"] == "warning"):
            folds_by_warning.setdefault(text, []).append(name)
        texts = (message["text"] for message in messages if message["text"].startswith(SPLITS_IGNORED_MESSAGE))
        split_messages |= {text: {"level": "info", "text": text} for text in texts}
    prefixes = {
        text: "" if len(names) == len(fold_messages) else f"{unit} {', '.join(names)}: "
        for text, names in folds_by_warning.items()
    }
    warnings = [{"level": "warning", "text": prefix + text} for text, prefix in prefixes.items()]
    return [*split_messages.values(), *warnings]


def read_fold_metrics(fold_dir: Path, name: str) -> dict[str, Any]:
    """Return a row of folds.csv: the test metrics of a run, macro averages where a metric has several values."""
    test_metrics = read_json(fold_dir / "metrics.json")["test"]
    metrics = {name: test_metrics[name] for name in FOLD_METRICS if name in test_metrics}
    return {"fold": name} | {name: v["macro"] if isinstance(v, dict) else v for name, v in metrics.items()}
