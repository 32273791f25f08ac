"""Predict the images of a manifest; an unreadable file yields a row with an error message."""

from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import pandas as pd

from fastcxr.data.bit_depth import find_depths, find_unknown_sources
from fastcxr.data.file_names import find_identifying_paths, hash_name_columns
from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.data.imaging.sniff import CountedWarnings, Remarks
from fastcxr.inference.images import find_cached_remarks, read_fitted_images
from fastcxr.inference.scores import (
    Scorer,
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

BLOCK_IMAGES = 1024  # a multiple of all batch sizes


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
    progress = progress or make_default_progress()
    blocks = list(predict_blocks(scorer, table, progress, log_warnings=log_warnings, hash_names=hash_names))
    if len(blocks) == 1:
        return blocks[0]
    # a column without a value in some block has another type there
    joined = pd.concat([block.table for block in blocks], ignore_index=True).infer_objects()
    return Predictions(joined, blocks[0].labels)


def _make_scorer(model: "Learner | Classifier | Ensemble") -> Scorer:
    from fastcxr.inference.torch_scorer import make_torch_scorer

    return make_torch_scorer(model)


def predict_blocks(
    scorer: Scorer, table: pd.DataFrame, progress: Progress, *, log_warnings: bool = True, hash_names: bool = False
) -> Generator[Predictions, None, None]:
    """Yield the predictions of the rows of a table in order, in blocks of about BLOCK_IMAGES images.

    The images of the next block are decoded while the caller uses this one. Images and scores of earlier blocks are not
    kept. A block has whole batches, so that the probabilities do not depend on where a pass starts, if it starts at a
    multiple of BLOCK_IMAGES. A table without rows has one block without rows. Arguments: see predict.
    """
    cached_remarks = find_cached_remarks(table["file"].array, scorer.image_cache)
    if cached_scores := scorer.find_cached_scores(table):
        shown_table, identifying = _name_images(table, hash_names=hash_names)
        yield make_scored_predictions(shown_table, cached_scores, scorer, [cached_remarks, identifying])
        return
    n_block = -(-BLOCK_IMAGES // scorer.batch_size) * scorer.batch_size
    decoded_remarks: dict[int, Remarks] = {}
    files, depths = table["file"].array, find_depths(table, scorer.bit_depths)  # an array: a list would copy all paths
    images = read_fitted_images(files, scorer.image_size, scorer.image_cache, depths, decoded_remarks)
    counted = _BlockWarnings(scorer)
    with progress.bar(len(table), "predicting") as bar:
        for start in range(0, max(len(table), 1), n_block):
            block = table.iloc[start : start + n_block].reset_index(drop=True)
            shown_block, identifying = _name_images(block, hash_names=hash_names)
            scores, errors = score_images_or_errors(scorer, islice(images, len(block)), len(block), bar.advance)
            decoded = _pop_rows(decoded_remarks, start, len(block))
            counted.add(block.assign(path=shown_block["path"]), decoded, identifying)
            remarks = _pop_rows(cached_remarks, start, len(block)) | decoded
            unknown_sources = find_unknown_sources(block, remarks, scorer.bit_depths)
            yield make_scored_predictions(shown_block, scores, scorer, [remarks, unknown_sources, identifying], errors)
    if log_warnings:
        counted.log()


def _name_images(table: pd.DataFrame, *, hash_names: bool) -> tuple[pd.DataFrame, dict[int, Remarks]]:
    """Return the table with the names to show, and a remark on each row whose name identifies a patient."""
    if hash_names:
        return hash_name_columns(table), {}
    return table, find_identifying_paths(table)


def _pop_rows(remarks: dict[int, Remarks], start: int, n_rows: int) -> dict[int, Remarks]:
    """Remove the remarks on the rows of a block, and return them by row of the block."""
    return {row: remarks.pop(start + row) for row in range(n_rows) if start + row in remarks}


class _BlockWarnings:
    """Counted warnings on the images of all blocks: of decoding, unknown sources and identifying paths."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.decoding, self.unknown_sources, self.identifying = (CountedWarnings() for _ in range(3))

    def add(self, block: pd.DataFrame, decoded: dict[int, Remarks], identifying: dict[int, Remarks]) -> None:
        paths = block["path"]
        self.decoding.add((paths.iloc[row], one) for row, one in sorted(decoded.items()))
        unknown_sources = find_unknown_sources(block, decoded, self.scorer.bit_depths)
        self.unknown_sources.add((paths.iloc[row], one) for row, one in unknown_sources.items())
        self.identifying.add(("", one) for one in identifying.values())  # no path, because run.json stores the log

    def log(self) -> None:
        self.decoding.log()
        self.unknown_sources.log()
        if self.scorer.image_cache is None:  # otherwise the reader of a manifest, and the training, have logged these
            self.identifying.log()
            log_missing_detector(self.scorer)


def _select_splits(table: pd.DataFrame, splits: Sequence[str] | None) -> pd.DataFrame:
    has_splits = "split" in table and table["split"].notna().any()
    return table if splits is None or not has_splits else table[table["split"].isin(splits)]
