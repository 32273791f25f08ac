"""Saliency maps of a classifier, shown only if they pass a sanity check."""

import copy
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, islice
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.data.bit_depth import find_depths
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.errors import ImageError, ModelError
from fastcxr.inference.captum import import_captum, integrated_gradients, occlusion
from fastcxr.inference.grad_cam import find_target_layers, grad_cam
from fastcxr.inference.images import ImageOrError, log_image_warnings, read_fitted_images
from fastcxr.inference.saliency_maps import SaliencyMap, find_class_indices, make_pair_uri
from fastcxr.inference.sanity_check import N_CHECK_IMAGES, AttributionMethod, SanityCheck, run_sanity_check
from fastcxr.inference.scores import make_scored_predictions, score_images_or_errors
from fastcxr.inference.torch_scorer import TorchScorer, find_model_device
from fastcxr.io.html import escape_html
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, OOD_SCORE_COLUMN, Predictions
from fastcxr.models.bundle import Classifier, Ensemble, extract_classifier
from fastcxr.models.device_errors import explain_device_errors
from fastcxr.models.fitting_batches import FittingBatches
from fastcxr.models.precision import forbid_tf32
from fastcxr.models.preprocessing import make_blank_image, normalize
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress

BATCH_SIZE = 8  # maps that are computed at once
CAPTUM_METHODS = {"integrated_gradients": integrated_gradients, "occlusion": occlusion}
PredictedRow = tuple[dict[Hashable, Any], np.ndarray]
Method = Literal["grad_cam", "integrated_gradients", "occlusion"]
MAX_SHOWN_MAPS, SHOWN_MAP_PIXELS = 12, 224  # in a notebook


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """Classifier in float32 and attribution method.

    scorer: the classifier as `predict` uses it, for probabilities and out-of-distribution scores. check: None if no
    image could be read for the sanity check.
    """

    classifier: Classifier
    scorer: TorchScorer
    attribute: AttributionMethod
    check: SanityCheck | None = None

    @property
    def failure_reason(self) -> str:
        """Why the maps are withheld; empty if they may be shown."""
        return "no image could be read for the sanity check" if self.check is None else self.check.failure_reason


@dataclass(frozen=True)
class Wanted:
    """Numbers of the classes to explain in an image; `first`: None for the most probable class."""

    first: int | None
    others: Sequence[int]

    def list_classes(self, probability: np.ndarray) -> list[int]:
        """Return the classes, each once; `probability`: of each class, shape (k,)."""
        first = int(probability.argmax()) if self.first is None else self.first
        return list(dict.fromkeys([first, *self.others]))


@dataclass(frozen=True, eq=False)
class Explanations:
    """Saliency maps in the order of the images, and the result of their sanity check."""

    maps: tuple[SaliencyMap, ...]
    check: SanityCheck | None

    @property
    def table(self) -> pd.DataFrame:
        """One row per map; columns: see SaliencyMap.to_row."""
        return pd.DataFrame([saliency_map.to_row() for saliency_map in self.maps])

    def _repr_html_(self) -> str:
        cards = "".join(map(_make_card_html, self.maps[:MAX_SHOWN_MAPS]))
        n_more = len(self.maps) - MAX_SHOWN_MAPS
        more_html = f"<p>{n_more:,} more in .maps</p>" if n_more > 0 else ""
        check_text = escape_html(self.check.summary) if self.check else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>{more_html}<p>{check_text}</p>'


def explain(
    model: Learner | Classifier | Ensemble,
    images: pd.DataFrame | ImageInput | Iterable[ImageInput],
    *,
    classes: Sequence[str] = (),
    method: Method = "grad_cam",
    progress: Progress | None = None,
) -> Explanations:
    """Compute saliency maps for the most probable class or finding of each image and for `classes`; all stay in memory.

    Probabilities and out-of-distribution verdicts are those of `predict` for the same model and images. `images`: a
    manifest, or files, folders, gray arrays and Pillow images; see make_image_table.

    Raises:
        RecipeError: the model does not have one of `classes`.
        ModelError: `method` requires captum, which is not installed, or the network has no map for Grad-CAM.
    """
    table = make_image_table(images)
    explainer = make_explainer(model, table, method)
    remarks: dict[int, Remarks] = {}
    maps = tuple(explain_rows(explainer, table, classes, progress=progress, remarks=remarks))
    log_image_warnings(table, remarks, explainer.classifier.bit_depths)
    return Explanations(maps, explainer.check)


def make_explainer(
    model: Learner | Classifier | Ensemble,
    table: pd.DataFrame,
    method: Method = "grad_cam",
    image_cache: ImageCache | None = None,
    n_checked: int = N_CHECK_IMAGES,
) -> Explainer:
    """Return an explainer with the sanity check of up to `n_checked` of these images."""
    if isinstance(model, Ensemble):
        fix = "Pass the model of one fold, as load_model('runs/folds/fold-1')"
        raise ModelError("a saliency map explains one network, but this is an ensemble", fix)
    source_classifier = model if isinstance(model, Classifier) else extract_classifier(model)
    # a copy: the given network may be trained further
    network = copy.deepcopy(source_classifier.network).eval().requires_grad_(False)
    classifier = replace(source_classifier, network=network, precision="fp32")  # gradients in bfloat16 are imprecise
    explainer = Explainer(
        classifier=classifier,
        scorer=TorchScorer(source_classifier),
        attribute=attribute_in_batches(find_attribution_method(method, classifier)),
    )
    table = table.iloc[_order_evenly(len(table), n_checked)]
    depths = find_depths(table, source_classifier.bit_depths)
    images_or_errors = read_fitted_images(table["file"].tolist(), classifier.input_spec.image_size, image_cache, depths)
    images = list(islice((image for image in images_or_errors if not isinstance(image, ImageError)), n_checked))
    if not images:
        return explainer
    inputs = make_inputs(classifier, np.stack(images))
    probability = explainer.scorer.score(np.stack(images)).probability
    predicted = torch.from_numpy(probability.argmax(axis=1)).to(inputs.device)
    check = run_sanity_check(network, explainer.attribute, inputs, predicted)
    return replace(explainer, check=check)


def find_attribution_method(method: Method, classifier: Classifier) -> AttributionMethod:
    """Return a function of network, images (n, channels, size, size) and classes (n,) with maps (n, size, size).

    Raises:
        ModelError: captum is required and not installed, or the network has no spatial map for Grad-CAM.
    """
    device = find_model_device(classifier)
    if method in CAPTUM_METHODS:
        import_captum(method)
        compute_maps = CAPTUM_METHODS[method]
    else:
        with explain_device_errors():
            layers = find_target_layers(classifier.network, make_blank_image(classifier.input_spec, device))
        compute_maps = partial(grad_cam, layers=layers)

    def attribute(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        with forbid_tf32(classifier.precision, device):
            return compute_maps(network, images=images, classes=classes)

    return attribute


def attribute_in_batches(attribute: AttributionMethod) -> AttributionMethod:
    """Return an attribution method that computes at most BATCH_SIZE maps at once, fewer if memory is too small."""
    batches = FittingBatches(BATCH_SIZE)

    def compute_maps(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        parts = batches.compute(lambda rows: attribute(network, images[rows], classes[rows]), len(images))
        return torch.cat(list(parts))

    return compute_maps


def explain_rows(
    explainer: Explainer,
    table: pd.DataFrame,
    classes: Sequence[str] = (),
    image_cache: ImageCache | None = None,
    progress: Progress | None = None,
    predictions: Predictions | None = None,
    remarks: dict[int, Remarks] | None = None,
    row_classes: Sequence[str] | None = None,
) -> Iterator[SaliencyMap]:
    """Yield, row by row, the map of the most probable class and those of `classes`; one map with an error per bad file.

    Only a few images are in memory at a time. `table`: columns source, path and file. `predictions`: those of `predict`
    for these rows if known; otherwise they are computed in the batches of `predict`. `remarks`: see read_fitted_images.
    `row_classes`: the class or finding to explain in each row, instead of the most probable one.
    """
    find_indices = partial(find_class_indices, explainer.classifier)
    first_indices = [None] * len(table) if row_classes is None else find_indices(row_classes)
    wanted = iter([Wanted(first, others) for others in [find_indices(classes)] for first in first_indices])
    files, depths = table["file"].tolist(), find_depths(table, explainer.classifier.bit_depths)
    images = read_fitted_images(files, explainer.classifier.input_spec.image_size, image_cache, depths, remarks)
    with (progress or make_default_progress()).bar(len(table), "explaining") as bar:
        for predicted_rows, batch in _predict_batches(explainer, table[["source", "path"]], images, predictions):
            yield from _explain_batch(explainer, predicted_rows, batch, list(islice(wanted, len(batch))))
            bar.advance(len(batch))


def _predict_batches(
    explainer: Explainer, names: pd.DataFrame, images: Iterator[ImageOrError], predictions: Predictions | None
) -> Iterator[tuple[list[PredictedRow], list[ImageOrError]]]:
    """Yield predictions and images of BATCH_SIZE rows at a time."""
    known_rows = None if predictions is None else list_rows(predictions)
    n_predicted = explainer.scorer.batch_size
    for start in range(0, len(names), n_predicted):
        rows, batch = slice(start, start + n_predicted), list(islice(images, n_predicted))
        predicted_rows = _predict_rows(explainer.scorer, names[rows], batch) if known_rows is None else known_rows[rows]
        for first in range(0, len(batch), BATCH_SIZE):
            part = slice(first, first + BATCH_SIZE)
            yield predicted_rows[part], batch[part]


def _predict_rows(scorer: TorchScorer, names: pd.DataFrame, batch: list[ImageOrError]) -> list[PredictedRow]:
    scores, errors = score_images_or_errors(scorer, batch, len(batch))
    return list_rows(make_scored_predictions(names, scores, scorer, errors=errors))


def list_rows(predictions: Predictions) -> list[PredictedRow]:
    """Return the cells and the probabilities, shape (k,), of each row."""
    return list(zip(predictions.table.to_dict("records"), predictions.probability, strict=True))


def _explain_batch(
    explainer: Explainer, predicted_rows: list[PredictedRow], images: list[ImageOrError], wanted: list[Wanted]
) -> Iterator[SaliencyMap]:
    is_readable = [not isinstance(image, ImageError) for image in images]
    readable_parts: Any = [list(compress(part, is_readable)) for part in (predicted_rows, images, wanted)]
    maps = _explain_images(explainer, *readable_parts)
    for (row, _), image in zip(predicted_rows, images, strict=True):
        if isinstance(image, ImageError):
            error = f"FCX-{image.code} {image.problem}. {image.fix}"
            yield SaliencyMap(source=row["source"], path=row["path"], error=error)
        else:
            yield from next(maps)


def _explain_images(
    explainer: Explainer, predicted_rows: list[PredictedRow], readable_images: list, wanted: list[Wanted]
) -> Iterator[list[SaliencyMap]]:
    """Yield the maps of each image, in the order of Wanted.list_classes."""
    images = np.stack(readable_images)
    inputs, labels = make_inputs(explainer.classifier, images), explainer.classifier.labels
    classes = [one.list_classes(values) for one, (_, values) in zip(wanted, predicted_rows, strict=True)]
    row_of_map = [row for row, row_classes in enumerate(classes) for _ in row_classes]
    class_of_map = torch.tensor([k for row_classes in classes for k in row_classes], device=inputs.device)
    maps = iter(explainer.attribute(explainer.classifier.network, inputs[row_of_map], class_of_map).cpu().numpy())
    for (row, probability), image, row_classes in zip(predicted_rows, images, classes, strict=True):
        yield [
            SaliencyMap(
                source=row["source"], path=row["path"], predicted=row["predicted"], class_name=labels[k],
                probability=float(probability[k]), in_distribution=row.get(IN_DISTRIBUTION_COLUMN, ""),
                ood_score=row.get(OOD_SCORE_COLUMN, float("nan")),
                image=image, saliency=next(maps), failure_reason=explainer.failure_reason,
            )
            for k in row_classes
        ]  # fmt: skip


def make_inputs(classifier: Classifier, images: np.ndarray) -> torch.Tensor:
    """Normalize gray bytes, shape (n, size, size), into a batch of shape (n, channels, size, size)."""
    return normalize(torch.from_numpy(images).to(find_model_device(classifier))[:, None], classifier.input_spec)


def _order_evenly(rows: int, n_first: int) -> list[int]:
    """Return all row numbers, first `n_first` evenly spaced ones: a manifest is sorted by class."""
    first_indices = set(np.linspace(0, rows - 1, min(n_first, rows)).round().astype(int).tolist())
    return sorted(first_indices) + [row for row in range(rows) if row not in first_indices]


def _make_card_html(saliency_map: SaliencyMap) -> str:
    caption, image_html = saliency_map.path, ""
    if saliency_map.class_name:
        caption += f": {saliency_map.class_name} {saliency_map.probability:.3f}"
    if saliency_map.in_distribution == "no":
        caption += " (out-of-distribution: no predicted class)"
    if saliency_map.image is not None and saliency_map.normalized is not None:
        uri = make_pair_uri(saliency_map.image, saliency_map.normalized, SHOWN_MAP_PIXELS)
        image_html = f'<img src="{uri}" width="{2 * SHOWN_MAP_PIXELS}" alt="">'
    note = f"<br><b>{escape_html(saliency_map.note)}</b>" if saliency_map.note else ""
    return f'<figure style="margin:0">{image_html}<figcaption>{escape_html(caption)}{note}</figcaption></figure>'
