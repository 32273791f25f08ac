"""Saliency maps of any Scorer by occlusion, without torch and without gradients.

Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks": a square of the mean gray level moves
over the image, and the decrease of the log odds of a class shows how much its probability depends on each position.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from PIL import Image

from fastcxr.data.bit_depth import find_depths
from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.errors import ImageError
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.saliency_maps import SaliencyMap, find_class_indices
from fastcxr.inference.scores import Scorer, make_scored_predictions, score_images_or_errors
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, OOD_SCORE_COLUMN

N_CELLS_PER_SIDE, N_SQUARE_CELLS = 14, 2  # the square is moved by one cell: 169 squares
MIN_PROBABILITY = 1e-6  # finite log odds; the float32 probabilities of an exported model reach 0 and 1
OCCLUSION_NOTE = (
    "Decrease of the log odds when a gray square covers the position (occlusion, Zeiler and Fergus 2014). "
    "The maps have no sanity check with random weights."
)


class ImageExplainer(ABC):
    """What makes the saliency map of one image at a time.

    Attributes:
        method: name of the method, grad_cam or occlusion.
        note: what the maps show, and the result of their sanity check; complete after the first map.
    """

    method: str
    note: str

    @abstractmethod
    def explain_image(self, image: ImageInput, label: str | None = None) -> SaliencyMap:
        """Return the map of a class or finding, by default of the most probable one; with an error if it is unreadable.

        Raises RecipeError for a class that the model does not have.
        """


class OcclusionExplainer(ImageExplainer):
    """Maps by occlusion of any model that scores images, such as an ensemble or an exported model."""

    method, note = "occlusion", OCCLUSION_NOTE

    def __init__(self, scorer: Scorer):
        self.scorer = scorer

    def explain_image(self, image: ImageInput, label: str | None = None) -> SaliencyMap:
        """Return the map; see ImageExplainer."""
        scorer, table = self.scorer, make_image_table([image])
        known = find_class_indices(scorer, [] if label is None else [label])
        files, depths = table["file"].tolist(), find_depths(table, scorer.bit_depths)
        images_or_errors = list(read_fitted_images(files, scorer.image_size, None, depths))
        scores, errors = score_images_or_errors(scorer, images_or_errors, len(table))
        row = make_scored_predictions(table, scores, scorer, errors=errors).table.iloc[0]
        pixels = images_or_errors[0]
        if isinstance(pixels, ImageError):
            return SaliencyMap(source=row["source"], path=row["path"], error=row["error"])
        number = known[0] if known else int(scores.probability[0].argmax())
        return SaliencyMap(
            source=row["source"], path=row["path"], predicted=row["predicted"], class_name=scorer.labels[number],
            probability=float(scores.probability[0, number]), in_distribution=row.get(IN_DISTRIBUTION_COLUMN, ""),
            ood_score=row.get(OOD_SCORE_COLUMN, float("nan")),
            image=pixels, saliency=compute_occlusion_map(scorer, pixels, number),
        )  # fmt: skip


def compute_occlusion_map(scorer: Scorer, image: np.ndarray, number: int) -> np.ndarray:
    """Return the decrease of the log odds of a class at each position, at least 0, float of shape (size, size).

    A position has the mean of all squares that cover it, interpolated between the cells of a grid.

    Args:
        scorer: the model.
        image: gray bytes, shape (size, size).
        number: position of the class or finding in `scorer.labels`.
    """
    edges = np.linspace(0, len(image), N_CELLS_PER_SIDE + 1).round().astype(int)
    n_places = N_CELLS_PER_SIDE - N_SQUARE_CELLS + 1
    places = [(row, column) for row in range(n_places) for column in range(n_places)]
    original = _compute_log_odds(scorer, image[None], number)[0]
    drops = np.concatenate(
        [original - _compute_log_odds(scorer, batch, number) for batch in _occlude(image, edges, places, scorer)]
    )
    total = np.zeros((N_CELLS_PER_SIDE, N_CELLS_PER_SIDE))
    counts = np.zeros_like(total)
    for (row, column), drop in zip(places, drops, strict=True):
        cells = np.s_[row : row + N_SQUARE_CELLS, column : column + N_SQUARE_CELLS]
        total[cells] += drop
        counts[cells] += 1
    grid = Image.fromarray((total / counts).astype(np.float32))
    return np.maximum(np.asarray(grid.resize(image.shape[::-1], Image.Resampling.BILINEAR), float), 0)


def _occlude(
    image: np.ndarray, edges: np.ndarray, places: list[tuple[int, int]], scorer: Scorer
) -> Iterator[np.ndarray]:
    """Yield batches of the image, each with a square of its mean gray level at one of the places."""
    gray, start = round(float(image.mean())), 0
    while batch := places[start : start + scorer.batch_size]:
        occluded = np.repeat(image[None], len(batch), axis=0)
        for one, (row, column) in zip(occluded, batch, strict=True):
            one[edges[row] : edges[row + N_SQUARE_CELLS], edges[column] : edges[column + N_SQUARE_CELLS]] = gray
        yield occluded
        start += len(batch)


def _compute_log_odds(scorer: Scorer, images: np.ndarray, number: int) -> np.ndarray:
    probability = np.clip(scorer.score(images).probability[:, number], MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return np.log(probability / (1 - probability))
