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
from fastcxr.data.cache.images import Pictures
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.data.manifest import read_unlabelled
from fastcxr.errors import ImageError, RecipeError
from fastcxr.inference.captum import import_captum, integrated_gradients, occlusion
from fastcxr.inference.grad_cam import find_layers, grad_cam
from fastcxr.inference.predict import Square, read_squares, score_images, tell_remarks, with_quick_network
from fastcxr.inference.sanity_check import IMAGES, Check, DrawMaps, check_maps
from fastcxr.io.html import escape
from fastcxr.models.bundle import Classifier, classifier_of
from fastcxr.models.preprocessing import blank, normalize
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress

BATCH = 8
CAPTUM = {"integrated_gradients": integrated_gradients, "occlusion": occlusion}
Method = Literal["grad_cam", "integrated_gradients", "occlusion"]
BORDER = 0.15  # of each side of the square; what is left of it is the central field
BRIGHTEST = 99.5  # percentile that is shown as full heat: a hot pixel at an edge would leave all others dark
SHOWN, SIZE = 12, 224  # in a notebook
# from no heat to most: dark red, orange, yellow; the picture shines through where there is little
HEAT = (0.0, 0.35, 0.7, 1.0)
COLORS = np.array([(90, 0, 60), (200, 30, 30), (250, 140, 20), (255, 240, 120)], float)
OPACITY, GAP = 0.7, 4


@dataclass(frozen=True, kw_only=True)
class Explainer:
    """A classifier in float32 with the way in which its maps are made.

    scorer: the same as `predict` uses it, in its own arithmetic, for the probability beside a map. check: None where no
    image could be read to check them.
    """

    classifier: Classifier
    scorer: Classifier
    draw: DrawMaps
    check: Check | None = None

    @property
    def withheld(self) -> str:
        """Why no map may be shown; empty where they may be."""
        return "no image could be read to check the maps" if self.check is None else self.check.refusal


@dataclass(frozen=True, kw_only=True, eq=False)
class Heat:
    """What speaks for one class (`label`) in one image.

    square: the image as the model saw it, gray bytes, shape (size, size). heat: what each place adds to the class's
    logit, nowhere less than zero, the same shape. withheld: why the map is not to be shown; error: why the image could
    not be read. All but the names are empty where there is an error.
    """

    source: str
    path: str
    predicted: str = ""
    label: str = ""
    probability: float = float("nan")
    square: np.ndarray | None = None
    heat: np.ndarray | None = None
    withheld: str = ""
    error: str = ""

    @property
    def shown(self) -> np.ndarray | None:
        """The map from 0 to 1; None where it is withheld or says nothing."""
        if self.heat is None or self.withheld or not self.heat.any():
            return None
        top = np.percentile(self.heat, BRIGHTEST) or self.heat.max()
        return np.clip(self.heat / top, 0, 1)

    @property
    def outside(self) -> float:
        """The share of the heat in the outer border of the square, padding included; nan without a map to show."""
        return float("nan") if self.shown is None else share_outside(self.heat)

    @property
    def note(self) -> str:
        """Why there is no map; empty where there is one."""
        nothing = "" if self.heat is None or self.heat.any() else "nothing in the image speaks for this class"
        return self.error or self.withheld or nothing

    def row(self) -> dict[str, str | float]:
        """One row of explain.csv."""
        return {
            "source": self.source, "path": self.path, "predicted": self.predicted, "class": self.label,
            "probability": self.probability, "outside": self.outside, "note": self.note, "error": self.error,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Explanations:
    """Heat maps in the order of the images, and the check that they went through."""

    heats: tuple[Heat, ...]
    check: Check | None

    @property
    def table(self) -> pd.DataFrame:
        """A row a map: source, path, predicted, class, probability, outside, note, error."""
        return pd.DataFrame([heat.row() for heat in self.heats])

    def _repr_html_(self) -> str:
        cards = "".join(map(_draw_card, self.heats[:SHOWN]))
        rest = f"<p>{len(self.heats) - SHOWN:,} more in .heats</p>" if len(self.heats) > SHOWN else ""
        words = escape(self.check.words) if self.check else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>{rest}<p>{words}</p>'


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
    heats = tuple(explain_each(explainer, table, classes, progress=progress, remarks=remarks))
    tell_remarks(table, remarks, explainer.classifier.bit_depths)
    return Explanations(heats, explainer.check)


def make_explainer(
    model: Learner | Classifier,
    table: pd.DataFrame,
    method: Method = "grad_cam",
    pictures: Pictures | None = None,
    checked: int = IMAGES,
) -> Explainer:
    """An explainer whose maps were checked on a few of these images; `pictures`: where they are kept decoded."""
    given = classifier_of(model) if isinstance(model, Learner) else model
    network = copy.deepcopy(given.network).eval().requires_grad_(False)  # the given one may still be taught
    classifier = replace(given, network=network, precision="fp32")  # a gradient of bfloat16 is a coarse one
    explainer = Explainer(classifier=classifier, scorer=with_quick_network(given), draw=find_method(method, classifier))
    table = table.iloc[_spread(len(table), checked)]
    depths = find_depths(table, given.bit_depths)
    found = read_squares(table["file"].tolist(), classifier.pixels.image_size, pictures, depths)
    squares = list(islice((square for square in found if not isinstance(square, ImageError)), checked))
    if not squares:
        return explainer
    inputs, probability = look(classifier, np.stack(squares)), score(explainer, np.stack(squares))
    predicted = torch.from_numpy(probability.argmax(axis=1)).to(inputs.device)
    check = check_maps(network, explainer.draw, inputs, predicted)
    return replace(explainer, check=check)


def find_method(method: Method, classifier: Classifier) -> DrawMaps:
    """What makes maps, shape (n, size, size), of a network, images (n, channels, size, size) and classes (n,).

    Raises ModelError where captum is needed and missing, or the network has no map of places.
    """
    if method in CAPTUM:
        import_captum(method)
        return CAPTUM[method]
    pixels, device = classifier.pixels, next(classifier.network.parameters()).device
    image = blank(pixels, device)
    layers = find_layers(classifier.network, image)

    def draw(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return grad_cam(network, layers, images, classes)

    return draw


def find_classes(labels: Sequence[str], names: Iterable[str]) -> list[int]:
    """Positions of the named classes. Raises RecipeError for one that the model does not know."""
    names = list(names)
    for name in names:
        if name not in labels:
            near = get_close_matches(name, labels, n=1)
            fix = f"Did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"the model has no class called {name!r}", f"{fix}It knows {', '.join(labels)}")
    return [list(labels).index(name) for name in names]


def explain_each(
    explainer: Explainer,
    table: pd.DataFrame,
    classes: Sequence[str] = (),
    pictures: Pictures | None = None,
    progress: Progress | None = None,
    probability: np.ndarray | None = None,
    remarks: dict[int, Remarks] | None = None,
) -> Iterator[Heat]:
    """Row by row the map of the predicted class, then those of the named ones; of a bad file what is wrong with it.

    `table`: columns source, path and file; nothing is kept in memory but a few images. `probability`: what `predict`
    gave for these rows, shape (n, k), where it is known already. `remarks`: see read_squares.
    """
    named = find_classes(explainer.classifier.labels, classes)
    files, depths = table["file"].tolist(), find_depths(table, explainer.classifier.bit_depths)
    squares = read_squares(files, explainer.classifier.pixels.image_size, pictures, depths, remarks)
    known = [None] * len(table) if probability is None else probability
    rows = zip(table[["source", "path"]].itertuples(index=False, name=None), squares, known, strict=True)
    with (progress or find_progress()).bar(len(table), "explaining") as bar:
        while batch := list(islice(rows, BATCH)):
            yield from _explain_batch(explainer, batch, named)
            bar.advance(len(batch))


def _explain_batch(
    explainer: Explainer, batch: list[tuple[tuple[str, str], Square, np.ndarray | None]], named: list[int]
) -> Iterator[Heat]:
    good = [(square, known) for _, square, known in batch if not isinstance(square, ImageError)]
    explained = iter(_explain_squares(explainer, good, named)) if good else iter(())
    for (source, path), square, _ in batch:
        if isinstance(square, ImageError):
            yield Heat(source=source, path=path, error=f"FCX-{square.code} {square.what}. {square.fix}")
        else:
            yield from (Heat(source=source, path=path, **facts) for facts in next(explained))


def _explain_squares(
    explainer: Explainer, images: list[tuple[np.ndarray, np.ndarray | None]], named: list[int]
) -> Iterator[list[dict]]:
    """For each square the facts of its maps: of the predicted class, and of the named ones that differ from it.

    `images`: squares with their probabilities; None for all where they are not known.
    """
    squares, known = (list(column) for column in zip(*images, strict=True))
    inputs = look(explainer.classifier, np.stack(squares))
    probability = score(explainer, np.stack(squares)) if known[0] is None else known
    wanted = [list(dict.fromkeys([int(row.argmax()), *named])) for row in probability]
    at = [row for row, numbers in enumerate(wanted) for _ in numbers]
    numbers = torch.tensor([number for row in wanted for number in row], device=inputs.device)
    maps = iter(explainer.draw(explainer.classifier.network, inputs[at], numbers).cpu().numpy())
    labels = explainer.classifier.labels
    for row, of_row in enumerate(wanted):
        yield [
            {
                "predicted": labels[of_row[0]],
                "label": labels[number],
                "probability": float(probability[row][number]),
                "square": squares[row],
                "heat": next(maps),
                "withheld": explainer.withheld,
            }
            for number in of_row
        ]


def look(classifier: Classifier, squares: np.ndarray) -> torch.Tensor:
    """Gray bytes, shape (n, size, size), as the network sees them, shape (n, channels, size, size)."""
    device = next(classifier.network.parameters()).device
    return normalize(torch.from_numpy(squares).to(device)[:, None], classifier.pixels)


def score(explainer: Explainer, squares: np.ndarray) -> np.ndarray:
    """The probabilities that `predict` gives for gray bytes, shape (n, size, size); shape (n, k)."""
    return score_images(explainer.scorer, squares).probability


def _spread(rows: int, count: int) -> list[int]:
    """All rows, `count` that are spread evenly first: a cohort is sorted by class."""
    first = set(np.linspace(0, rows - 1, min(count, rows)).round().astype(int).tolist())
    return sorted(first) + [row for row in range(rows) if row not in first]


def share_outside(heat: np.ndarray) -> float:
    """The share of a map, shape (size, size), that lies in the outer 15 % on each side; .51 for an even one."""
    edge = round(BORDER * heat.shape[0])
    return float(1 - heat[edge:-edge, edge:-edge].sum(dtype=float) / heat.sum(dtype=float))


def _draw_card(heat: Heat) -> str:
    words = f"{heat.path}: {heat.label} {heat.probability:.3f}" if heat.label else heat.path
    picture = ""
    if heat.shown is not None:
        data = base64.b64encode(pair_jpeg(heat.square, heat.shown, SIZE)).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" width="{2 * SIZE}" alt="">'
    note = f"<br><b>{escape(heat.note)}</b>" if heat.note else ""
    return f'<figure style="margin:0">{picture}<figcaption>{escape(words)}{note}</figcaption></figure>'


def overlay(square: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`square`: gray bytes, `heat`: 0 to 1, both of shape (size, size); colours, bytes of shape (size, size, 3)."""
    color = np.stack([np.interp(heat, HEAT, channel) for channel in COLORS.T], axis=2)
    share = OPACITY * heat[..., None]
    return (square[..., None] * (1 - share) + color * share).round().astype(np.uint8)


def pair_jpeg(square: np.ndarray, heat: np.ndarray, size: int) -> bytes:
    """The picture, and beside it the picture under its map, as a JPEG without metadata; each is `size` pixels wide."""
    pair = Image.new("RGB", (2 * size + GAP, size), "white")
    for left, picture in ((0, Image.fromarray(square)), (size + GAP, Image.fromarray(overlay(square, heat)))):
        pair.paste(picture.resize((size, size), Image.Resampling.BILINEAR), (left, 0))
    buffer = io.BytesIO()
    pair.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
