"""Predict the images of a manifest; an unreadable file yields a row with an error message."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.bit_depth import BitDepths, find_depths, find_unknown_sources, warn_unknown_sources
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.file_names import find_identifying_paths, hash_name_columns, warn_identifying_paths
from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks, collect_remarks, format_remarks, log_counted_warnings
from fastcxr.errors import ImageError, ModelError
from fastcxr.inference.openvino import OpenVINOFeatureExtractor, OpenVINONetwork
from fastcxr.io.cpus import count_cpus
from fastcxr.io.threads import map_ahead
from fastcxr.metrics.calibration import scale_probabilities
from fastcxr.metrics.finding_calibration import calibrate_findings
from fastcxr.metrics.predictions import WARNINGS_COLUMN, Predictions, make_predictions, mark_ood
from fastcxr.metrics.thresholds import apply_thresholds
from fastcxr.models.bundle import Classifier, Ensemble, extract_classifier
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.fitting_batches import FittingBatches, choose_batch_size
from fastcxr.models.heads import forward_with_features
from fastcxr.models.ood import OODDetector
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.models.state import find_learner_state, get_loaders_state
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training.fit_ood import read_cached_features

if TYPE_CHECKING:
    from fastai.learner import Learner

READ_BATCH_SIZE = 32
MAX_READER_THREADS = READ_BATCH_SIZE  # each holds a full-size image in memory
FEATURE_CHUNK_ROWS = 1024  # rows of the feature cache in memory at once
N_IMAGES_AHEAD = 3 * READ_BATCH_SIZE  # decoded while the network computes
N_CACHE_THREADS, N_CHUNKS_AHEAD = 2, 8  # read from the image cache while the network computes: a batch of a GPU

log = logging.getLogger("fastcxr")

ImageOrError = np.ndarray | ImageError


def predict(
    model: "Learner | Classifier | Ensemble",
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

    A Classifier of findings adds the decision on each finding; see metrics.thresholds.apply_thresholds. An unreadable
    file yields a row without probabilities and with a reason in the column error. The last column holds
    the warnings on each image. If the model has an out-of-distribution detector, an out-of-distribution image has no
    predicted class; see metrics.predictions.mark_ood. Without one, every readable image has a predicted class, and the
    columns ood_score and in_distribution are missing; a message states it.
    Validation rows of a Learner with a refitted head are predicted by the head that was fitted without them
    (training.linear_probe.predict_from_features); a Classifier predicts every row with its own weights.

    Args:
        model: a Learner, or the result of load_model.
        images: a manifest, or files, folders, gray arrays and Pillow images; see make_image_table. A path that does not
            exist raises InputMissingError.
        splits: splits of a manifest to predict; None, or a manifest without splits: all rows.
        progress: progress display.
        log_warnings: log the warnings of decoding.
        hash_names: return and log hashes instead of file and folder names; see data.file_names.hash_name_columns.
    """
    learner = None if isinstance(model, Classifier | Ensemble) else model
    classifier = model if isinstance(model, Classifier | Ensemble) else extract_classifier(model)
    table = _select_splits(make_image_table(images), splits).reset_index(drop=True)
    shown_table = hash_name_columns(table) if hash_names else table
    identifying = {} if hash_names else find_identifying_paths(table)
    image_cache = None if learner is None else get_loaders_state(learner.dls).image_cache
    cached_remarks = find_cached_remarks(table["file"].tolist(), image_cache)
    if learner is not None and (cached_scores := _score_cached_features(learner, table)):
        return _make_predictions(shown_table, cached_scores, classifier, [cached_remarks, identifying])
    remarks: dict[int, Remarks] = {}
    scores, errors = _score_images(classifier, table, image_cache, remarks, progress or make_default_progress())
    if log_warnings:
        log_image_warnings(table.assign(path=shown_table["path"]), remarks, classifier.bit_depths)
        if learner is None:  # otherwise the reader of a manifest, and the training, have logged these
            warn_identifying_paths(identifying)
            log_missing_detector(classifier)
    remarks = cached_remarks | remarks
    unknown_sources = find_unknown_sources(table, remarks, classifier.bit_depths)
    return _make_predictions(shown_table, scores, classifier, [remarks, unknown_sources, identifying], errors)


def _score_cached_features(learner: "Learner", table: pd.DataFrame) -> "Scores | None":
    """Return the scores from the feature cache of a learner with a fitted head.

    None without such a head, and if the cache belongs to other images or weights.
    """
    if find_learner_state(learner).fitted_probe is None:
        return None
    from fastcxr.training.linear_probe import predict_from_features

    files = table["file"].tolist()
    is_valid = (table["split"] == "valid").tolist() if "split" in table else [False] * len(table)
    logits = predict_from_features(learner, files, is_valid)
    if logits is None:
        return None
    classifier = extract_classifier(learner)
    probability = compute_probability(logits, classifier)
    return Scores(probability, _compute_cached_ood_scores(learner, files, classifier.ood_detector))


def _score_images(
    classifier: Classifier | Ensemble,
    table: pd.DataFrame,
    image_cache: ImageCache | None,
    remarks: dict[int, Remarks],
    progress: Progress,
) -> tuple["Scores", list[str]]:
    """Return the scores of all images, and why a file could not be read. `remarks`: see read_fitted_images."""
    files, size = table["file"].tolist(), classifier.input_spec.image_size
    depths = find_depths(table, classifier.bit_depths)
    images_or_errors = read_fitted_images(files, size, image_cache, depths, remarks)
    with progress.bar(len(table), "predicting") as bar:
        batches = FittingBatches(choose_batch_size(find_model_device(classifier)))
        return score_images_or_errors(fuse_model(classifier), images_or_errors, len(table), batches, bar.advance)


def log_missing_detector(classifier: Classifier | Ensemble) -> None:
    """Log that the model cannot recognize out-of-distribution images, if it has no detector."""
    if not classifier.has_ood_detector:
        result = "decisions" if classifier.task == MULTI_LABEL else "a class"
        log.info("this model has no out-of-distribution detector: every readable image gets %s", result)


def predict_images(
    classifier: Classifier | Ensemble,
    table: pd.DataFrame,
    images_or_errors: Iterable[ImageOrError],
    batches: FittingBatches,
) -> Predictions:
    """Predict the rows of a table from their images, or the errors of unreadable files.

    `classifier`: the result of fuse_model.
    """
    scores, errors = score_images_or_errors(classifier, images_or_errors, len(table), batches)
    return _make_predictions(table, scores, classifier, [], errors)


def _select_splits(table: pd.DataFrame, splits: Sequence[str] | None) -> pd.DataFrame:
    has_splits = "split" in table and table["split"].notna().any()
    return table if splits is None or not has_splits else table[table["split"].isin(splits)]


@dataclass(frozen=True)
class Scores:
    """Probabilities, shape (n, k), and OOD scores, shape (n,), above 1 for out-of-distribution images.

    Both are NaN for unreadable files. `ood_score` is None without an OOD detector.
    """

    probability: np.ndarray
    ood_score: np.ndarray | None


def score_images_or_errors(
    classifier: Classifier | Ensemble,
    images_or_errors: Iterable[ImageOrError],
    n_images: int,
    batches: FittingBatches,
    advance: Callable[[int], object] = int,
) -> tuple[Scores, list[str]]:
    """Return the scores of all images, and why a file could not be read, empty for readable files."""
    errors, probability = [""] * n_images, np.full((n_images, len(classifier.labels)), np.nan)
    ood_score = np.full(n_images, np.nan) if classifier.has_ood_detector else None
    numbered_images = enumerate(images_or_errors)
    while batch := list(islice(numbered_images, batches.size)):
        readable = {row: image for row, image in batch if not isinstance(image, ImageError)}
        for row, error in batch:
            if isinstance(error, ImageError):
                errors[row] = f"FCX-{error.code} {error.problem}. {error.fix}"
        if readable:
            batch_scores = score_images(classifier, np.stack(list(readable.values())), batches)
            probability[list(readable)] = batch_scores.probability
            if ood_score is not None:
                ood_score[list(readable)] = batch_scores.ood_score
        advance(len(batch))
    return Scores(probability, ood_score), errors


def fuse_model(model: Classifier | Ensemble) -> Classifier | Ensemble:
    """Return the classifier, or the ensemble of classifiers, with networks optimised for inference."""
    if isinstance(model, Ensemble):
        return Ensemble(members=tuple(map(fuse_classifier, model.members)))
    return fuse_classifier(model)


def fuse_classifier(classifier: Classifier) -> Classifier:
    """Return the classifier with its network optimised for inference; a compiled graph already is."""
    if isinstance(classifier.network, OpenVINONetwork | OpenVINOFeatureExtractor):
        return classifier
    network = fuse_for_inference(classifier.network, classifier.input_spec, classifier.precision)
    return replace(classifier, network=network)


def find_model_device(model: Classifier | Ensemble) -> torch.device:
    """Return the device of a classifier, or of the classifiers of an ensemble."""
    classifier = model if isinstance(model, Classifier) else model.members[0]
    return next(classifier.network.parameters()).device


def score_images(model: Classifier | Ensemble, images: np.ndarray, batches: FittingBatches) -> Scores:
    """Return the scores of gray bytes, shape (n, size, size), in batches that fit into memory.

    Raises DeviceError if one image does not fit, or the GPU was lost.
    """
    parts = list(batches.compute(lambda rows: score_model(model, images[rows]), len(images)))
    ood_scores = [part.ood_score for part in parts if part.ood_score is not None]
    probability = np.concatenate([part.probability for part in parts])
    return Scores(probability, np.concatenate(ood_scores) if ood_scores else None)


def score_model(model: Classifier | Ensemble, images: np.ndarray) -> Scores:
    """Return the scores of a batch by a classifier, or the mean scores of the members of an ensemble."""
    if isinstance(model, Classifier):
        return score_batch(model, images)
    scores = [score_batch(member, images) for member in model.members]
    ood_scores = [one.ood_score for one in scores if one.ood_score is not None]
    mean_ood_score = np.mean(ood_scores, axis=0) if model.has_ood_detector else None
    return Scores(np.mean([one.probability for one in scores], axis=0), mean_ood_score)


@torch.inference_mode()
def score_batch(classifier: Classifier, images: np.ndarray) -> Scores:
    """Return the scores of gray bytes, shape (n, size, size). Raise ModelError if float16 overflows."""
    device, detector = next(classifier.network.parameters()).device, classifier.ood_detector
    batch = normalize(torch.from_numpy(images).to(device)[:, None], classifier.input_spec)
    with autocast(classifier.precision, device):
        logits, features = compute_logits(classifier, batch)
        if classifier.hflip_tta:
            logits = (logits.float() + compute_logits(classifier, batch.flip(3))[0].float()) / 2
    probability = compute_probability(logits, classifier)
    if classifier.precision == "fp16" and not np.isfinite(probability).all():
        problem = "an output of the network is NaN or infinite in float16, whose largest number is 65,504"
        raise ModelError(problem, "Pass `precision='fp32'`", code="E310")
    if detector is None or features is None:
        return Scores(probability, None)
    return Scores(probability, detector.compute_scores(features))


def compute_probability(logits: torch.Tensor, classifier: Classifier) -> np.ndarray:
    """Return probabilities from logits, both of shape (n, k): softmax of classes, or sigmoid of each finding.

    The probabilities of all commands and reports come from this function. It applies the temperature, or the
    calibration lines of findings, as the end of a training run does, so that no digit differs.
    """
    # float64, because scikit-learn requires rows that sum to one; on the CPU, because Apple GPUs have no float64
    logits = logits.cpu().double()
    if classifier.task == MULTI_LABEL:
        lines = classifier.thresholds.get("findings", {})
        return calibrate_findings(logits.sigmoid().numpy(), classifier.labels, lines)
    return scale_probabilities(logits.softmax(dim=1).numpy(), classifier.temperature)


def compute_logits(classifier: Classifier, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits of a batch, and the features for the OOD detector or None."""
    if classifier.ood_detector is None:
        return classifier.network(batch), None
    return forward_with_features(classifier.network, batch, classifier.ood_detector.stage_channels)


def _compute_cached_ood_scores(learner: "Learner", files: list[str], detector: OODDetector | None) -> np.ndarray | None:
    """Return the OOD scores of files in the feature cache of the learner; None without a detector."""
    if detector is None:
        return None
    ood_scores = np.full(len(files), np.nan)
    for start in range(0, len(files), FEATURE_CHUNK_ROWS):
        rows = slice(start, start + FEATURE_CHUNK_ROWS)
        features = read_cached_features(learner, files[rows], detector.stage_channels)
        ood_scores[rows] = detector.compute_scores(torch.from_numpy(features).to(learner.dls.device))
    return ood_scores


def find_cached_remarks(files: Sequence[str], image_cache: ImageCache | None) -> dict[int, Remarks]:
    """Return the remarks on these files that the image cache has stored, by row."""
    if image_cache is None:
        return {}
    remarks_by_file = {image_cache.files[row]: one for row, one in image_cache.remarks.items()}
    return {row: remarks_by_file[file] for row, file in enumerate(files) if file in remarks_by_file}


def _make_predictions(
    table: pd.DataFrame,
    scores: Scores,
    classifier: Classifier | Ensemble,
    remarks: Sequence[Mapping[int, Remarks]],
    errors: Sequence[str] | None = None,
) -> Predictions:
    findings = classifier.task == MULTI_LABEL
    predictions = make_predictions(table, scores.probability, classifier.labels, errors, findings=findings)
    if scores.ood_score is not None:
        predictions = mark_ood(predictions, scores.ood_score)
    if findings and classifier.thresholds:  # those of a Learner are chosen when the run is saved
        predictions = apply_thresholds(predictions, classifier.thresholds)
    texts = [[format_remarks(part[row]) for part in remarks if row in part] for row in range(len(table))]
    warnings = {WARNINGS_COLUMN: ["; ".join(filter(None, parts)) for parts in texts]}
    return Predictions(predictions.table.assign(**warnings), predictions.labels)


def log_image_warnings(table: pd.DataFrame, remarks: Mapping[int, Remarks], depths: BitDepths) -> None:
    """Log the warnings of decoding, by row of the table, one line per type."""
    log_counted_warnings((table["path"].iloc[row], remark) for row, remark in sorted(remarks.items()))
    warn_unknown_sources(table, remarks, depths)


def read_fitted_images(
    files: Sequence[str],
    size: int,
    image_cache: ImageCache | None,
    depths: Sequence[int | None] | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[ImageOrError]:
    """Yield each image, shape (size, size), or its error: from the image cache if it has all files, else decoded.

    `depths`: bit depth of each image whose file does not state it. `remarks`: receives the warnings of decoding by row.
    """
    depths = [None] * len(files) if depths is None else depths
    remarks = {} if remarks is None else remarks
    cached_files = image_cache.files if image_cache is not None and image_cache.size == size else ()
    row_by_file = {file: row for row, file in enumerate(cached_files)}
    if image_cache is None or not all(file in row_by_file for file in files):
        yield from _decode_ahead(range(len(files)), files, size, depths, remarks)
        return

    def read(start: int) -> np.ndarray | list[ImageOrError]:
        rows = range(start, min(start + READ_BATCH_SIZE, len(files)))
        try:
            return image_cache.read([row_by_file[files[row]] for row in rows])
        except ImageError:  # an image is damaged in the cache, and its file cannot be read: a row with an error
            return list(_decode_ahead(rows, files, size, depths, remarks))

    starts = range(0, len(files), READ_BATCH_SIZE)
    for images in map_ahead(read, starts, n_threads=N_CACHE_THREADS, n_ahead=N_CHUNKS_AHEAD):
        yield from images


def _decode_ahead(
    rows: Iterable[int], files: Sequence[str], size: int, depths: Sequence[int | None], remarks: dict[int, Remarks]
) -> Iterator[ImageOrError]:
    """Yield the images of these rows in order, decoded by all cores while the caller computes, in bounded memory."""

    def read(row: int) -> tuple[int, ImageOrError, Remarks]:
        return row, *_read_fitted_image(files[row], size, depths[row])

    n_threads = min(count_cpus(), MAX_READER_THREADS)
    for row, image, remark in map_ahead(read, rows, n_threads=n_threads, n_ahead=N_IMAGES_AHEAD):
        if remark != Remarks():
            remarks[row] = remark
        yield image


def _read_fitted_image(file: str, size: int, depth: int | None) -> tuple[ImageOrError, Remarks]:
    with collect_remarks() as remarks:
        try:
            return fit_square(read_image(file, depth), size), remarks
        except ImageError as error:
            return error, Remarks()
