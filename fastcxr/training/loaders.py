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
from fastcxr.data.bit_depth import COLUMN, open_dataset_images
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import DataError, RecipeError
from fastcxr.models.backbones import find_backbone
from fastcxr.models.devices import find_device
from fastcxr.models.preprocessing import InputSpec
from fastcxr.models.state import LoadersState
from fastcxr.progress.base import Progress

MAX_GPU_MEMORY_SHARE = 0.3  # of a GPU's free memory, that a cohort may take
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


def make_loaders(
    manifest: pd.DataFrame,
    recipe: Recipe,
    progress: Progress | None = None,
    image_cache: ImageCache | None = None,
) -> DataLoaders:
    """fastai DataLoaders over the train and valid rows; seeds every random number generator first.

    `loaders.vocab` has the labels in their order, `loaders.fastcxr` (a LoadersState) the size and normalization of what
    the network gets, the whole manifest, test rows included, and the cache of its decoded images.
    `image_cache`: where the images of this manifest, and maybe others, were opened already.
    Raises DataError where training would have no image or no full batch, ImageError for one that cannot be read.
    """
    seed_everything(recipe.seed)  # before the loaders: each draws its own shuffling seed at birth
    counts = manifest["split"].value_counts()
    for split in ("train", "valid"):
        if not counts.get(split):
            raise DataError(
                f"no image is in the {split} split",
                "Call split_by_patient first, or mend the split column",
                code="E027",
            )
    image_cache = image_cache and image_cache.select(manifest["file"].tolist(), recipe.image_size)
    if image_cache is None:
        manifest, image_cache = open_dataset_images(manifest, recipe.image_size, progress)
    table = manifest[manifest["split"].isin(["train", "valid"])].reset_index(drop=True)  # with its bit depths
    image_cache.log_warnings(again=False)  # `load_dataset` has told those of a whole run
    sampler_options = make_sampler_options(table.loc[table["split"] == "train", "label"], recipe)
    loaders = make_datablock(table, recipe).dataloaders(
        table,
        bs=min(recipe.batch_size, int(counts["train"])),
        num_workers=recipe.workers,
        device=find_device(recipe.device),
        dl_type=ImageLoader,
        dl_kwargs=({"image_cache": image_cache, **sampler_options}, {"image_cache": image_cache}),
    )
    loaders.fastcxr = LoadersState(input_spec=make_input_spec(recipe), manifest=manifest, image_cache=image_cache)
    return loaders


def make_datablock(table: pd.DataFrame, recipe: Recipe) -> DataBlock:
    """The DataBlock of a table with `file`, `label` and `split`: change it, and build loaders of your own."""
    input_spec = make_input_spec(recipe)
    labels = sorted(table["label"].unique())
    return DataBlock(
        blocks=(ImageBlock(Radiograph), CategoryBlock(vocab=labels)),
        get_x=read_row if COLUMN in table else ColReader("file"),
        get_y=ColReader("label"),
        splitter=lambda rows: IndexSplitter(rows.index[rows["split"] == "valid"])(rows),
        item_tfms=FitSquare(input_spec.image_size),
        batch_tfms=[
            *make_augmentation(recipe.augment, input_spec.image_size),
            ExpandChannels(len(input_spec.mean)),
            make_normalization(input_spec, find_device(recipe.device)),
        ],
    )


def read_row(row: pd.Series) -> np.ndarray:
    """The radiograph of a row of a manifest, as it is at the row's bit depth."""
    depth = getattr(row, COLUMN, "")
    return read_image(row.file, None if pd.isna(depth) or depth == "" else int(depth))


def make_augmentation(augmentation: Augmentation, size: int) -> list:
    """fastai's aug_transforms with these knobs, for images of `size` pixels."""
    options = vars(augmentation) | {"pad_mode": getattr(PadMode, augmentation.pad_mode.title())}
    extra_transforms = []
    if not options.pop("quarter_turns") and augmentation.do_flip and augmentation.flip_vert:
        # both flips of fastai are one of the eight symmetries of a square, which transpose half of what they move
        options["flip_vert"] = False
        transform_options = {name: options[name] for name in ("mode", "pad_mode", "align_corners")}
        extra_transforms = [AffineCoordTfm(partial(flip_vertically, batch=augmentation.batch), **transform_options)]
    # a size makes fastai resample validation images too, so it is given only to the crop that cannot do without
    size = size if augmentation.min_scale < 1 else None
    return aug_transforms(**options, size=size, xtra_tfms=extra_transforms)


def flip_vertically(images: torch.Tensor, batch: bool = False) -> torch.Tensor:
    """Matrices that turn each second image, at random, upside down; shape (n, 3, 3)."""
    axes = [1, 0, 2]  # what fastai's flip does to x, done to y
    return flip_mat(images, p=0.5, batch=batch)[:, axes][:, :, axes]


def make_input_spec(recipe: Recipe) -> InputSpec:
    """The size that the recipe asks for, with the normalization that the backbone's weights expect."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    return InputSpec(image_size=recipe.image_size, mean=backbone.mean, std=backbone.std)


def make_normalization(input_spec: InputSpec, device: torch.device) -> Normalize:
    """fastai's Normalize with these means and deviations, on the device where the batches are."""
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (input_spec.mean, input_spec.std))
    return Normalize(mean, std)


def seed_everything(seed: int) -> None:
    """Every generator that training draws from, and algorithms that give the same sum twice."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # fastai's transforms draw from the global generators
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


class ImageLoader(TfmdDL):
    """A loader that reads the squares of whole batches, and that may draw rows more than once.

    `pictures`: where the files of the dataset are found; a dataset of other files is read one by one.
    `weights`: one a row, how likely each draw, with replacement, takes it. `rows`: the positions that one epoch shows,
    before shuffling. The draws come from the loader's own generator in the main process, whatever the workers do.
    """

    def __init__(
        self,
        dataset: Any = None,
        bs: int = 64,
        image_cache: ImageCache | None = None,
        weights=None,
        rows=None,
        **options,
    ):
        self.image_cache, self.weights, self.rows = image_cache, weights, rows
        self.n_skipped_batches, self.epoch_indices = 0, []
        self.cache_rows = find_cache_rows(dataset, image_cache)
        super().__init__(dataset, bs=bs, **(options | ({} if rows is None else {"n": len(rows)})))
        self.gpu_images = None if self.cache_rows is None or options.get("num_workers") else load_to_gpu(self)

    def new(self, dataset: Any = None, cls: type | None = None, **options) -> TfmdDL:
        """The same loader for another dataset; each row comes once."""
        return super().new(dataset, cls, **({"image_cache": self.image_cache} | options))

    def skip_batches(self, n_batches: int) -> None:
        """Leave out the first batches of the epoch that comes; whatever draws, draws as after them."""
        self.n_skipped_batches = n_batches
        # torch draws a seed for the workers at the beginning of an epoch: that draw lies behind us
        self.fake_l.generator = torch.Generator() if n_batches else None

    def batch_indices(self, batch_number: int) -> list[int]:
        """Where the images of a batch stand in the dataset; `number` counts what the epoch under way shows, from 0."""
        return self.epoch_indices[batch_number * self.bs : (batch_number + 1) * self.bs]

    def get_idxs(self) -> list[int]:
        """Positions in the dataset, in the order of this epoch."""
        self.epoch_indices = self.draw_epoch_indices()[self.n_skipped_batches * self.bs :]
        return self.epoch_indices

    def draw_epoch_indices(self) -> list[int]:
        """Positions of a whole epoch."""
        if self.weights is not None:
            return self.rng.choices(range(self.n), weights=self.weights, k=self.n)
        indices = list(super().get_idxs())
        return indices if self.rows is None else [self.rows[i] for i in indices]

    def create_batches(self, samps: Sequence[int]) -> Iterator[tuple]:
        """Batches of gray bytes, shape (n, 1, size, size), and class numbers."""
        if self.cache_rows is None:
            yield from super().create_batches(samps)
            return
        for indices in self.chunkify(samps):
            yield self.read_batch(list(indices))

    def read_batch(self, indices: list[int]) -> tuple:
        """The batch of these positions in the dataset."""
        if self.gpu_images is not None:
            images = self.gpu_images[torch.tensor(indices, device=self.gpu_images.device)]
        else:
            images = torch.from_numpy(self.image_cache.read(self.cache_rows[indices]))
        labels = [torch.stack([torch.as_tensor(targets[i]) for i in indices]) for targets in self.dataset.tls[1:]]
        return TensorImageBW(images[:, None]), *(TensorCategory(label) for label in labels)


def find_cache_rows(dataset: Any, image_cache: ImageCache | None) -> np.ndarray | None:
    """Rows of `pictures` that hold the images of the dataset; None where it has other ones."""
    items = getattr(dataset, "items", None)
    if image_cache is None or not hasattr(items, "columns") or "file" not in items:
        return None
    row_by_file = {file: row for row, file in enumerate(image_cache.files)}
    cache_rows = [row_by_file.get(file) for file in items["file"]]
    return None if None in cache_rows else np.array(cache_rows, np.int64)


def load_to_gpu(loader: ImageLoader) -> torch.Tensor | None:
    """All squares of a loader on its GPU, as bytes, where they fit; batches then never touch the host."""
    device = torch.device(loader.device or "cpu")
    if (
        device.type != "cuda"
        or len(loader.cache_rows) * loader.image_cache.size**2
        > MAX_GPU_MEMORY_SHARE * torch.cuda.mem_get_info(device)[0]
    ):
        return None
    return torch.from_numpy(loader.image_cache.read(loader.cache_rows)).to(device)


def make_sampler_options(labels: pd.Series, recipe: Recipe) -> dict[str, Any]:
    """How a ImageLoader draws training rows with these labels in this order."""
    if recipe.class_weights == "balanced" and (recipe.sampler == "weighted" or recipe.oversample):
        log.warning("class weights and the drawing of images both favour rare classes: together they do so twice")
    if recipe.sampler == "weighted":
        # the reciprocal of the class counts: each class as a whole is equally likely
        return {"weights": (1 / labels.map(labels.value_counts())).tolist()}
    if recipe.oversample:
        return {"rows": oversample_rows(labels.tolist(), recipe.oversample_factors)}
    return {}  # fastai's own shuffling


def oversample_rows(labels: Sequence[str], factors: dict[str, int]) -> list[int]:
    """Positions of all rows, those of the classes in `copies` so many times. Says aloud what that comes to."""
    for label in factors:
        if label not in labels:
            known_labels = sorted(set(labels))
            close = get_close_matches(label, known_labels, n=1)
            fix = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known_labels)}"
            raise RecipeError(f"oversample names a class {label!r} that no training image has", fix)
    rows = [row for row, label in enumerate(labels) for _ in range(factors.get(label, 1))]
    summary = ", ".join(f"{label} {factor} times" for label, factor in factors.items())
    log.info("oversampling: %s; an epoch shows %d of %d training images", summary, len(rows), len(labels))
    return rows
