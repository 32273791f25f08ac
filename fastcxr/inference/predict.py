"""A classifier looks at each image once: a manifest becomes Predictions, a bad file a row that says what is wrong."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner

from fastcxr.data.images import fit_square, read_image
from fastcxr.errors import ImageError
from fastcxr.evaluation.predictions import Predictions, make_predictions
from fastcxr.inference.bundle import Classifier, classifier_of
from fastcxr.progress import Progress, find_progress

BATCH = 32
READERS = 2
AHEAD = 3 * BATCH  # images decoded while the network is at work


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
    with (progress or find_progress()).bar(len(table), "predicting") as bar:
        probability, errors = score_files(classifier, table["file"].tolist(), bar.advance)
    return make_predictions(table, probability, classifier.labels, errors)


def score_files(classifier: Classifier, files: Sequence[str], advance) -> tuple[np.ndarray, list[str]]:
    """Probabilities, shape (n, k), nan where a file cannot be read; and the reasons, empty where all is well."""
    probability = np.full((len(files), len(classifier.labels)), np.nan)
    errors = [""] * len(files)
    network = classifier.network.eval().to(memory_format=torch.channels_last)
    for rows, images in _batches(_read_ahead(files, classifier.pixels.image_size), errors):
        if rows:
            probability[rows] = score_images(network, np.stack(images), classifier)
        advance(BATCH)
    return probability, errors


@torch.inference_mode()
def score_images(network: torch.nn.Module, images: np.ndarray, classifier: Classifier) -> np.ndarray:
    """Probabilities of gray 8-bit squares, shape (n, size, size) -> (n, k), each row summing to one."""
    device = next(network.parameters()).device
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (classifier.pixels.mean, classifier.pixels.std))
    gray = torch.from_numpy(images)[:, None].float() / 255
    batch = ((gray - mean) / std).to(device, memory_format=torch.channels_last)
    # double precision: single rows would miss a sum of one by more than scikit-learn forgives
    return network(batch).double().softmax(dim=1).cpu().numpy()


def _read_ahead(files: Sequence[str], size: int) -> Iterator[np.ndarray | ImageError]:
    """Every file's square, in order, read by a few threads while the caller computes; memory stays bounded."""
    with ThreadPoolExecutor(READERS) as readers:
        waiting: deque[Future] = deque()
        for file in files:
            waiting.append(readers.submit(_read_square, file, size))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read_square(file: str, size: int) -> np.ndarray | ImageError:
    try:
        return fit_square(read_image(file), size)
    except ImageError as error:
        return error


def _batches(
    squares: Iterator[np.ndarray | ImageError], errors: list[str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
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
