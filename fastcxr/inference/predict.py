"""A classifier looks at each image once: a manifest becomes Predictions, a bad file a row that says what is wrong."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner

from fastcxr.data.images import fit_square, read_image
from fastcxr.data.store import Pictures
from fastcxr.errors import ImageError
from fastcxr.evaluation.predictions import Predictions, make_predictions
from fastcxr.inference.bundle import Classifier, classifier_of
from fastcxr.progress import Progress, find_progress
from fastcxr.training.arithmetic import computing
from fastcxr.training.fitting import answer_from_bank
from fastcxr.training.pixels import normalize

BATCH = 32
READERS = 2
AHEAD = 3 * BATCH  # images decoded while the network is at work

Square = np.ndarray | ImageError


def predict(
    model: Learner | Classifier,
    manifest: pd.DataFrame,
    *,
    splits: Sequence[str] | None = ("valid", "test"),
    progress: Progress | None = None,
) -> Predictions:
    """What the model says about every row of these splits, or of all rows when `splits` is None.

    A file that cannot be read gives a row without probabilities, its reason in the column error.
    """
    classifier = classifier_of(model) if isinstance(model, Learner) else model
    table = manifest if splits is None else manifest[manifest["split"].isin(splits)]
    table = table.reset_index(drop=True)
    if isinstance(model, Learner) and getattr(model, "fitted", None):
        # these features have been looked at by this very network
        logits = answer_from_bank(model, table["file"].tolist(), table["split"] == "valid")
        if logits is not None:
            return make_predictions(
                table, torch.tensor(logits).softmax(dim=1).numpy(), classifier.labels, [""] * len(table)
            )
    pictures = getattr(model.dls, "pictures", None) if isinstance(model, Learner) else None
    squares = read_squares(table["file"].tolist(), classifier.pixels.image_size, pictures)
    with (progress or find_progress()).bar(len(table), "predicting") as bar:
        probability, errors = score_squares(classifier, squares, len(table), bar.advance)
    return make_predictions(table, probability, classifier.labels, errors)


def score_squares(
    classifier: Classifier, squares: Iterator[Square], count: int, advance: Callable
) -> tuple[np.ndarray, list[str]]:
    """Probabilities, shape (n, k), nan where a file could not be read; and the reasons, empty where all is well."""
    probability = np.full((count, len(classifier.labels)), np.nan)
    errors = [""] * count
    classifier.network.eval().to(memory_format=torch.channels_last)
    for rows, images in _batches(squares, errors):
        if rows:
            probability[rows] = score_images(classifier, np.stack(images))
        advance(BATCH)
    return probability, errors


@torch.inference_mode()
def score_images(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Probabilities of gray 8-bit squares, shape (n, size, size) -> (n, k), each row summing to one."""
    device = next(classifier.network.parameters()).device
    batch = normalize(torch.from_numpy(images).to(device)[:, None], classifier.pixels)
    with computing(classifier.precision, device):
        logits = classifier.network(batch)
    # double precision: single rows would miss a sum of one by more than scikit-learn forgives
    return (logits.double() / classifier.temperature).softmax(dim=1).cpu().numpy()


def read_squares(files: Sequence[str], size: int, pictures: Pictures | None) -> Iterator[Square]:
    """Every file's square, in order: from the store where it holds them all, else decoded ahead of the network."""
    row_of = {file: row for row, file in enumerate(pictures.files)} if pictures and pictures.size == size else {}
    if not all(file in row_of for file in files):
        yield from _read_ahead(files, size)
        return
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        try:
            squares = pictures.read([row_of[file] for file in batch])
        except ImageError:  # the store lost one, and its file is no longer what it was: a row with a reason
            squares = _read_ahead(batch, size)
        yield from squares


def _read_ahead(files: Sequence[str], size: int) -> Iterator[Square]:
    """Every file's square, in order, read by a few threads while the caller computes; memory stays bounded."""
    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[Future] = deque()
        for file in files:
            waiting.append(readers.submit(_read_square, file, size))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_square(file: str, size: int) -> Square:
    try:
        return fit_square(read_image(file), size)
    except ImageError as error:
        return error


def _batches(squares: Iterator[Square], errors: list[str]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Rows and images of one batch after the other; a reason goes into `errors` in place of an image."""
    rows, images = [], []
    for row, square in enumerate(squares):
        if isinstance(square, ImageError):
            errors[row] = f"FCX-{square.code} {square.what}. {square.fix}"
        else:
            rows.append(row)
            images.append(square)
        if (row + 1) % BATCH == 0:
            yield rows, images
            rows, images = [], []
    yield rows, images
