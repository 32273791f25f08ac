"""Scores of images, and the interface of what computes them: a network of PyTorch, or an exported model."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.bit_depth import BitDepths
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.sniff import Remarks, format_remarks
from fastcxr.errors import ImageError
from fastcxr.inference.images import ImageOrError
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.predictions import WARNINGS_COLUMN, Predictions, make_predictions, mark_ood
from fastcxr.metrics.scored_images import list_thresholds

log = logging.getLogger("fastcxr")


@dataclass(frozen=True)
class Scores:
    """Probabilities, shape (n, k), and OOD scores, shape (n,), above 1 for out-of-distribution images.

    Both are NaN for unreadable files. `ood_score` is None without an OOD detector.
    """

    probability: np.ndarray
    ood_score: np.ndarray | None


class Scorer(ABC):
    """A model that is ready to score images.

    Attributes:
        labels: names of the k classes or findings in the order of the probabilities.
        task: whether an image has one class (single_label) or several findings (multi_label).
        image_size: width and height of the images in pixels.
        thresholds: calibration of model.json, for fastcxr.metrics.decisions.apply_thresholds.
        bit_depths: bit depths of images with more than 8 bits whose files do not state one.
        has_ood_detector: whether the scores include OOD scores.
        batch_size: number of images of a call of `score`; it may decrease if memory is too small.
        image_cache: the image cache of the loaders of a Learner, None for another model.
        dtype_and_device: precision, engine and device in words, for example `bfloat16 on cpu`.
    """

    labels: tuple[str, ...]
    task: str
    image_size: int
    thresholds: Mapping[str, Any]
    bit_depths: BitDepths
    has_ood_detector: bool
    batch_size: int
    dtype_and_device: str
    image_cache: ImageCache | None = None

    @abstractmethod
    def score(self, images: np.ndarray) -> Scores:
        """Return the scores of gray bytes, shape (n, image_size, image_size), with calibrated probabilities."""

    def find_cached_scores(self, table: pd.DataFrame) -> Scores | None:
        """Return the scores of the rows of a manifest if they can be computed without their images, else None."""
        return None


def score_images_or_errors(
    scorer: Scorer, images_or_errors: Iterable[ImageOrError], n_images: int, advance: Callable[[int], object] = int
) -> tuple[Scores, list[str]]:
    """Return the scores of all images, and why a file could not be read, empty for readable files."""
    errors, probability = [""] * n_images, np.full((n_images, len(scorer.labels)), np.nan)
    ood_score = np.full(n_images, np.nan) if scorer.has_ood_detector else None
    numbered_images = enumerate(images_or_errors)
    while batch := list(islice(numbered_images, scorer.batch_size)):
        readable = {row: image for row, image in batch if not isinstance(image, ImageError)}
        for row, error in batch:
            if isinstance(error, ImageError):
                errors[row] = f"FCX-{error.code} {error.problem}. {error.fix}"
        if readable:
            batch_scores = scorer.score(np.stack(list(readable.values())))
            probability[list(readable)] = batch_scores.probability
            if ood_score is not None:
                ood_score[list(readable)] = batch_scores.ood_score
        advance(len(batch))
    return Scores(probability, ood_score), errors


def make_scored_predictions(
    table: pd.DataFrame,
    scores: Scores,
    model: Any,
    remarks: Sequence[Mapping[int, Remarks]] = (),
    errors: Sequence[str] | None = None,
) -> Predictions:
    """Return the predictions of n images from their scores, with decisions on findings and warnings on the images.

    Args:
        table: n rows of a manifest.
        scores: of the n images.
        model: a Scorer, Classifier or Ensemble, which have labels, task and thresholds.
        remarks: warnings on images by row; those of several mappings are joined.
        errors: why an image could not be read, n in all, empty for a readable image.
    """
    findings = model.task == MULTI_LABEL
    predictions = make_predictions(table, scores.probability, model.labels, errors, findings=findings)
    if scores.ood_score is not None:
        predictions = mark_ood(predictions, scores.ood_score)
    if findings and model.thresholds:  # those of a Learner are chosen when the run is saved
        predictions = apply_thresholds(predictions, model.thresholds)
    texts = [[format_remarks(part[row]) for part in remarks if row in part] for row in range(len(table))]
    warnings = {WARNINGS_COLUMN: ["; ".join(filter(None, parts)) for parts in texts]}
    return Predictions(predictions.table.assign(**warnings), predictions.labels)


def log_missing_detector(model: Any) -> None:
    """Log that a Scorer, Classifier or Ensemble cannot recognize out-of-distribution images, if so."""
    if not model.has_ood_detector:
        result = "decisions" if model.task == MULTI_LABEL else "a class"
        log.info("this model has no out-of-distribution detector: every readable image gets %s", result)


def list_shown_thresholds(scorer: Scorer) -> dict[str, float]:
    """Return the thresholds by class or finding; a class without a threshold is left out."""
    rows = scorer.thresholds.get("thresholds", {})
    if scorer.task == MULTI_LABEL:
        return dict(zip(scorer.labels, map(float, list_thresholds(rows, scorer.labels)), strict=True))
    return {label: float(rows[label]["threshold"]) for label in scorer.labels if label in rows}
