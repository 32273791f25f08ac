"""A finished run and the data of somewhere else become a report of how the model does there."""

import logging
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd

from fastcxr.config.fields import InferencePrecision, list_options
from fastcxr.config.recipe import Recipe, read_recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.merge import has_global_id
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import DataError, ImageError
from fastcxr.inference.predict import predict
from fastcxr.io.files import write_json
from fastcxr.metrics.predictions import (
    PROBABILITY_PREFIX,
    Predictions,
    read_predictions,
    write_predictions,
)
from fastcxr.models.bundle import load_model
from fastcxr.models.model_json import MODEL_JSON_FILE, read_model_json
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import Dataset, load_dataset
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
    """Score every image of `data` with the model of `run`, into a new `folder`; returns the path of report.html.

    `data`: a recipe of which only the choices of data are looked at. Nothing is trained and nothing is chosen, so all
    images are test. `precision`, `device`: see load_model. Raises DataError for a label that the model does not know.
    """
    classifier = load_model(run, precision=precision, device=device)
    model_json, training_recipe = read_model_json(run), read_recipe(Path(run) / "recipe.json")
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
    """The predictions, and after them what the run said of its own test images, as the split `internal_test`.

    A run that was tested elsewhere itself gives those of home that it was compared with.
    """
    if not (run / "predictions.csv").is_file():
        log.warning("the run has no predictions.csv: there are no figures of home to compare with")
        return predictions
    run_predictions = read_predictions(run / "predictions.csv")
    split = INTERNAL_TEST if INTERNAL_TEST in run_predictions.splits else "test"
    if split not in run_predictions.splits:
        log.warning("the run has no test split: there are no figures of home to compare with")
        return predictions
    combined = pd.concat(
        [predictions.table, run_predictions.for_split(split).table.assign(split=INTERNAL_TEST)], ignore_index=True
    )
    text_columns = [
        name for name in combined.columns if name not in [PROBABILITY_PREFIX + label for label in predictions.labels]
    ]
    return Predictions(combined.assign(**combined[text_columns].fillna("")), predictions.labels)


def drop_training_images(manifest: pd.DataFrame, run: str | Path, image_size: int, run_dir: RunDir) -> pd.DataFrame:
    """The manifest without pictures, and without patients known by a name that holds everywhere, that the model was
    trained or chosen on; they are counted in skipped.csv. Raises DataError where none is left.
    """
    training_manifest = read_written_manifest(Path(run) / "manifest.csv")
    if IMAGE_HASH_COLUMN not in training_manifest:
        log.warning("the run is of an earlier version: whether it was trained on some of these images is not known")
        return manifest
    image_hashes = open_image_cache(manifest["file"].tolist(), image_size, depths=read_depths(manifest)).hash_images()
    fitted_images = training_manifest[training_manifest["split"].isin(["train", "valid"])]
    is_seen_image = pd.Series(image_hashes, index=manifest.index).isin(fitted_images[IMAGE_HASH_COLUMN])
    is_seen_patient = has_global_id(manifest) & manifest["patient"].isin(fitted_images["patient"]) & ~is_seen_image
    if (is_seen_image | is_seen_patient).all():
        problem = f"the model was trained on all {len(manifest):,} images of this data"
        raise DataError(problem, "Name data that it has not seen", code="E314")
    errors = [
        *_make_seen_errors(
            manifest[is_seen_image], "images left out: the model was trained or chosen on them", "this picture"
        ),
        *_make_seen_errors(
            manifest[is_seen_patient],
            "images left out: the model was trained or chosen on others of their patients",
            "other pictures of this patient",
        ),
    ]
    if errors:
        run_dir.write_skipped(errors, manifest)
    is_test_image = pd.Series(image_hashes, index=manifest.index).isin(
        training_manifest.loc[training_manifest["split"] == "test", IMAGE_HASH_COLUMN]
    )
    if is_test_image.any():
        text = "%s images are of the run's own test split: they say nothing of elsewhere"
        log.warning(text, f"{is_test_image.sum():,}")
    return manifest[~(is_seen_image | is_seen_patient)].reset_index(drop=True)


def _make_seen_errors(rows: pd.DataFrame, warning: str, seen_text: str) -> list[ImageError]:
    """An error for each row, and one warning of them all."""
    if len(rows):
        log.warning("%s %s", f"{len(rows):,}", warning)
    problem, fix = f"the model was trained or chosen on {seen_text}", "It is in none of the figures"
    return [ImageError(problem, fix, path=file, code="E314") for file in rows["file"]]


def validate_labels(manifest: pd.DataFrame, model_labels: tuple[str, ...]) -> None:
    """Raise for labels that the model has no output for."""
    unknown_labels = sorted(set(manifest["label"]) - set(model_labels))
    if not unknown_labels:
        return
    similar_pairs = [
        (data_label, model_label)
        for data_label in unknown_labels
        for model_label in model_labels
        if is_similar_label(data_label, model_label)
    ]
    data_label, model_label = similar_pairs[0] if similar_pairs else (unknown_labels[0], "CLASS")
    choice_text = "" if similar_pairs else f" with one of {', '.join(model_labels)} as CLASS"
    raise DataError(
        f"the model knows {', '.join(model_labels)}, the data has {', '.join(unknown_labels)} too",
        f"Match them, as --relabel '{data_label}={model_label}'{choice_text}, or leave them out with --classes",
        code="E302",
    )


def is_similar_label(data_label: str, model_label: str) -> bool:
    """Whether two labels are spellings of one, as "Covid" and "COVID-19" are; "abnormal" and "normal" are not.

    Whoever copies a suggested pair gets the figures of it: better none than one that means something else.
    """
    normalized_data, normalized_model = (
        "".join(filter(str.isalnum, label.casefold())) for label in (data_label, model_label)
    )
    return (
        normalized_data[:1] == normalized_model[:1]
        and SequenceMatcher(None, normalized_data, normalized_model).ratio() >= MIN_LABEL_SIMILARITY
    )
