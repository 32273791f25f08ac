"""Check DataLoaders that the user made with fastai's own DataBlock or ImageDataLoaders."""

import logging
from collections.abc import Sequence

import torch
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError
from fastcxr.models.backbones import Backbone
from fastcxr.models.encoders import find_image_size
from fastcxr.training.finding_targets import is_finding_target

log = logging.getLogger("fastcxr")


def validate_own_loaders(loaders: DataLoaders, backbone: Backbone, recipe: Recipe) -> None:
    """Read a batch. Raise DataError if it does not fit the network; warn if it is not normalized."""
    if not len(loaders.train):
        problem = f"the training loader has no batch: {len(loaders.train_ds)} images, batch size {loaders.train.bs}"
        raise DataError(problem, "Pass a smaller batch size, as bs=8")
    batch = loaders.one_batch()
    _validate_labels(batch)
    image_size = find_image_size(recipe)
    shape, expected_shape = tuple(batch[0].shape[1:]), (len(backbone.mean), image_size, image_size)
    if shape != expected_shape:
        problem = f"the images of a batch have the shape {shape}, the network of the recipe expects {expected_shape}"
        fix = f"Pass ImageBlock() for three channels and item_tfms=Resize({image_size}), or change image_size"
        raise DataError(problem, f"{fix} of the recipe")
    if recipe.weights != "none" and not any(isinstance(step, Normalize) for step in loaders.train.after_batch.fs):
        mean, std = (tuple(round(value, 3) for value in values) for values in (backbone.mean, backbone.std))
        log.warning(
            "the DataLoaders do not normalize, but the pretrained weights expect it. "
            "Fix: Add Normalize.from_stats(%s, %s) to batch_tfms", mean, std,
        )  # fmt: skip


def _validate_labels(batch: Sequence[torch.Tensor]) -> None:
    """Raise DataError unless a batch has images and one class number, or one number per finding, for each of them."""
    labels = batch[1] if len(batch) == 2 else None
    if labels is not None and is_finding_target(labels):
        return
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        found = f"{len(batch)} parts" if labels is None else f"labels of shape {tuple(labels.shape)} ({labels.dtype})"
        problem = f"a batch has {found}, expected images and one class number per image"
        fix = "Pass blocks=(ImageBlock, CategoryBlock), or for findings MultiCategoryBlock(encoded=True)"
        raise DataError(problem, fix)
