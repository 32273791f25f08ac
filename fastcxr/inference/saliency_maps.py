"""Saliency maps as values and as images: clipping, share at the border, overlay. Loads no torch."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from PIL import Image

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import RecipeError
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN

BORDER_SHARE_OF_SIDE = 0.15  # width of the border at each side of the image
CLIP_PERCENTILE = 99.5  # shown as the maximum: a single extreme pixel would leave all others dark
# from low to high saliency: dark red, orange, yellow; low saliency is transparent
COLORMAP_POSITIONS = (0.0, 0.35, 0.7, 1.0)
COLORMAP_RGB = np.array([(90, 0, 60), (200, 30, 30), (250, 140, 20), (255, 240, 120)], float)
OPACITY, GAP_PIXELS = 0.7, 4


@dataclass(frozen=True, kw_only=True, eq=False)
class SaliencyMap:
    """Positive evidence for one class of the model (`class_name`) in one image; a label of the image is not used.

    predicted, in_distribution, ood_score, probability (of `class_name`): as in the row of `predict` for this image; an
    out-of-distribution image has no predicted class. Without a detector, in_distribution is empty and ood_score NaN.
    image: the input of the model, gray bytes, shape (size, size). saliency: contribution of each pixel to the class
    logit, at least 0, same shape. failure_reason: why the map is withheld. error: why the image could not be read; the
    fields after `path` then keep their defaults.
    """

    source: str
    path: str
    predicted: str = ""
    class_name: str = ""
    probability: float = float("nan")
    in_distribution: str = ""
    ood_score: float = float("nan")
    image: np.ndarray | None = None
    saliency: np.ndarray | None = None
    failure_reason: str = ""
    error: str = ""

    @property
    def normalized(self) -> np.ndarray | None:
        """The map scaled to 0 to 1; None if it is withheld or zero everywhere."""
        if self.saliency is None or self.failure_reason or not self.saliency.any():
            return None
        clip_value = np.percentile(self.saliency, CLIP_PERCENTILE) or self.saliency.max()
        return np.clip(self.saliency / clip_value, 0, 1)

    @property
    def border_share(self) -> float:
        """Share of the saliency in the border of the image, padding included; NaN without a map to show."""
        if self.saliency is None or self.normalized is None:
            return float("nan")
        return compute_border_share(self.saliency)

    @property
    def note(self) -> str:
        """Why there is no map to show; empty if there is one."""
        text = "" if self.saliency is None or self.saliency.any() else f"no evidence for {self.class_name} in the image"
        return self.error or self.failure_reason or text

    def to_row(self) -> dict[str, str | float]:
        """Return one row of saliency.csv."""
        return {
            "source": self.source, "path": self.path, "predicted": self.predicted, "class": self.class_name,
            "probability": self.probability, "border_share": self.border_share, "note": self.note, "error": self.error,
            IN_DISTRIBUTION_COLUMN: self.in_distribution,
        }  # fmt: skip


def find_class_indices(model: Any, names: Iterable[str]) -> list[int]:
    """Return the positions of these classes or findings. Raises RecipeError for one that the model does not have.

    `model`: a Scorer, Classifier or Ensemble.
    """
    labels, names = list(model.labels), list(names)
    noun = "finding" if model.task == MULTI_LABEL else "class"
    for name in names:
        if name not in labels:
            suggestions = get_close_matches(name, labels, n=1)
            fix = f"Did you mean {suggestions[0]!r}? " if suggestions else ""
            raise RecipeError(f"the model has no {noun} called {name!r}", f"{fix}Choose from {', '.join(labels)}")
    return [labels.index(name) for name in names]


def compute_border_share(saliency: np.ndarray) -> float:
    """Return the share of a map, shape (size, size), in the outer 15 % of each side; 0.51 for a constant map."""
    border_pixels = round(BORDER_SHARE_OF_SIDE * saliency.shape[0])
    center = saliency[border_pixels:-border_pixels, border_pixels:-border_pixels]
    return float(1 - center.sum(dtype=float) / saliency.sum(dtype=float))


def overlay_saliency(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Return RGB bytes, shape (size, size, 3), of gray bytes and saliency from 0 to 1, both of shape (size, size)."""
    color = np.stack([np.interp(saliency, COLORMAP_POSITIONS, channel) for channel in COLORMAP_RGB.T], axis=2)
    alpha = OPACITY * saliency[..., None]
    return (image[..., None] * (1 - alpha) + color * alpha).round().astype(np.uint8)


def make_pair_image(image: np.ndarray, saliency: np.ndarray, size: int) -> Image.Image:
    """Return the image and its overlay side by side, each `size` pixels wide; arguments as in overlay_saliency."""
    pair = Image.new("RGB", (2 * size + GAP_PIXELS, size), "white")
    for x_offset, panel in ((0, image), (size + GAP_PIXELS, overlay_saliency(image, saliency))):
        pair.paste(Image.fromarray(panel).resize((size, size), Image.Resampling.BILINEAR), (x_offset, 0))
    return pair


def encode_pair_jpeg(image: np.ndarray, saliency: np.ndarray, size: int) -> bytes:
    """Return the image and its overlay side by side, each `size` pixels wide, as a JPEG without metadata."""
    buffer = io.BytesIO()
    make_pair_image(image, saliency, size).save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def make_pair_uri(image: np.ndarray, saliency: np.ndarray, size: int) -> str:
    """Return the JPEG of encode_pair_jpeg as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_pair_jpeg(image, saliency, size)).decode()}"
