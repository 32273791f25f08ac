"""Create fastai DataLoaders from a manifest.

Images are augmented as one gray channel and expanded to three before normalization, which is three times faster.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, TfmdDL, TfmdLists
from fastai.data.transforms import ColReader, IndexSplitter, Normalize, ToTensor
from fastai.torch_core import TensorBase, TensorCategory, TensorImageBW, TensorMultiCategory
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from fasttransform import DisplayedTransform
from PIL import Image

from fastcxr.config.recipe import DEFAULT_BATCH_SIZE, Recipe
from fastcxr.data.bit_depth import COLUMN, open_dataset_images
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.findings import is_multi_label, list_findings
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import compute_truth
from fastcxr.data.manifest import read_manifest
from fastcxr.data.splits import split_by_patient
from fastcxr.errors import DataError, ImageError, RecipeError, require_type
from fastcxr.models.backbones import find_backbone
from fastcxr.models.device_images import DeviceImages
from fastcxr.models.devices import find_device, move_async
from fastcxr.models.encoders import find_image_size
from fastcxr.models.preprocessing import InputSpec
from fastcxr.models.state import LoadersState
from fastcxr.progress.base import Progress
from fastcxr.training.augmentation import RandomAugmentation
from fastcxr.training.finding_losses import weigh_rows
from fastcxr.training.finding_targets import (
    TargetReader,
    append_targets,
    is_finding_target,
    make_finding_block,
)

log = logging.getLogger("fastcxr")


class Radiograph(PILImageBW):
    """A gray image for fastai; `create` reads every file format that fastcxr supports."""

    _show_args = {"cmap": "gray"}  # fastai's default shows gray images inverted

    @classmethod
    # fastai reads the annotation to find the transforms that an item of `learner.predict` still needs
    def create(cls, source: str | Path | np.ndarray | Image.Image, **options) -> "Radiograph":
        """Read a file, or convert an array of gray bytes or a PIL image of 8 bits. Raises ImageError."""
        if isinstance(source, str | Path):
            source = read_image(source)
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        if image.mode.startswith(("I", "F")):
            problem = f"the image has the PIL mode {image.mode!r}, expected 8 bits per pixel"
            raise ImageError(problem, "Pass the path of the file, or an array of dtype uint8 with 0 as black")
        return cls(image.convert("L"))  # pyright: ignore[reportCallIssue]  fastai's metaclass adds the argument


class FitSquare(DisplayedTransform):
    """Pad the image to a square and resize it, where fastai's Resize would crop it."""

    def __init__(self, size: int):
        self.size = size

    def encodes(self, image: Radiograph) -> Radiograph:
        """Pad and resize one image."""
        return Radiograph.create(fit_square(np.asarray(image), self.size))


class ExpandChannels(DisplayedTransform):
    """Repeat the gray channel to the number of channels that the backbone expects."""

    order = Normalize.order - 1  # after every augmentation, before normalization

    def __init__(self, channels: int):
        self.channels = channels

    def encodes(self, image: TensorImageBW) -> TensorImageBW:
        """Expand a batch, shape (n, 1, size, size)."""
        return cast(TensorImageBW, image.expand(-1, self.channels, -1, -1))


class ManifestBlock(DataBlock):
    """The DataBlock of a manifest: its loaders carry the state that predict and write_report need."""

    manifest: pd.DataFrame
    recipe: Recipe
    input_spec: InputSpec

    def dataloaders(
        self,
        source: pd.DataFrame | str | Path | None = None,
        path: str | Path = ".",
        verbose: bool = False,
        image_cache: ImageCache | None = None,
        **options,
    ) -> DataLoaders:
        """Return DataLoaders over the train and valid rows.

        Args:
            source: a manifest, or data for read_manifest; by default the data of make_datablock.
            path: see fastai.
            verbose: see fastai.
            image_cache: an open cache with the images of the manifest; by default it is opened here.
            **options: further arguments of fastai's DataLoaders, such as `bs`.
        """
        recipe, manifest = self.recipe, self.manifest if source is None else read_split_manifest(source, self.recipe)
        train_rows = select_training_rows(manifest).query("split == 'train'")
        if image_cache is None:
            manifest, image_cache = open_dataset_images(manifest, find_image_size(recipe))
        image_cache.log_warnings(again=False)  # load_dataset logged those of the whole run
        state = LoadersState(input_spec=self.input_spec, manifest=manifest, image_cache=image_cache, recipe=recipe)
        defaults = {
            # train chooses the size for "auto"
            "bs": min(DEFAULT_BATCH_SIZE if recipe.batch_size == "auto" else recipe.batch_size, len(train_rows)),
            "num_workers": recipe.workers,
            "device": find_device(recipe.device),
        }
        if "dl_type" not in options:
            train_options = {"images": state.images, **make_sampler_options(train_rows, recipe)}
            defaults |= {"dl_type": ImageLoader, "dl_kwargs": (train_options, {"images": state.images})}
        loaders = super().dataloaders(manifest, str(path), verbose, **(defaults | options))
        loaders.fastcxr = state  # pyright: ignore[reportAttributeAccessIssue]  fastai's classes accept attributes
        return loaders


def make_loaders(
    manifest: pd.DataFrame, recipe: Recipe, progress: Progress | None = None, image_cache: ImageCache | None = None
) -> DataLoaders:
    """Return fastai DataLoaders over the train and valid rows, after seeding all random number generators.

    `loaders.vocab` has the labels in order, `loaders.fastcxr` (a LoadersState) input size, normalization, manifest and
    image cache. `image_cache`: an open cache with the images of this manifest; default: opened here.
    Raises DataError for an empty train or valid split, ImageError for an unreadable file.
    """
    require_type("manifest", manifest, pd.DataFrame)
    require_type("recipe", recipe, Recipe)
    seed_everything(recipe.seed)  # before the loaders are made: each draws its shuffling seed on creation
    select_training_rows(manifest)  # raises before any image is read
    image_size = find_image_size(recipe)
    image_cache = image_cache and image_cache.select(manifest["file"].tolist(), image_size)
    if image_cache is None:
        manifest, image_cache = open_dataset_images(manifest, image_size, progress)
    return make_datablock(manifest, recipe).dataloaders(image_cache=image_cache)


def make_datablock(
    source: pd.DataFrame | str | Path, recipe: Recipe, input_spec: InputSpec | None = None
) -> ManifestBlock:
    """Return the DataBlock of a manifest with splits, or of data for read_manifest, as a start for custom loaders.

    The rows of the test split stay out of its loaders. Data without splits is split as by `split_by_patient`.
    `input_spec`: size and normalization of the images; by default those of the recipe's backbone and weights.
    """
    require_type("source", source, pd.DataFrame, str, Path)
    require_type("recipe", recipe, Recipe)
    manifest, input_spec = read_split_manifest(source, recipe), input_spec or make_input_spec(recipe)
    device = find_device(recipe.device)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (input_spec.mean, input_spec.std))
    image_block = ImageBlock(Radiograph)  # pyright: ignore[reportArgumentType]  annotated as an instance
    findings = list_findings(manifest)
    label_block = CategoryBlock(vocab=sorted(manifest["label"].unique()))
    block = ManifestBlock(
        blocks=[image_block, make_finding_block(findings) if findings else label_block],
        get_items=lambda source: select_items(read_split_manifest(source, recipe), recipe),
        get_x=read_row,
        get_y=TargetReader(findings) if findings else ColReader("label"),
        splitter=lambda rows: IndexSplitter(rows.index[rows["split"] == "valid"])(rows),
        item_tfms=[FitSquare(input_spec.image_size)],
        batch_tfms=[
            RandomAugmentation(recipe.augment),
            ExpandChannels(len(input_spec.mean)),
            Normalize(mean, std),
        ],
    )
    block.manifest, block.recipe, block.input_spec = manifest, recipe, input_spec
    return block


def read_split_manifest(source: pd.DataFrame | str | Path, recipe: Recipe) -> pd.DataFrame:
    """Return a manifest unchanged; read other data, and split it by the recipe's unit and seed."""
    if isinstance(source, pd.DataFrame):
        return source
    manifest = read_manifest(source, recipe)
    return split_by_patient(manifest, unit=recipe.split, seed=recipe.seed, uncertain=recipe.uncertain)


def select_training_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the train and valid rows. Raise DataError if one of both splits is empty."""
    for split in ("train", "valid"):
        if not (manifest["split"] == split).any():
            fix = "Call split_by_patient first, or correct the split column"
            raise DataError(f"no image is in the {split} split", fix, code="E027")
    return manifest[manifest["split"].isin(["train", "valid"])].reset_index(drop=True)


def select_items(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Return the train and valid rows, with the targets of findings if there are any."""
    rows = select_training_rows(manifest)
    return append_targets(rows, recipe) if is_multi_label(rows) else rows


def read_row(row: pd.Series) -> np.ndarray:
    """Read the image of a manifest row at the row's bit depth."""
    depth = getattr(row, COLUMN, "")
    return read_image(row.file, None if pd.isna(depth) or depth == "" else int(depth))


def make_input_spec(recipe: Recipe) -> InputSpec:
    """Return the recipe's image size with the normalization of the backbone's weights."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    return InputSpec(image_size=find_image_size(recipe), mean=backbone.mean, std=backbone.std)


def seed_everything(seed: int) -> None:
    """Seed all random number generators used in training."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # fastai's transforms use the global generators
    torch.manual_seed(seed)


class ImageLoader(TfmdDL):
    """A fastai loader that reads whole batches from the image cache and supports weighted sampling and oversampling.

    Sampling uses the loader's generator in the main process and does not depend on the number of workers. Cached images
    for a GPU are read by threads of the main process, without workers.

    Args:
        images: Images of the dataset's files; a dataset with other files is read file by file.
        weights: Sampling weight of each row, for sampling with replacement.
        rows: Row numbers of one epoch before shuffling, for oversampling.
    """

    part: slice | None = None
    """Part of each batch, if several processes share it (training.distributed)."""

    def __init__(
        self,
        dataset: Any = None,
        bs: int = 64,
        images: DeviceImages | None = None,
        weights=None,
        rows=None,
        **options,
    ):
        self.images, self.weights, self.rows = images, weights, rows
        self.n_skipped_batches, self.epoch_indices = 0, []
        self.cache_rows = find_cache_rows(dataset, images and images.cache)
        if rows is not None:
            options["n"] = len(rows)
        super().__init__(dataset, bs=bs, **options)
        if not all(isinstance(transform, FitSquare | ToTensor) for transform in self.after_item.fs):
            self.cache_rows = None  # the user's own item transforms are not in the cached images

    def new(self, dataset: Any = None, cls: type | None = None, **options) -> TfmdDL:
        """Return a loader for another dataset that shows each row once."""
        # learner.export pickles loaders without rows: they must not keep the paths of all images
        has_rows = dataset is None or len(dataset) > 0
        return super().new(dataset, cls, **({"images": self.images if has_rows else None} | options))

    def skip_batches(self, n_batches: int) -> None:
        """Skip the first batches of the next epoch; random numbers continue as after these batches."""
        self.n_skipped_batches = n_batches
        # torch draws a worker seed at the start of each epoch; the interrupted epoch already drew it
        self.fake_l.generator = torch.Generator() if n_batches else None  # pyright: ignore[reportAttributeAccessIssue]

    def batch_indices(self, batch_number: int) -> list[int]:
        """Return the dataset rows of a batch of the current epoch; batches are counted from 0 after skipped ones."""
        return self.epoch_indices[batch_number * self.bs : (batch_number + 1) * self.bs]

    def get_idxs(self) -> list[int]:
        """Return the dataset rows of this epoch in order, without skipped batches."""
        if self.weights is not None:
            indices = self.rng.choices(range(self.n), weights=self.weights, k=self.n)
        else:
            indices: list[Any] = list(super().get_idxs())
            indices = indices if self.rows is None else [self.rows[i] for i in indices]
        self.epoch_indices = indices[self.n_skipped_batches * self.bs :]
        return self.epoch_indices

    def __iter__(self) -> Iterator:
        """Yield the batches of an epoch; worker processes cannot use the GPU, therefore threads read cached images."""
        for transform in self.after_batch.fs:
            if isinstance(transform, RandomAugmentation):
                transform.drawn = self.part and (self.bs, self.part)
        reads_for_gpu = self.cache_rows is not None and self.compute_device.type == "cuda"
        with self.fake_l.no_multiproc() if reads_for_gpu else nullcontext():
            yield from super().__iter__()

    @property
    def compute_device(self) -> torch.device:
        """The device of the batches."""
        return torch.device(self.device or "cpu")

    def create_batches(self, samps: Sequence[int]) -> Iterator:
        """Yield batches of gray uint8 images, shape (n, 1, size, size), and class numbers or targets of findings."""
        if self.cache_rows is None and self.part is None:
            yield from super().create_batches(samps)
            return
        batches = [select_rows(rows, self.part) for rows in cast(Iterator[list[int]], self.chunkify(samps))]
        if self.cache_rows is None:
            yield from (self.do_batch([self.do_item(row) for row in rows]) for rows in batches)
            return
        device = self.compute_device
        targets = [move_async(one, device) for one in self.targets]
        images = cast(DeviceImages, self.images).read_batches((self.cache_rows[rows] for rows in batches), device)
        for rows, pixels in zip(batches, images, strict=True):
            indices = move_async(torch.tensor(rows), device)
            yield TensorImageBW(pixels[:, None]), *(wrap_targets(one[indices]) for one in targets)

    @cached_property
    def targets(self) -> list[torch.Tensor]:
        """The class numbers of all rows, shape (n,), or the targets of findings, (n, k); empty without labels."""
        return [encode_targets(target_list) for target_list in self.dataset.tls[1:]]


def select_rows(rows: list[int], part: slice | None) -> list[int]:
    """Return the part of a batch that this process computes.

    A process without an image of a small batch computes the first one, which gather_rows leaves out.
    """
    return rows if part is None else rows[part] or rows[:1]


def wrap_targets(targets: torch.Tensor) -> TensorBase:
    """Return the targets of a batch as fastai's tensor for class numbers or for findings."""
    return TensorMultiCategory(targets) if is_finding_target(targets) else TensorCategory(targets)


def encode_targets(targets: TfmdLists) -> torch.Tensor:
    """Return all targets of a dataset as a tensor; rows with equal labels are encoded once."""
    reader = targets.tfms.fs[0]
    if isinstance(reader, TargetReader):
        return torch.from_numpy(targets.items[reader.columns].to_numpy(np.float32))
    if not (isinstance(reader, ColReader) and list(reader.cols) == ["label"]):
        return torch.stack([torch.as_tensor(targets[row]) for row in range(len(targets))]).as_subclass(torch.Tensor)
    _, first_rows, codes = np.unique(targets.items["label"].to_numpy(), return_index=True, return_inverse=True)
    distinct = torch.stack([torch.as_tensor(targets[row]) for row in first_rows.tolist()])
    return distinct.as_subclass(torch.Tensor)[torch.from_numpy(codes)]


def find_cache_rows(dataset: Any, image_cache: ImageCache | None) -> np.ndarray | None:
    """Return the image cache rows of the dataset's files, or None if a file is not in the cache."""
    items = getattr(dataset, "items", None)
    if image_cache is None or not isinstance(items, pd.DataFrame) or "file" not in items:
        return None
    return image_cache.find_rows(items["file"])


def make_sampler_options(rows: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
    """Return the ImageLoader options that sample these training rows."""
    if findings := list_findings(rows):
        truth = compute_truth(rows, findings, find_uncertain_policy(recipe))
        return {"weights": weigh_rows(truth)} if recipe.sampler == "weighted" else {}
    labels = rows["label"]
    if recipe.class_weights == "balanced" and (recipe.sampler == "weighted" or recipe.oversample):
        log.warning("rare classes get more weight twice, by `class_weights` and by sampling. Fix: Omit one of them")
    if recipe.sampler == "weighted":
        # reciprocal class counts: all classes are equally likely
        return {"weights": (1 / labels.map(labels.value_counts())).tolist()}
    if recipe.oversample:
        return {"rows": oversample_rows(labels.tolist(), recipe.oversample_factors)}
    return {}  # fastai's shuffling


def oversample_rows(labels: Sequence[str], factors: dict[str, int]) -> list[int]:
    """Return all row numbers, each repeated by the factor of its class (default 1), and log the totals.

    Raises RecipeError if a class has no training image.
    """
    for label in factors:
        if label not in labels:
            known_labels = sorted(set(labels))
            close = get_close_matches(label, known_labels, n=1)
            fix = f"Did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known_labels)}"
            raise RecipeError(f"no training image has the class {label!r} of `oversample`", fix)
    rows = [row for row, label in enumerate(labels) for _ in range(factors.get(label, 1))]
    summary = ", ".join(f"{label} x {factor}" for label, factor in factors.items())
    log.info("oversampling (%s): %d rows per epoch from %d training images", summary, len(rows), len(labels))
    return rows
