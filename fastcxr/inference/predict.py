"""Predict the images of a manifest; an unreadable file yields a row with an error message."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from fastcxr.data.bit_depth import find_depths, find_unknown_sources
from fastcxr.data.file_names import find_identifying_paths, hash_name_columns, warn_identifying_paths
from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.inference.images import find_cached_remarks, log_image_warnings, read_fitted_images
from fastcxr.inference.scores import (
    Scorer,
    Scores,
    log_missing_detector,
    make_scored_predictions,
    score_images_or_errors,
)
from fastcxr.metrics.predictions import Predictions
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress

if TYPE_CHECKING:  # torch and fastai take seconds to import, and an exported model does not need them
    from fastai.learner import Learner

    from fastcxr.models.bundle import Classifier, Ensemble


def predict(
    model: "Scorer | Learner | Classifier | Ensemble",
    images: pd.DataFrame | ImageInput | Iterable[ImageInput],
    *,
    splits: Sequence[str] | None = ("valid", "test"),
    progress: Progress | None = None,
    log_warnings: bool = True,
    hash_names: bool = False,
) -> Predictions:
    """Predict images: the rows of these splits of a manifest, or all images.

    Probabilities include the temperature of a Classifier, and test-time augmentation. A Learner has no temperature:
    it is fitted when the run is saved. fastai's `learner.get_preds` and `learner.predict` apply neither.

    A Classifier of findings adds the decision on each finding; see metrics.decisions.apply_thresholds. An unreadable
    file yields a row without probabilities and with a reason in the column error. The last column holds
    the warnings on each image. If the model has an out-of-distribution detector, an out-of-distribution image has no
    predicted class; see metrics.predictions.mark_ood. Without one, every readable image has a predicted class, and the
    columns ood_score and in_distribution are missing; a message states it.
    Validation rows of a Learner with a refitted head are predicted by the head that was fitted without them
    (training.linear_probe.predict_from_features); a Classifier predicts every row with its own weights.

    Args:
        model: a Learner, or the result of load_model or load_export.
        images: a manifest, or files, folders, gray arrays, Pillow images and files in memory (FileInMemory); see
            make_image_table. A path that does not exist raises InputMissingError.
        splits: splits of a manifest to predict; None, or a manifest without splits: all rows.
        progress: progress display.
        log_warnings: log the warnings of decoding.
        hash_names: return and log hashes instead of file and folder names; see data.file_names.hash_name_columns.
    """
    scorer = model if isinstance(model, Scorer) else _make_scorer(model)
    table = _select_splits(make_image_table(images), splits).reset_index(drop=True)
    shown_table = hash_name_columns(table) if hash_names else table
    identifying = {} if hash_names else find_identifying_paths(table)
    cached_remarks = find_cached_remarks(table["file"].tolist(), scorer.image_cache)
    if cached_scores := scorer.find_cached_scores(table):
        return make_scored_predictions(shown_table, cached_scores, scorer, [cached_remarks, identifying])
    remarks: dict[int, Remarks] = {}
    scores, errors = score_table(scorer, table, remarks, progress or make_default_progress())
    if log_warnings:
        log_image_warnings(table.assign(path=shown_table["path"]), remarks, scorer.bit_depths)
        if scorer.image_cache is None:  # otherwise the reader of a manifest, and the training, have logged these
            warn_identifying_paths(identifying)
            log_missing_detector(scorer)
    remarks = cached_remarks | remarks
    unknown_sources = find_unknown_sources(table, remarks, scorer.bit_depths)
    return make_scored_predictions(shown_table, scores, scorer, [remarks, unknown_sources, identifying], errors)


def _make_scorer(model: "Learner | Classifier | Ensemble") -> Scorer:
    from fastcxr.inference.torch_scorer import make_torch_scorer

    return make_torch_scorer(model)


def score_table(
    scorer: Scorer, table: pd.DataFrame, remarks: dict[int, Remarks], progress: Progress
) -> tuple[Scores, list[str]]:
    """Return the scores of all rows, and why a file could not be read. `remarks`: see read_fitted_images."""
    files, depths = table["file"].tolist(), find_depths(table, scorer.bit_depths)
    images_or_errors = read_fitted_images(files, scorer.image_size, scorer.image_cache, depths, remarks)
    with progress.bar(len(table), "predicting") as bar:
        return score_images_or_errors(scorer, images_or_errors, len(table), bar.advance)


def _select_splits(table: pd.DataFrame, splits: Sequence[str] | None) -> pd.DataFrame:
    has_splits = "split" in table and table["split"].notna().any()
    return table if splits is None or not has_splits else table[table["split"].isin(splits)]
