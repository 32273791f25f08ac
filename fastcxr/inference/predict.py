"""A classifier looks at each image once: a manifest becomes Predictions, a bad file a row that says what is wrong."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fastcxr.data.bit_depth import BitDepths, find_depths, warn_unknown_sources
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks, collect_remarks, log_counted_warnings
from fastcxr.errors import ImageError
from fastcxr.inference.openvino import OpenVINOFeatureExtractor, OpenVINONetwork
from fastcxr.io.cpus import count_cpus
from fastcxr.metrics.predictions import Predictions, make_predictions, mark_ood
from fastcxr.models.bundle import Classifier, extract_classifier
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.heads import forward_with_features
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.models.state import find_learner_state, get_loaders_state
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.training.fit_ood import read_cached_features

if TYPE_CHECKING:
    from fastai.learner import Learner

BATCH_SIZE = 32
MAX_READER_THREADS = BATCH_SIZE  # each holds a whole image, however many cores there are
BANK_CHUNK_ROWS = 1024  # of a bank's features that are in memory at once
N_IMAGES_AHEAD = 3 * BATCH_SIZE  # images decoded while the network is at work

ImageOrError = np.ndarray | ImageError


def predict(
    model: "Learner | Classifier",
    manifest: pd.DataFrame,
    *,
    splits: Sequence[str] | None = ("valid", "test"),
    progress: Progress | None = None,
    log_warnings: bool = True,
) -> Predictions:
    """What the model says about every row of these splits, or of all rows when `splits` is None.

    A file that cannot be read gives a row without probabilities, its reason in the column error. A picture that the
    model's OOD detector rejects is given no class: see metrics.predictions.mark_ood.
    `log_warnings`: log what decoding warns of; False where it was logged when the manifest was read.
    """
    learner = None if isinstance(model, Classifier) else model
    classifier = model if learner is None else extract_classifier(learner)
    table = manifest if splits is None else manifest[manifest["split"].isin(splits)]
    table = table.reset_index(drop=True)
    if learner is not None and find_learner_state(learner).fitted_probe:
        from fastcxr.training.linear_probe import predict_from_features

        # these features have been looked at by this very network
        held_out = table["split"] == "valid" if "split" in table else np.zeros(len(table), bool)
        logits = predict_from_features(learner, table["file"].tolist(), held_out)
        if logits is not None:
            probability = torch.tensor(logits).softmax(dim=1).numpy()
            return _make_predictions(
                table, Scores(probability, compute_bank_ood_scores(learner, table["file"].tolist())), classifier
            )
    image_cache = None if learner is None else get_loaders_state(learner.dls).image_cache
    remarks: dict[int, Remarks] = {}
    depths = find_depths(table, classifier.bit_depths)
    images = read_fitted_images(table["file"].tolist(), classifier.input_spec.image_size, image_cache, depths, remarks)
    with (progress or make_default_progress()).bar(len(table), "predicting") as bar:
        scores, errors = score_images_or_errors(classifier, images, len(table), bar.advance)
    if log_warnings:
        log_image_warnings(table, remarks, classifier.bit_depths)
    return _make_predictions(table, scores, classifier, errors)


@dataclass(frozen=True)
class Scores:
    """`probability`: shape (n, k). `ood_score`: shape (n,), above 1 is out of distribution; None: no OOD detector.

    Both are nan where a file could not be read.
    """

    probability: np.ndarray
    ood_score: np.ndarray | None


def score_images_or_errors(
    classifier: Classifier, images_or_errors: Iterator[ImageOrError], n_images: int, advance: Callable
) -> tuple[Scores, list[str]]:
    """What there is to say of each square, and why a file could not be read, empty where all is well."""
    ood_score = np.full(n_images, np.nan) if classifier.ood_detector else None
    scores, errors = Scores(np.full((n_images, len(classifier.labels)), np.nan), ood_score), [""] * n_images
    classifier = fuse_classifier(classifier)
    for rows, images in _make_batches(images_or_errors, errors):
        if rows:
            batch_scores = score_batch(classifier, np.stack(images))
            scores.probability[rows] = batch_scores.probability
            if classifier.ood_detector:
                scores.ood_score[rows] = batch_scores.ood_score
        advance(BATCH_SIZE)
    return scores, errors


def fuse_classifier(classifier: Classifier) -> Classifier:
    """The same classifier with a network for looking alone; a compiled graph is one already."""
    if isinstance(classifier.network, OpenVINONetwork | OpenVINOFeatureExtractor):
        return classifier
    return replace(
        classifier, network=fuse_for_inference(classifier.network, classifier.input_spec, classifier.precision)
    )


@torch.inference_mode()
def score_batch(classifier: Classifier, images: np.ndarray) -> Scores:
    """What there is to say of gray 8-bit squares, shape (n, size, size); each row of probabilities sums to one."""
    device, detector = next(classifier.network.parameters()).device, classifier.ood_detector
    batch = normalize(torch.from_numpy(images).to(device)[:, None], classifier.input_spec)
    with autocast(classifier.precision, device):
        logits, features = compute_logits(classifier, batch)
        if classifier.hflip_tta:
            logits = (logits.float() + compute_logits(classifier, batch.flip(3))[0].float()) / 2
    # double precision: single rows would miss a sum of one by more than scikit-learn forgives. An Apple GPU has none.
    probability = (logits.cpu().double() / classifier.temperature).softmax(dim=1).numpy()
    return Scores(probability, detector.compute_scores(features.cpu().numpy()) if detector else None)


def compute_logits(classifier: Classifier, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits of a batch, and the features that the OOD detector needs."""
    if classifier.ood_detector is None:
        return classifier.network(batch), None
    return forward_with_features(classifier.network, batch, classifier.ood_detector.stage_channels)


def compute_bank_ood_scores(learner: "Learner", files: list[str]) -> np.ndarray | None:
    """Return the OOD scores of files in the learner's feature bank; None without a detector."""
    detector = learner.fastcxr.ood_detector
    if detector is None:
        return None
    ood_scores = np.full(len(files), np.nan)
    for start in range(0, len(files), BANK_CHUNK_ROWS):
        chunk_files = files[start : start + BANK_CHUNK_ROWS]
        ood_scores[start : start + BANK_CHUNK_ROWS] = detector.compute_scores(
            read_cached_features(learner, chunk_files, detector.stage_channels)
        )
    return ood_scores


def _make_predictions(
    table: pd.DataFrame, scores: Scores, classifier: Classifier, errors: Sequence[str] | None = None
) -> Predictions:
    predictions = make_predictions(table, scores.probability, classifier.labels, errors)
    return predictions if scores.ood_score is None else mark_ood(predictions, scores.ood_score)


def log_image_warnings(table: pd.DataFrame, remarks: Mapping[int, Remarks], depths: BitDepths) -> None:
    """Log what was remarked on rows of the table while they were decoded, one line a kind."""
    log_counted_warnings((table["file"].iloc[row], one) for row, one in sorted(remarks.items()))
    warn_unknown_sources(table, remarks, depths)


def read_fitted_images(
    files: Sequence[str],
    size: int,
    image_cache: ImageCache | None,
    depths: Sequence[int | None] | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[ImageOrError]:
    """Every file's square, in order: from the store where it holds them all, else decoded ahead of the network.

    `depths`: bits of each image, where its file states none. `remarks` takes what is remarked on files decoded now.
    """
    depths = [None] * len(files) if depths is None else depths
    remarks = {} if remarks is None else remarks
    row_by_file = (
        {file: row for row, file in enumerate(image_cache.files)} if image_cache and image_cache.size == size else {}
    )
    if not all(file in row_by_file for file in files):
        yield from _decode_ahead(range(len(files)), files, size, depths, remarks)
        return
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        try:
            images = image_cache.read([row_by_file[file] for file in batch])
        except ImageError:  # the store lost one, and its file is no longer what it was: a row with a reason
            images = _decode_ahead(range(start, start + len(batch)), files, size, depths, remarks)
        yield from images


def _decode_ahead(
    rows: Iterable[int], files: Sequence[str], size: int, depths: Sequence[int | None], remarks: dict[int, Remarks]
) -> Iterator[ImageOrError]:
    """The square of each of these rows, in order, read by all cores while the caller computes; memory stays bounded."""

    def settle(row: int, future: Future) -> ImageOrError:
        square, one = future.result()
        if one != Remarks():
            remarks[row] = one
        return square

    with ThreadPoolExecutor(min(count_cpus(), MAX_READER_THREADS)) as executor:
        pending: deque[tuple[int, Future]] = deque()
        for row in rows:
            pending.append((row, executor.submit(_read_fitted_image, files[row], size, depths[row])))
            if len(pending) > N_IMAGES_AHEAD:
                yield settle(*pending.popleft())
        while pending:
            yield settle(*pending.popleft())


def _read_fitted_image(file: str, size: int, depth: int | None) -> tuple[ImageOrError, Remarks]:
    with collect_remarks() as remarks:
        try:
            return fit_square(read_image(file, depth), size), remarks
        except ImageError as error:
            return error, Remarks()


def _make_batches(
    images_or_errors: Iterator[ImageOrError], errors: list[str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Rows and images of one batch after the other; a reason goes into `errors` in place of an image."""
    rows, images = [], []
    for row, image in enumerate(images_or_errors):
        if isinstance(image, ImageError):
            errors[row] = f"FCX-{image.code} {image.problem}. {image.fix}"
        else:
            rows.append(row)
            images.append(image)
        if (row + 1) % BATCH_SIZE == 0:
            yield rows, images
            rows, images = [], []
    yield rows, images
