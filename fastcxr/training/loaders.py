"""From a manifest to fastai DataLoaders that already speak the backbone's pixels.

Images stay one gray channel through augmentation and become three only where normalization follows: the network sees
the same numbers, and the transforms do a third of the work.
"""

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, IndexSplitter, Normalize
from fastai.torch_core import TensorImageBW
from fastai.vision.augment import AffineCoordTfm, PadMode, aug_transforms, flip_mat
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from fasttransform import DisplayedTransform
from PIL import Image

from fastcxr.data.depths import COLUMN, open_cohort_pictures
from fastcxr.data.images import fit_square, read_image
from fastcxr.errors import DataError
from fastcxr.progress import Progress
from fastcxr.recipe import Augmentation, Recipe
from fastcxr.training.backbones import find_backbone
from fastcxr.training.devices import find_device
from fastcxr.training.pictures import PictureLoader
from fastcxr.training.pixels import Pixels
from fastcxr.training.sampling import loader_options


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
