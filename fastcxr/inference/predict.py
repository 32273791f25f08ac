"""A classifier looks at each image once: a manifest becomes Predictions, a bad file a row that says what is wrong."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fastcxr.data.bit_depth import BitDepths, find_depths, warn_unsure
from fastcxr.data.cache.images import Pictures
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks, collecting, count_warnings
from fastcxr.errors import ImageError
from fastcxr.inference.openvino import Graph, WatchedGraph
from fastcxr.io.cpus import count_cpus
from fastcxr.metrics.predictions import Predictions, leave_open, make_predictions
from fastcxr.models.bundle import Classifier, classifier_of
from fastcxr.models.cpu_fusion import quicken
from fastcxr.models.heads import look
from fastcxr.models.precision import computing
from fastcxr.models.preprocessing import normalize
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.training.fit_ood import features_in_bank

if TYPE_CHECKING:
    from fastai.learner import Learner

BATCH = 32
MOST_READERS = BATCH  # each holds a whole image, however many cores there are
ROWS = 1024  # of a bank's features that are in memory at once
AHEAD = 3 * BATCH  # images decoded while the network is at work

Square = np.ndarray | ImageError


def predict(
    model: "Learner | Classifier",
    manifest: pd.DataFrame,
    *,
    splits: Sequence[str] | None = ("valid", "test"),
    progress: Progress | None = None,
    tell: bool = True,
) -> Predictions:
    """What the model says about every row of these splits, or of all rows when `splits` is None.

    A file that cannot be read gives a row without probabilities, its reason in the column error. A picture that the
    model's gate finds unlike the training images is given no class: see evaluation.predictions.leave_open.
    `tell`: log what decoding warns of; False where it was logged when the manifest was read.
    """
    learner = None if isinstance(model, Classifier) else model
    classifier = model if learner is None else classifier_of(learner)
    table = manifest if splits is None else manifest[manifest["split"].isin(splits)]
    table = table.reset_index(drop=True)
    if getattr(learner, "fitted", None):
        from fastcxr.training.linear_probe import answer_from_bank

        # these features have been looked at by this very network
        held_out = table["split"] == "valid" if "split" in table else np.zeros(len(table), bool)
        logits = answer_from_bank(learner, table["file"].tolist(), held_out)
        if logits is not None:
            probability = torch.tensor(logits).softmax(dim=1).numpy()
            return _finish(table, Scores(probability, measure_in_bank(learner, table["file"].tolist())), classifier)
    pictures = None if learner is None else getattr(learner.dls, "pictures", None)
    remarks: dict[int, Remarks] = {}
    depths = find_depths(table, classifier.bit_depths)
    squares = read_squares(table["file"].tolist(), classifier.pixels.image_size, pictures, depths, remarks)
    with (progress or find_progress()).bar(len(table), "predicting") as bar:
        scores, errors = score_squares(classifier, squares, len(table), bar.advance)
    if tell:
        tell_remarks(table, remarks, classifier.bit_depths)
    return _finish(table, scores, classifier, errors)


@dataclass(frozen=True)
class Scores:
    """`probability`: shape (n, k). `strangeness`: beyond 1 is not like the training images, shape (n,); None: no gate.

    Both are nan where a file could not be read.
    """

    probability: np.ndarray
    strangeness: np.ndarray | None


def score_squares(
    classifier: Classifier, squares: Iterator[Square], count: int, advance: Callable
) -> tuple[Scores, list[str]]:
    """What there is to say of each square, and why a file could not be read, empty where all is well."""
    strangeness = np.full(count, np.nan) if classifier.gate else None
    scores, errors = Scores(np.full((count, len(classifier.labels)), np.nan), strangeness), [""] * count
    classifier = with_quick_network(classifier)
    for rows, images in _batches(squares, errors):
        if rows:
            found = score_images(classifier, np.stack(images))
            scores.probability[rows] = found.probability
            if classifier.gate:
                scores.strangeness[rows] = found.strangeness
        advance(BATCH)
    return scores, errors


def with_quick_network(classifier: Classifier) -> Classifier:
    """The same classifier with a network for looking alone; a compiled graph is one already."""
    if isinstance(classifier.network, Graph | WatchedGraph):
        return classifier
    return replace(classifier, network=quicken(classifier.network, classifier.pixels, classifier.precision))


@torch.inference_mode()
def score_images(classifier: Classifier, images: np.ndarray) -> Scores:
    """What there is to say of gray 8-bit squares, shape (n, size, size); each row of probabilities sums to one."""
    device, gate = next(classifier.network.parameters()).device, classifier.gate
    batch = normalize(torch.from_numpy(images).to(device)[:, None], classifier.pixels)
    with computing(classifier.precision, device):
        logits, features = answer(classifier, batch)
        if classifier.mirror_images:
            logits = (logits.float() + answer(classifier, batch.flip(3))[0].float()) / 2
    # double precision: single rows would miss a sum of one by more than scikit-learn forgives. An Apple GPU has none.
    probability = (logits.cpu().double() / classifier.temperature).softmax(dim=1).numpy()
    return Scores(probability, gate.measure(features.cpu().numpy()) if gate else None)


def answer(classifier: Classifier, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of a batch, and what its gate wants to know of it."""
    if classifier.gate is None:
        return classifier.network(batch), None
    return look(classifier.network, batch, classifier.gate.depths)


def measure_in_bank(learner: "Learner", files: list[str]) -> np.ndarray | None:
    """How strange files of the learner's bank are; None without a gate."""
    gate = learner.gate
    if gate is None:
        return None
    found = np.full(len(files), np.nan)
    for start in range(0, len(files), ROWS):
        few = files[start : start + ROWS]
        found[start : start + ROWS] = gate.measure(features_in_bank(learner, few, gate.depths))
    return found


def _finish(
    table: pd.DataFrame, scores: Scores, classifier: Classifier, errors: Sequence[str] | None = None
) -> Predictions:
    predictions = make_predictions(table, scores.probability, classifier.labels, errors)
    return predictions if scores.strangeness is None else leave_open(predictions, scores.strangeness)


def tell_remarks(table: pd.DataFrame, remarks: Mapping[int, Remarks], depths: BitDepths) -> None:
    """Log what was remarked on rows of the table while they were decoded, one line a kind."""
    count_warnings((table["file"].iloc[row], one) for row, one in sorted(remarks.items()))
    warn_unsure(table, remarks, depths)


def read_squares(
    files: Sequence[str],
    size: int,
    pictures: Pictures | None,
    depths: Sequence[int | None] | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[Square]:
    """Every file's square, in order: from the store where it holds them all, else decoded ahead of the network.

    `depths`: bits of each image, where its file states none. `remarks` takes what is remarked on files decoded now.
    """
    depths = [None] * len(files) if depths is None else depths
    remarks = {} if remarks is None else remarks
    row_of = {file: row for row, file in enumerate(pictures.files)} if pictures and pictures.size == size else {}
    if not all(file in row_of for file in files):
        yield from _read_ahead(range(len(files)), files, size, depths, remarks)
        return
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        try:
            squares = pictures.read([row_of[file] for file in batch])
        except ImageError:  # the store lost one, and its file is no longer what it was: a row with a reason
            squares = _read_ahead(range(start, start + len(batch)), files, size, depths, remarks)
        yield from squares


def _read_ahead(
    rows: Iterable[int], files: Sequence[str], size: int, depths: Sequence[int | None], remarks: dict[int, Remarks]
) -> Iterator[Square]:
    """The square of each of these rows, in order, read by all cores while the caller computes; memory stays bounded."""

    def settle(row: int, future: Future) -> Square:
        square, one = future.result()
        if one != Remarks():
            remarks[row] = one
        return square

    with ThreadPoolExecutor(min(count_cpus(), MOST_READERS)) as readers:
        waiting: deque[tuple[int, Future]] = deque()
        for row in rows:
            waiting.append((row, readers.submit(_read_square, files[row], size, depths[row])))
            if len(waiting) > AHEAD:
                yield settle(*waiting.popleft())
        while waiting:
            yield settle(*waiting.popleft())


def _read_square(file: str, size: int, depth: int | None) -> tuple[Square, Remarks]:
    with collecting() as remarks:
        try:
            return fit_square(read_image(file, depth), size), remarks
        except ImageError as error:
            return error, Remarks()


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
