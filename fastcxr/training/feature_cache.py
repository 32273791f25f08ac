"""Cache the head inputs of a frozen backbone on disk, shared by folds, variants and later runs."""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.features import open_feature_array
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.fitting_batches import FittingBatches, choose_batch_size
from fastcxr.models.heads import MultiScaleHead, find_head, find_head_state_keys
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.models.state import hash_weights
from fastcxr.progress.base import Bar, Progress


@dataclass(frozen=True)
class FeatureCache:
    """Features of a dataset.

    Attributes:
        features: Memory-mapped array, shape (views, n, d). View 0 is the image, view 1 the flipped image.
        row_by_file: Row of each file.
        hflip_tta: Whether there is a view of the flipped images.
    """

    features: np.ndarray
    row_by_file: dict[str, int]
    hflip_tta: bool

    def find_rows(self, files: Sequence[str]) -> np.ndarray:
        """Return the rows of these files."""
        return np.array([self.row_by_file[file] for file in files])


def make_feature_cache(learner: Learner, recipe: Recipe, progress: Progress) -> FeatureCache:
    """Read or compute the features of all images of the learner's dataset, and of the flipped ones with `hflip_tta`.

    No label is used: images of all splits may share the pass.
    """
    files = learner.dls.fastcxr.image_cache.files
    shape = (1 + recipe.hflip_tta, len(files), find_multi_scale_head(learner).linear.in_features)
    with open_feature_array(make_cache_key(learner, recipe), shape) as (features, is_new):
        if is_new:
            with progress.bar(shape[0] * shape[1], "computing features") as bar:
                fill_feature_cache(features, learner, bar)
    return FeatureCache(features, {file: row for row, file in enumerate(files)}, recipe.hflip_tta)


def find_multi_scale_head(learner: Learner) -> MultiScaleHead:
    """Return the head of a learner whose recipe uses cached features."""
    return cast(MultiScaleHead, find_head(cast(nn.Module, learner.model)))


def make_cache_key(learner: Learner, recipe: Recipe) -> str:
    """Return a name that changes with the backbone weights, the pixels and the preprocessing."""
    digest = hashlib.sha256(hash_backbone(learner))
    loaders_state = learner.dls.fastcxr
    image_cache, input_spec, device_type = loaders_state.image_cache, loaders_state.input_spec, learner.dls.device.type
    key_parts = recipe.backbone, input_spec, learner.fastcxr.precision, recipe.hflip_tta, device_type, "joined"
    # pixel checksums and not slots, which change when the image cache is rebuilt; without checksums the name is random
    image_hashes = image_cache.locations[:, 1].tobytes() if image_cache.mapped else uuid.uuid4().bytes
    digest.update(repr(key_parts).encode() + image_hashes)
    digest.update("\n".join(image_cache.files).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def hash_backbone(learner: Learner) -> bytes:
    """Return a checksum of all weights except those of the head."""
    network = cast(nn.Module, learner.model)
    return hash_weights(network, find_head_state_keys(network))


@torch.no_grad()  # inference mode would leave inference tensors in the network, which cannot be trained later
def fill_feature_cache(features: np.ndarray, learner: Learner, bar: Bar) -> None:
    """Compute the features of all images, shape (views, n, d), in the order of the image cache."""
    state, precision, device = learner.dls.fastcxr, learner.fastcxr.precision, learner.dls.device
    network = fuse_for_inference(cast(nn.Module, learner.model), state.input_spec, precision)

    def fill_rows(rows: slice) -> int:
        images = state.images.read(range(rows.start, rows.stop), device)[:, None]
        for view in range(len(features)):
            batch = normalize(images.flip(3) if view else images, state.input_spec)
            with autocast(precision, device):
                features[view, rows] = network(batch).float().cpu().numpy()
        return len(features) * len(images)

    with output_head_features(cast(MultiScaleHead, find_head(network))):
        for n_passes in FittingBatches(choose_batch_size(device)).compute(fill_rows, len(state.image_cache.files)):
            bar.advance(n_passes)


@contextmanager
def output_head_features(head: MultiScaleHead) -> Iterator[None]:
    """Make the network return its head's input features instead of logits in this block."""
    head.forward = head.gather_features
    try:
        yield
    finally:
        del head.forward
