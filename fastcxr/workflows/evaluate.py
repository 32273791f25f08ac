"""Evaluation of a finished run on external data, without training."""

import logging
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd

from fastcxr.config.fields import InferencePrecision, list_options
from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.merge import has_global_id
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import DataError, ImageError
from fastcxr.inference.predict import predict
from fastcxr.io.files import write_json
from fastcxr.io.formatting import pluralize
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, Predictions, read_predictions, write_predictions
from fastcxr.models.bundle import load_classifier
from fastcxr.models.model_json import MODEL_JSON_FILE, read_model_json
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import Dataset, load_dataset
from fastcxr.workflows.run_dir import OutputDir
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN
from fastcxr.workflows.train_dir import RunDir

log = logging.getLogger("fastcxr")
MIN_LABEL_SIMILARITY = 0.8  # "covid" and "covid19" have 0.83
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
) -> Path:
    """Evaluate the model of `run` on all images of `data`, in a new `folder`; return the path of report.html.

    No parameter or threshold is fitted, so all images are in the test split. `data`: a recipe of which only the data
    options are used. `precision`, `device`: see load_classifier.

    Raises DataError for a label that is not a class of the model, or if all images were used in training.
    """
    classifier = load_classifier(run, precision=precision, device=device)
    model_json, training_recipe = read_model_json(run), Recipe.from_json(Path(run) / "recipe.json")
    recipe = training_recipe.replace(**{name: asdict(data)[name] for name in DATA_FIELDS})
    with RunDir(folder, recipe, command).open(progress or make_default_progress()) as run_dir:
        manifest = load_dataset(recipe, run_dir, Dataset(recipe, only_test=True, depths=classifier.bit_depths))
        validate_labels(manifest, classifier.labels)
        log.info("precision: %s", classifier.dtype_and_device)
        manifest = drop_training_images(manifest, run, classifier.input_spec.image_size, run_dir)
        manifest = manifest.assign(split="test", split_origin="given")
        predictions = predict(classifier, manifest, splits=None, progress=run_dir, log_warnings=False)
        failed_messages = [row["message"] for row in read_findings(Path(run)) if row["verdict"] == "FAIL"]
        run_dir.extra_metadata = {"tested": {"run": Path(run).resolve().name, "failed": failed_messages}}
        run_dir.write_dataset_tables(manifest)
        write_predictions(append_internal_test(predictions, Path(run)), run_dir.folder / "predictions.csv")
        run_dir.write_thumbnails(manifest, predictions)
        run_dir.write_saliency_maps(classifier, manifest, predictions)
        write_json(run_dir.folder / MODEL_JSON_FILE, model_json)
    return run_dir.finish()


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
    text_columns = {name: combined[name].fillna("") for name in combined.columns if name not in probability_columns}
    return Predictions(combined.assign(**text_columns), predictions.labels)


def drop_training_images(
    manifest: pd.DataFrame, run: str | Path, image_size: int, output_dir: OutputDir
) -> pd.DataFrame:
    """Leave out images used for training or model selection, and other images of the same patients.

    Patients are matched if their identifiers are globally unique. The images left out are listed in skipped.csv. Raises
    DataError if no image is left.
    """
    training_manifest = read_written_manifest(Path(run) / "manifest.csv")
    if IMAGE_HASH_COLUMN not in training_manifest:
        log.warning("an earlier version made the run: overlap of this data with its training images is unknown")
        return manifest
    hashes = open_image_cache(manifest["file"].tolist(), image_size, depths=read_depths(manifest)).hash_images()
    image_hashes = pd.Series(hashes, index=manifest.index)
    fitted_images = training_manifest[training_manifest["split"].isin(["train", "valid"])]
    is_seen_image = image_hashes.isin(fitted_images[IMAGE_HASH_COLUMN])
    is_seen_patient = has_global_id(manifest) & manifest["patient"].isin(fitted_images["patient"]) & ~is_seen_image
    if (is_seen_image | is_seen_patient).all():
        problem = f"the model was trained or selected on all {len(manifest):,} images or on their patients"
        raise DataError(problem, "Pass images of other patients", code="E314")
    for is_seen, seen_images, seen_image in (
        (is_seen_image, "them", "this image"),
        (is_seen_patient, "other images of the same patients", "other images of this patient"),
    ):
        files = manifest.loc[is_seen, "file"]
        if len(files):
            count = pluralize(len(files), "image")
            log.warning("%s left out: the model was trained or selected on %s", count, seen_images)
            problem, fix = f"the model was trained or selected on {seen_image}", "It is excluded from all metrics"
            errors = [ImageError(problem, fix, path=file, code="E314") for file in files]
            output_dir.write_skipped(errors, manifest)
    test_hashes = training_manifest.loc[training_manifest["split"] == "test", IMAGE_HASH_COLUMN]
    n_test_images = int(image_hashes.isin(test_hashes).sum())
    if n_test_images:
        log.warning("images in the test split of the run, which are not external data: %s", f"{n_test_images:,}")
    return manifest[~(is_seen_image | is_seen_patient)].reset_index(drop=True)


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


def is_similar_label(data_label: str, model_label: str) -> bool:
    """Return whether two labels are spellings of the same word, such as "Covid" and "COVID-19".

    "abnormal" and "normal" are not similar: a wrong suggestion leads to wrong metrics, so the first letter must match.
    """
    first, second = ("".join(filter(str.isalnum, label.casefold())) for label in (data_label, model_label))
    return first[:1] == second[:1] and SequenceMatcher(None, first, second).ratio() >= MIN_LABEL_SIMILARITY
