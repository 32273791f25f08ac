"""Evaluation of a finished run, or of its export, on external data, without training.

An export is evaluated without torch and fastai.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.config.fields import InferencePrecision, list_options
from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.findings import FINDING_PREFIX, list_findings
from fastcxr.data.readers.registry import PUBLIC_DATASETS, describe_overlaps
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import DataError, ImageError, RecipeError, require_type
from fastcxr.inference.predict import predict
from fastcxr.io.files import read_json, write_json
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import is_published
from fastcxr.io.run_folders import is_export
from fastcxr.io.tables import format_names
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.predictions import (
    PROBABILITY_PREFIX,
    TRUTH_PREFIX,
    Predictions,
    read_predictions,
    write_predictions,
)
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import MODEL_JSON_FILE
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.data_notices import format_reasons
from fastcxr.workflows.load import PUBLIC_DATASETS_KEY, Dataset, load_dataset, name_public_datasets
from fastcxr.workflows.overlap import FITTED_SPLITS, find_overlap
from fastcxr.workflows.result_dir import ResultDir
from fastcxr.workflows.run_dir import OutputDir
from fastcxr.workflows.tested_model import TestedModel, load_tested_model

log = logging.getLogger("fastcxr")
MIN_LABEL_SIMILARITY = 0.8  # "covid" and "covid19" have 0.83
MISSING_IN_EXPORT = (
    "an export has no list of training images, no predictions of the test split and no network: the report has no "
    "check of overlap, no comparison with the internal test set and no saliency maps; pass the run folder for them"
)
MISSING_IN_PUBLISHED = (
    "a published model has no list of training images and no predictions of the test split: the report has no check of "
    "overlap and no comparison with the internal test set; pass the run folder for them"
)
DATA_FIELDS = list_options(Recipe, "Data")


def evaluate(
    run: str | Path,
    data: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    *,
    precision: InferencePrecision = "trained",
    device: str = "auto",
    keep_overlap: bool = False,
) -> Path:
    """Evaluate the model of `run` on all images of `data`, in a new `folder`; return the path of report.html.

    No parameter or threshold is fitted, so all images are in the test split. An export has no list of training
    images, no predictions and no network: the check of overlap, the metrics of the internal test set and saliency maps
    are then missing, as the log states; the report has a notice on the overlap.

    Args:
        run: run folder with one model, folder of an export or of pull, or hf://owner/name for a model on the hub.
        data: a recipe of which only the data options are used.
        folder: the folder to create.
        progress: progress display.
        command: the command line, for run.json.
        precision: see load_classifier; an export has fp32.
        device: see load_classifier and load_export.
        keep_overlap: whether images are kept that overlap with training or validation images of the run (see
            find_overlap); the report then has a critical notice.

    Raises:
        DataError: a label is not a class of the model, or all images overlap with training images.
        PackageError: the model is that of a run, and torch is not installed.
        RecipeError: `keep_overlap` with an export.
    """
    require_type("run", run, str, Path)
    require_type("data", data, Recipe, fix="Pass a recipe with the data, as Recipe(data='other_hospital')")
    require_type("folder", folder, str, Path)
    progress = progress or make_default_progress()
    run = find_model_dir(run, progress)
    if keep_overlap and (is_export(run) or is_published(run)):
        kind, action = ("an export", "exported") if is_export(run) else ("a published model", "published")
        problem = f"{kind} does not contain the list of training images, so none is left out: got `keep_overlap=True`"
        raise RecipeError(problem, f"Leave it out, or pass the run folder that was {action}")
    model = load_tested_model(run, precision, device)
    scorer = model.scorer
    # the report of an evaluation has figures, also if the run is a fold
    data_options = {name: asdict(data)[name] for name in DATA_FIELDS} | {"task": scorer.task}
    recipe = model.recipe.replace(figures="all", **data_options)
    with ResultDir(folder, recipe, command).open(progress) as result_dir:
        manifest = load_dataset(recipe, result_dir, Dataset(recipe, only_test=True, depths=scorer.bit_depths))
        (validate_findings if scorer.task == MULTI_LABEL else validate_labels)(manifest, scorer.labels)
        log.info("precision: %s", scorer.dtype_and_device)
        manifest, overlap_counts = handle_overlap(manifest, model, recipe, result_dir, keep=keep_overlap)
        manifest = manifest.assign(split="test", split_origin="given")
        predictions = predict(scorer, manifest, splits=None, progress=result_dir, log_warnings=False)
        if predictions.is_multi_label:
            predictions = apply_thresholds(predictions, scorer.thresholds)
        tested = {**model.tested, "overlap": overlap_counts}
        result_dir.extra_metadata = {"tested": tested, "machine": model.machine}
        result_dir.write_dataset_tables(manifest)
        stored = append_internal_test(predictions, model.run) if model.run else predictions
        write_predictions(stored, result_dir.folder / "predictions.csv")
        result_dir.write_thumbnails(manifest, predictions)
        if model.classifier:
            result_dir.write_saliency_maps(model.classifier, manifest, predictions)
        write_json(result_dir.folder / MODEL_JSON_FILE, model.model_json)
    return result_dir.finish()


def handle_overlap(
    manifest: pd.DataFrame, model: TestedModel, recipe: Recipe, result_dir: ResultDir, *, keep: bool
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the manifest without images that overlap with training images, and the entry `overlap` of run.json.

    The overlap with the training images of an export is unknown: the entry is then empty. `keep`: whether images that
    overlap are kept.
    """
    if model.run is None:
        log.info(MISSING_IN_EXPORT if model.classifier is None else MISSING_IN_PUBLISHED)
        warn_overlapping_datasets(recipe, model.public_datasets)
        return manifest, {}
    warn_overlapping_datasets(recipe, read_json(model.run / "run.json").get(PUBLIC_DATASETS_KEY, []))
    overlap = find_overlap(manifest, model.run, model.scorer.image_size, result_dir)
    kept = manifest if keep else drop_overlap(manifest, overlap, result_dir)
    return kept, report_overlap(overlap, keep=keep)


def warn_overlapping_datasets(recipe: Recipe, trained: Sequence[str]) -> None:
    """Log which public datasets in the data share images with those that the model was trained on, by construction."""
    tested = name_public_datasets(recipe)
    for sentence in describe_overlaps(trained, tested):
        log.warning("%s. Images of the run that are recognised by content are left out of this evaluation", sentence)
    for name in sorted(set(trained) & set(tested)):
        log.warning("the run was trained on %s too: this is not external data", PUBLIC_DATASETS[name].title)


def append_internal_test(predictions: Predictions, run: Path) -> Predictions:
    """Append the predictions of the run for its own test split, as split `internal_test`.

    If the run has an internal test set itself (it is an evaluation), that set is appended.
    """
    path = run / "predictions.csv"
    run_predictions = read_predictions(path) if path.is_file() else None
    splits = run_predictions.splits if run_predictions else ()
    split = INTERNAL_TEST if INTERNAL_TEST in splits else "test"
    if run_predictions is None or split not in splits:
        missing = "test split" if run_predictions else "predictions.csv"
        log.warning("the run has no %s: its internal test metrics are not available for comparison", missing)
        return predictions
    internal_table = run_predictions.for_split(split).table.assign(split=INTERNAL_TEST)
    combined = pd.concat([predictions.table, internal_table], ignore_index=True)
    probability_columns = [PROBABILITY_PREFIX + label for label in predictions.labels]
    text_columns = {
        name: combined[name].astype(object).fillna("")
        for name in combined.columns
        if name not in probability_columns and not name.startswith((TRUTH_PREFIX, FINDING_PREFIX))
    }
    return Predictions(combined.assign(**text_columns), predictions.labels)


def report_overlap(overlap: pd.DataFrame, *, keep: bool) -> dict[str, Any]:
    """Log the overlap of the data with a run, and return it for run.json: the numbers of images by reason.

    `overlap`: see find_overlap. `keep`: whether images that overlap with training are kept.
    """
    is_fitted = overlap["split"].isin(FITTED_SPLITS)
    fitted, tested = (dict(Counter(table["reason"].tolist())) for table in (overlap[is_fitted], overlap[~is_fitted]))
    if fitted:
        text = "%s %s overlap with images that the model was trained or selected on: %s"
        action = "kept despite" if keep else "left out because of"
        log.warning(text, pluralize(sum(fitted.values()), "image"), action, format_reasons(fitted))
    if tested:
        log.warning("images in the test split of the run, which are not external data: %s", format_reasons(tested))
    return {"kept": keep, "training": fitted, "test": tested}


def drop_overlap(manifest: pd.DataFrame, overlap: pd.DataFrame, output_dir: OutputDir) -> pd.DataFrame:
    """Leave out the images that overlap with training images of the run, and list them in skipped.csv.

    `overlap`: see find_overlap. Raises DataError if no image is left.
    """
    fitted = overlap[overlap["split"].isin(FITTED_SPLITS)]
    if len(fitted) == len(manifest):
        counts = format_reasons(Counter(fitted["reason"].tolist()))
        problem = (
            f"all {len(manifest):,} images overlap with images that the model was trained or selected on ({counts})"
        )
        raise DataError(problem, "Pass images of other patients, or `keep_overlap=True`", code="E314")
    if len(fitted):
        matches = fitted.assign(file=manifest["file"]).itertuples()
        output_dir.write_skipped([make_overlap_error(match) for match in matches], manifest)
    return manifest.drop(index=fitted.index).reset_index(drop=True)


def make_overlap_error(match: Any) -> ImageError:
    """Return the error of an image that is left out; `match`: a row of find_overlap, with the file of the image."""
    problem = f"overlap with {match.path} in the {match.split} split of the run: {match.reason}"
    return ImageError(problem, "It is excluded from all metrics", path=match.file, code="E314")


def validate_labels(manifest: pd.DataFrame, model_labels: tuple[str, ...]) -> None:
    """Raise DataError for labels that are not classes of the model; the fix suggests a similar class."""
    unknown_labels = sorted(set(manifest["label"]) - set(model_labels))
    if not unknown_labels:
        return
    similar_pairs = [(a, b) for a in unknown_labels for b in model_labels if is_similar_label(a, b)]
    data_label, model_label = similar_pairs[0] if similar_pairs else (unknown_labels[0], "CLASS")
    choices = "" if similar_pairs else f" (CLASS: one of {', '.join(model_labels)})"
    relabel = [f"{data_label}={model_label}"]
    raise DataError(
        f"the data has the labels {', '.join(unknown_labels)}, the classes of the model are {', '.join(model_labels)}",
        f"Pass `relabel={relabel}`{choices}, or exclude these images with `classes`",
        code="E302",
    )


def validate_findings(manifest: pd.DataFrame, findings: tuple[str, ...]) -> None:
    """Log the findings that only the data or only the model has. Raise DataError if they have none in common.

    A finding that the data does not label stays unknown. The message suggests a name for a finding with a similar one.
    """
    labelled = list_findings(manifest)
    unknown, missing = (
        [n for n in one if n not in other] for one, other in ((labelled, findings), (findings, labelled))
    )
    pairs = [f"{a}={b}" for a in unknown for b in missing if is_similar_finding(a, b)]
    if len(missing) == len(findings):
        problem = f"the data has the findings {', '.join(labelled)}, those of the model are {', '.join(findings)}"
        fix = f"Pass `relabel={pairs}`" if pairs else f"Pass `relabel={[f'{labelled[0]}=FINDING']}`"
        raise DataError(problem, fix, code="E302")
    suggestion = f". If names differ only, pass `relabel={pairs}`" if pairs else ""
    if missing:
        log.warning("findings of the model that the data does not label: %s%s", format_names(missing), suggestion)
    if unknown:
        log.info("findings of the data that the model does not have, not evaluated: %s", format_names(unknown))


def is_similar_finding(data_finding: str, model_finding: str) -> bool:
    """Return whether two findings are spellings of one, or one name is the other with more words."""
    first, second = (set(re.split(r"[\W_]+", name.casefold())) for name in (data_finding, model_finding))
    return first <= second or second <= first or is_similar_label(data_finding, model_finding)


def is_similar_label(data_label: str, model_label: str) -> bool:
    """Return whether two labels are spellings of the same word, such as "Covid" and "COVID-19".

    "abnormal" and "normal" are not similar: a wrong suggestion leads to wrong metrics, so the first letter must match.
    """
    first, second = ("".join(filter(str.isalnum, label.casefold())) for label in (data_label, model_label))
    return first[:1] == second[:1] and SequenceMatcher(None, first, second).ratio() >= MIN_LABEL_SIMILARITY
