"""A classifier and images become heat maps of what speaks for a class, once maps have passed a check of their own."""

import base64
import copy
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from PIL import Image
from torch import nn

from fastcxr.data.bit_depth import find_depths
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.data.manifest import read_unlabelled
from fastcxr.errors import ImageError, RecipeError
from fastcxr.inference.captum import import_captum, integrated_gradients, occlusion
from fastcxr.inference.grad_cam import find_target_layers, grad_cam
from fastcxr.inference.predict import ImageOrError, fuse_classifier, log_image_warnings, read_fitted_images, score_batch
from fastcxr.inference.sanity_check import N_CHECK_IMAGES, AttributionMethod, SanityCheck, run_sanity_check
from fastcxr.io.html import escape_html
from fastcxr.models.bundle import Classifier, extract_classifier
from fastcxr.models.preprocessing import make_blank_image, normalize
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress

BATCH_SIZE = 8
CAPTUM_METHODS = {"integrated_gradients": integrated_gradients, "occlusion": occlusion}
Method = Literal["grad_cam", "integrated_gradients", "occlusion"]
BORDER_SHARE_OF_SIDE = 0.15  # of each side of the square; what is left of it is the central field
CLIP_PERCENTILE = 99.5  # percentile that is shown as full heat: a hot pixel at an edge would leave all others dark
MAX_SHOWN_MAPS, SHOWN_MAP_PIXELS = 12, 224  # in a notebook
# from no heat to most: dark red, orange, yellow; the picture shines through where there is little
COLORMAP_POSITIONS = (0.0, 0.35, 0.7, 1.0)
COLORMAP_RGB = np.array([(90, 0, 60), (200, 30, 30), (250, 140, 20), (255, 240, 120)], float)
OPACITY, GAP_PIXELS = 0.7, 4


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """A classifier in float32 with the way in which its maps are made.

    scorer: the same as `predict` uses it, in its own arithmetic, for the probability beside a map. check: None where no
    image could be read to check them.
    """

    classifier: Classifier
    scorer: Classifier
    attribute: AttributionMethod
    check: SanityCheck | None = None

    @property
    def failure_reason(self) -> str:
        """Why no map may be shown; empty where they may be."""
        return "no image could be read to check the maps" if self.check is None else self.check.failure_reason


@dataclass(frozen=True, kw_only=True, eq=False)
class SaliencyMap:
    """What speaks for one class (`label`) in one image.

    square: the image as the model saw it, gray bytes, shape (size, size). heat: what each place adds to the class's
    logit, nowhere less than zero, the same shape. failure_reason: why the map is not to be shown; error: why the image
    could not be read. All but the names are empty where there is an error.
    """

    source: str
    path: str
    predicted: str = ""
    label: str = ""
    probability: float = float("nan")
    image: np.ndarray | None = None
    saliency: np.ndarray | None = None
    failure_reason: str = ""
    error: str = ""

    @property
    def normalized(self) -> np.ndarray | None:
        """The map from 0 to 1; None where it is withheld or says nothing."""
        if self.saliency is None or self.failure_reason or not self.saliency.any():
            return None
        clip_value = np.percentile(self.saliency, CLIP_PERCENTILE) or self.saliency.max()
        return np.clip(self.saliency / clip_value, 0, 1)

    @property
    def border_share(self) -> float:
        """The share of the heat in the outer border of the square, padding included; nan without a map to show."""
        return float("nan") if self.normalized is None else compute_border_share(self.saliency)

    @property
    def note(self) -> str:
        """Why there is no map; empty where there is one."""
        empty_note = (
            "" if self.saliency is None or self.saliency.any() else "nothing in the image speaks for this class"
        )
        return self.error or self.failure_reason or empty_note

    def to_row(self) -> dict[str, str | float]:
        """One row of saliency.csv."""
        return {
            "source": self.source, "path": self.path, "predicted": self.predicted, "class": self.label,
            "probability": self.probability, "border_share": self.border_share, "note": self.note, "error": self.error,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Explanations:
    """Heat maps in the order of the images, and the check that they went through."""

    maps: tuple[SaliencyMap, ...]
    check: SanityCheck | None

    @property
    def table(self) -> pd.DataFrame:
        """A row a map: source, path, predicted, class, probability, border_share, note, error."""
        return pd.DataFrame([saliency_map.to_row() for saliency_map in self.maps])

    def _repr_html_(self) -> str:
        cards = "".join(map(_make_card_html, self.maps[:MAX_SHOWN_MAPS]))
        more_html = (
            f"<p>{len(self.maps) - MAX_SHOWN_MAPS:,} more in .maps</p>" if len(self.maps) > MAX_SHOWN_MAPS else ""
        )
        check_text = escape_html(self.check.summary) if self.check else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>{more_html}<p>{check_text}</p>'


def explain(
    model: Learner | Classifier,
    images: pd.DataFrame | Sequence[str | Path],
    *,
    classes: Sequence[str] = (),
    method: Method = "grad_cam",
    progress: Progress | None = None,
) -> Explanations:
    """Heat maps of images, for the predicted class of each and for the named `classes`; a notebook shows them.

    `images`: a manifest, or files and folders. Every map is held in memory.
    Raises RecipeError for a class that the model does not know, ModelError where `method` needs captum and it is
    missing.
    """
    table = images if isinstance(images, pd.DataFrame) else read_unlabelled(images)
    explainer = make_explainer(model, table, method)
    remarks: dict[int, Remarks] = {}
    heats = tuple(explain_rows(explainer, table, classes, progress=progress, remarks=remarks))
    log_image_warnings(table, remarks, explainer.classifier.bit_depths)
    return Explanations(heats, explainer.check)


def make_explainer(
    model: Learner | Classifier,
    table: pd.DataFrame,
    method: Method = "grad_cam",
    image_cache: ImageCache | None = None,
    n_checked: int = N_CHECK_IMAGES,
) -> Explainer:
    """An explainer whose maps were checked on a few of these images; `image_cache`: where they are kept decoded."""
    source_classifier = extract_classifier(model) if isinstance(model, Learner) else model
    network = copy.deepcopy(source_classifier.network).eval().requires_grad_(False)  # the given one may still be taught
    classifier = replace(source_classifier, network=network, precision="fp32")  # a gradient of bfloat16 is a coarse one
    explainer = Explainer(
        classifier=classifier,
        scorer=fuse_classifier(source_classifier),
        attribute=find_attribution_method(method, classifier),
    )
    table = table.iloc[_order_evenly(len(table), n_checked)]
    depths = find_depths(table, source_classifier.bit_depths)
    images_or_errors = read_fitted_images(table["file"].tolist(), classifier.input_spec.image_size, image_cache, depths)
    images = list(islice((image for image in images_or_errors if not isinstance(image, ImageError)), n_checked))
    if not images:
        return explainer
    inputs, probability = make_inputs(classifier, np.stack(images)), compute_probabilities(explainer, np.stack(images))
    predicted = torch.from_numpy(probability.argmax(axis=1)).to(inputs.device)
    check = run_sanity_check(network, explainer.attribute, inputs, predicted)
    return replace(explainer, check=check)


def find_attribution_method(method: Method, classifier: Classifier) -> AttributionMethod:
    """What makes maps, shape (n, size, size), of a network, images (n, channels, size, size) and classes (n,).

    Raises ModelError where captum is needed and missing, or the network has no map of places.
    """
    if method in CAPTUM_METHODS:
        import_captum(method)
        return CAPTUM_METHODS[method]
    input_spec, device = classifier.input_spec, next(classifier.network.parameters()).device
    image = make_blank_image(input_spec, device)
    layers = find_target_layers(classifier.network, image)

    def attribute(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return grad_cam(network, layers, images, classes)

    return attribute


def find_class_indices(labels: Sequence[str], names: Iterable[str]) -> list[int]:
    """Positions of the named classes. Raises RecipeError for one that the model does not know."""
    names = list(names)
    for name in names:
        if name not in labels:
            suggestions = get_close_matches(name, labels, n=1)
            fix = f"Did you mean {suggestions[0]!r}? " if suggestions else ""
            raise RecipeError(f"the model has no class called {name!r}", f"{fix}It knows {', '.join(labels)}")
    return [list(labels).index(name) for name in names]


def explain_rows(
    explainer: Explainer,
    table: pd.DataFrame,
    classes: Sequence[str] = (),
    image_cache: ImageCache | None = None,
    progress: Progress | None = None,
    probability: np.ndarray | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[SaliencyMap]:
    """Row by row the map of the predicted class, then those of the named ones; of a bad file what is wrong with it.

    `table`: columns source, path and file; nothing is kept in memory but a few images. `probability`: what `predict`
    gave for these rows, shape (n, k), where it is known already. `remarks`: see read_fitted_images.
    """
    class_indices = find_class_indices(explainer.classifier.labels, classes)
    files, depths = table["file"].tolist(), find_depths(table, explainer.classifier.bit_depths)
    images = read_fitted_images(files, explainer.classifier.input_spec.image_size, image_cache, depths, remarks)
    known_probability = [None] * len(table) if probability is None else probability
    rows = zip(table[["source", "path"]].itertuples(index=False, name=None), images, known_probability, strict=True)
    with (progress or make_default_progress()).bar(len(table), "explaining") as bar:
        while batch := list(islice(rows, BATCH_SIZE)):
            yield from _explain_batch(explainer, batch, class_indices)
            bar.advance(len(batch))


def _explain_batch(
    explainer: Explainer, batch: list[tuple[tuple[str, str], ImageOrError, np.ndarray | None]], class_indices: list[int]
) -> Iterator[SaliencyMap]:
    readable = [(image, known) for _, image, known in batch if not isinstance(image, ImageError)]
    map_fields = iter(_explain_images(explainer, readable, class_indices)) if readable else iter(())
    for (source, path), image, _ in batch:
        if isinstance(image, ImageError):
            yield SaliencyMap(source=source, path=path, error=f"FCX-{image.code} {image.problem}. {image.fix}")
        else:
            yield from (SaliencyMap(source=source, path=path, **fields) for fields in next(map_fields))


def _explain_images(
    explainer: Explainer, images_with_probability: list[tuple[np.ndarray, np.ndarray | None]], class_indices: list[int]
) -> Iterator[list[dict]]:
    """For each square the facts of its maps: of the predicted class, and of the named ones that differ from it.

    `images_with_probability`: squares with their probabilities; None for all where they are not known.
    """
    images, known_probability = (list(column) for column in zip(*images_with_probability, strict=True))
    inputs = make_inputs(explainer.classifier, np.stack(images))
    probability = (
        compute_probabilities(explainer, np.stack(images)) if known_probability[0] is None else known_probability
    )
    classes_by_row = [list(dict.fromkeys([int(row.argmax()), *class_indices])) for row in probability]
    row_of_map = [row for row, row_classes in enumerate(classes_by_row) for _ in row_classes]
    class_of_map = torch.tensor([number for row in classes_by_row for number in row], device=inputs.device)
    maps = iter(explainer.attribute(explainer.classifier.network, inputs[row_of_map], class_of_map).cpu().numpy())
    labels = explainer.classifier.labels
    for row, row_classes in enumerate(classes_by_row):
        yield [
            {
                "predicted": labels[row_classes[0]],
                "label": labels[number],
                "probability": float(probability[row][number]),
                "image": images[row],
                "saliency": next(maps),
                "failure_reason": explainer.failure_reason,
            }
            for number in row_classes
        ]


def make_inputs(classifier: Classifier, images: np.ndarray) -> torch.Tensor:
    """Gray bytes, shape (n, size, size), as the network sees them, shape (n, channels, size, size)."""
    device = next(classifier.network.parameters()).device
    return normalize(torch.from_numpy(images).to(device)[:, None], classifier.input_spec)


def compute_probabilities(explainer: Explainer, images: np.ndarray) -> np.ndarray:
    """The probabilities that `predict` gives for gray bytes, shape (n, size, size); shape (n, k)."""
    return score_batch(explainer.scorer, images).probability


def _order_evenly(rows: int, n_first: int) -> list[int]:
    """All rows, `count` that are spread evenly first: a cohort is sorted by class."""
    first_indices = set(np.linspace(0, rows - 1, min(n_first, rows)).round().astype(int).tolist())
    return sorted(first_indices) + [row for row in range(rows) if row not in first_indices]


def compute_border_share(saliency: np.ndarray) -> float:
    """The share of a map, shape (size, size), that lies in the outer 15 % on each side; .51 for an even one."""
    border_pixels = round(BORDER_SHARE_OF_SIDE * saliency.shape[0])
    return float(
        1
        - saliency[border_pixels:-border_pixels, border_pixels:-border_pixels].sum(dtype=float)
        / saliency.sum(dtype=float)
    )


def _make_card_html(saliency_map: SaliencyMap) -> str:
    caption = (
        f"{saliency_map.path}: {saliency_map.label} {saliency_map.probability:.3f}"
        if saliency_map.label
        else saliency_map.path
    )
    image_html = ""
    if saliency_map.normalized is not None:
        data = base64.b64encode(
            encode_pair_jpeg(saliency_map.image, saliency_map.normalized, SHOWN_MAP_PIXELS)
        ).decode()
        image_html = f'<img src="data:image/jpeg;base64,{data}" width="{2 * SHOWN_MAP_PIXELS}" alt="">'
    note = f"<br><b>{escape_html(saliency_map.note)}</b>" if saliency_map.note else ""
    return f'<figure style="margin:0">{image_html}<figcaption>{escape_html(caption)}{note}</figcaption></figure>'


def overlay_saliency(image: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """`image`: gray bytes, `saliency`: 0 to 1, both of shape (size, size); colours, bytes of shape (size, size, 3)."""
    color = np.stack([np.interp(saliency, COLORMAP_POSITIONS, channel) for channel in COLORMAP_RGB.T], axis=2)
    alpha = OPACITY * saliency[..., None]
    return (image[..., None] * (1 - alpha) + color * alpha).round().astype(np.uint8)


def encode_pair_jpeg(image: np.ndarray, saliency: np.ndarray, size: int) -> bytes:
    """The picture, and beside it the picture under its map, as a JPEG without metadata; each is `size` pixels wide."""
    pair = Image.new("RGB", (2 * size + GAP_PIXELS, size), "white")
    for x_offset, panel in (
        (0, Image.fromarray(image)),
        (size + GAP_PIXELS, Image.fromarray(overlay_saliency(image, saliency))),
    ):
        pair.paste(panel.resize((size, size), Image.Resampling.BILINEAR), (x_offset, 0))
    buffer = io.BytesIO()
    pair.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
