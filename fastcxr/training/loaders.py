"""From a manifest to fastai DataLoaders that already speak the backbone's pixels.

Images stay one gray channel through augmentation and become three only where normalization follows: the network sees
the same numbers, and the transforms do a third of the work.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.transforms import ColReader, IndexSplitter, Normalize
from fastai.torch_core import TensorCategory, TensorImageBW
from fastai.vision.augment import AffineCoordTfm, PadMode, aug_transforms, flip_mat
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from fasttransform import DisplayedTransform
from PIL import Image

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.bit_depth import COLUMN, open_cohort_pictures
from fastcxr.data.cache.images import Pictures
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import DataError, RecipeError
from fastcxr.models.backbones import find_backbone
from fastcxr.models.devices import find_device
from fastcxr.models.preprocessing import Pixels
from fastcxr.progress.base import Progress

SHARE_OF_DEVICE = 0.3  # of a GPU's free memory, that a cohort may take
log = logging.getLogger("fastcxr")


class Radiograph(PILImageBW):
    """One gray radiograph as fastai knows images; `create` reads every kind of file that fastcxr reads."""

    _show_args = {"cmap": "gray"}  # fastai shows its own gray images as negatives

    @classmethod
    def create(cls, source: Any, **options) -> "Radiograph":
        """The radiograph in a file, or in an array of gray values."""
        array = read_image(source) if isinstance(source, str | Path) else np.asarray(source)
        return cls(Image.fromarray(array))


class FitSquare(DisplayedTransform):
    """The whole radiograph inside a square, padded: fastai's Resize would cut off what does not fit."""

    def __init__(self, size: int):
        self.size = size

    def encodes(self, image: Radiograph) -> Radiograph:
        return Radiograph(Image.fromarray(fit_square(np.asarray(image), self.size)))


class ExpandChannels(DisplayedTransform):
    """One gray channel becomes the number of channels that the weights expect."""

    order = Normalize.order - 1  # after every augmentation, before normalization

    def __init__(self, channels: int):
        self.channels = channels

    def encodes(self, image: TensorImageBW) -> TensorImageBW:
        return image.expand(-1, self.channels, -1, -1)


def make_loaders(manifest: pd.DataFrame, recipe: Recipe, progress: Progress | None = None) -> DataLoaders:
    """fastai DataLoaders over the train and valid rows; seeds every random number generator first.

    `loaders.pixels` says what the network will see, `loaders.vocab` the labels in their order; `loaders.manifest` is
    the whole manifest, test rows included, and `loaders.pictures` are its images, decoded once.
    Raises DataError where training would have no image or no full batch, ImageError for one that cannot be read.
    """
    seed_everything(recipe.seed)  # before the loaders: each draws its own shuffling seed at birth
    counts = manifest["split"].value_counts()
    for part in ("train", "valid"):
        if not counts.get(part):
            raise DataError(
                f"no image is in the {part} split", "Call split_by_patient first, or mend the split column", code="E004"
            )
    manifest, pictures = open_cohort_pictures(manifest, recipe.image_size, progress)
    table = manifest[manifest["split"].isin(["train", "valid"])].reset_index(drop=True)  # with its bit depths
    pictures.tell_warnings(again=False)  # `read_cohort` has told those of a whole run
    drawn = loader_options(table.loc[table["split"] == "train", "label"], recipe)
    loaders = make_datablock(table, recipe).dataloaders(
        table,
        bs=min(recipe.batch_size, int(counts["train"])),
        num_workers=recipe.workers,
        device=find_device(recipe.device),
        dl_type=PictureLoader,
        dl_kwargs=({"pictures": pictures, **drawn}, {"pictures": pictures}),
    )
    loaders.pixels, loaders.manifest, loaders.pictures = make_pixels(recipe), manifest, pictures
    return loaders


def make_datablock(table: pd.DataFrame, recipe: Recipe) -> DataBlock:
    """The DataBlock of a table with `file`, `label` and `split`: change it, and build loaders of your own."""
    pixels = make_pixels(recipe)
    labels = sorted(table["label"].unique())
    return DataBlock(
        blocks=(ImageBlock(Radiograph), CategoryBlock(vocab=labels)),
        get_x=read_row if COLUMN in table else ColReader("file"),
        get_y=ColReader("label"),
        splitter=lambda rows: IndexSplitter(rows.index[rows["split"] == "valid"])(rows),
        item_tfms=FitSquare(pixels.image_size),
        batch_tfms=[
            *make_augmentation(recipe.augment, pixels.image_size),
            ExpandChannels(len(pixels.mean)),
            make_normalization(pixels, find_device(recipe.device)),
        ],
    )


def read_row(row: pd.Series) -> np.ndarray:
    """The radiograph of a row of a manifest, as it is at the row's bit depth."""
    depth = getattr(row, COLUMN, "")
    return read_image(row.file, None if pd.isna(depth) or depth == "" else int(depth))


def make_augmentation(choices: Augmentation, size: int) -> list:
    """fastai's aug_transforms with these knobs, for images of `size` pixels."""
    knobs = vars(choices) | {"pad_mode": getattr(PadMode, choices.pad_mode.title())}
    extra = []
    if not knobs.pop("quarter_turns") and choices.do_flip and choices.flip_vert:
        # both flips of fastai are one of the eight symmetries of a square, which transpose half of what they move
        knobs["flip_vert"] = False
        same = {name: knobs[name] for name in ("mode", "pad_mode", "align_corners")}
        extra = [AffineCoordTfm(partial(upside_down, batch=choices.batch), **same)]
    # a size makes fastai resample validation images too, so it is given only to the crop that cannot do without
    size = size if choices.min_scale < 1 else None
    return aug_transforms(**knobs, size=size, xtra_tfms=extra)


def upside_down(images: torch.Tensor, batch: bool = False) -> torch.Tensor:
    """Matrices that turn each second image, at random, upside down; shape (n, 3, 3)."""
    axes = [1, 0, 2]  # what fastai's flip does to x, done to y
    return flip_mat(images, p=0.5, batch=batch)[:, axes][:, :, axes]


def make_pixels(recipe: Recipe) -> Pixels:
    """The size that the recipe asks for, with the normalization that the backbone's weights expect."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    return Pixels(image_size=recipe.image_size, mean=backbone.mean, std=backbone.std)


def make_normalization(pixels: Pixels, device: torch.device) -> Normalize:
    """fastai's Normalize with these means and deviations, on the device where the batches are."""
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (pixels.mean, pixels.std))
    return Normalize(mean, std)


def seed_everything(seed: int) -> None:
    """Every generator that training draws from, and algorithms that give the same sum twice."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # fastai's transforms draw from the global generators
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


class PictureLoader(TfmdDL):
    """A loader that reads the squares of whole batches, and that may draw rows more than once.

    `pictures`: where the files of the dataset are found; a dataset of other files is read one by one.
    `weights`: one a row, how likely each draw, with replacement, takes it. `rows`: the positions that one epoch shows,
    before shuffling. The draws come from the loader's own generator in the main process, whatever the workers do.
    """

    def __init__(
        self, dataset: Any = None, bs: int = 64, pictures: Pictures | None = None, weights=None, rows=None, **options
    ):
        self.pictures, self.weights, self.rows = pictures, weights, rows
        self.skipped, self.order = 0, []
        self.places = find_places(dataset, pictures)
        super().__init__(dataset, bs=bs, **(options | ({} if rows is None else {"n": len(rows)})))
        self.resident = None if self.places is None or options.get("num_workers") else keep_on_device(self)

    def new(self, dataset: Any = None, cls: type | None = None, **options) -> TfmdDL:
        """The same loader for another dataset; each row comes once."""
        return super().new(dataset, cls, **({"pictures": self.pictures} | options))

    def skip(self, batches: int) -> None:
        """Leave out the first batches of the epoch that comes; whatever draws, draws as after them."""
        self.skipped = batches
        # torch draws a seed for the workers at the beginning of an epoch: that draw lies behind us
        self.fake_l.generator = torch.Generator() if batches else None

    def positions_of(self, number: int) -> list[int]:
        """Where the images of a batch stand in the dataset; `number` counts what the epoch under way shows, from 0."""
        return self.order[number * self.bs : (number + 1) * self.bs]

    def get_idxs(self) -> list[int]:
        """Positions in the dataset, in the order of this epoch."""
        self.order = self.draw_order()[self.skipped * self.bs :]
        return self.order

    def draw_order(self) -> list[int]:
        """Positions of a whole epoch."""
        if self.weights is not None:
            return self.rng.choices(range(self.n), weights=self.weights, k=self.n)
        positions = list(super().get_idxs())
        return positions if self.rows is None else [self.rows[i] for i in positions]

    def create_batches(self, samps: Sequence[int]) -> Iterator[tuple]:
        """Batches of gray bytes, shape (n, 1, size, size), and class numbers."""
        if self.places is None:
            yield from super().create_batches(samps)
            return
        for positions in self.chunkify(samps):
            yield self.read(list(positions))

    def read(self, positions: list[int]) -> tuple:
        """The batch of these positions in the dataset."""
        if self.resident is not None:
            squares = self.resident[torch.tensor(positions, device=self.resident.device)]
        else:
            squares = torch.from_numpy(self.pictures.read(self.places[positions]))
        labels = [torch.stack([torch.as_tensor(part[i]) for i in positions]) for part in self.dataset.tls[1:]]
        return TensorImageBW(squares[:, None]), *(TensorCategory(label) for label in labels)


def find_places(dataset: Any, pictures: Pictures | None) -> np.ndarray | None:
    """Rows of `pictures` that hold the images of the dataset; None where it has other ones."""
    items = getattr(dataset, "items", None)
    if pictures is None or not hasattr(items, "columns") or "file" not in items:
        return None
    row_of = {file: row for row, file in enumerate(pictures.files)}
    places = [row_of.get(file) for file in items["file"]]
    return None if None in places else np.array(places, np.int64)


def keep_on_device(loader: PictureLoader) -> torch.Tensor | None:
    """All squares of a loader on its GPU, as bytes, where they fit; batches then never touch the host."""
    device = torch.device(loader.device or "cpu")
    if (
        device.type != "cuda"
        or len(loader.places) * loader.pictures.size**2 > SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]
    ):
        return None
    return torch.from_numpy(loader.pictures.read(loader.places)).to(device)


def loader_options(labels: pd.Series, recipe: Recipe) -> dict[str, Any]:
    """How a PictureLoader draws training rows with these labels in this order."""
    if recipe.class_weights == "balanced" and (recipe.sampler == "weighted" or recipe.oversample):
        log.warning("class weights and the drawing of images both favour rare classes: together they do so twice")
    if recipe.sampler == "weighted":
        # the reciprocal of the class counts: each class as a whole is equally likely
        return {"weights": (1 / labels.map(labels.value_counts())).tolist()}
    if recipe.oversample:
        return {"rows": repeat_rows(labels.tolist(), recipe.copies)}
    return {}  # fastai's own shuffling


def repeat_rows(labels: Sequence[str], copies: dict[str, int]) -> list[int]:
    """Positions of all rows, those of the classes in `copies` so many times. Says aloud what that comes to."""
    for label in copies:
        if label not in labels:
            known = sorted(set(labels))
            close = get_close_matches(label, known, n=1)
            fix = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}"
            raise RecipeError(f"oversample names a class {label!r} that no training image has", fix)
    rows = [row for row, label in enumerate(labels) for _ in range(copies.get(label, 1))]
    shown = ", ".join(f"{label} {times} times" for label, times in copies.items())
    log.info("oversampling: %s; an epoch shows %d of %d training images", shown, len(rows), len(labels))
    return rows
