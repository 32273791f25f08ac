"""A frozen network looks at each picture once, and what its head would see is kept.

The bank of a cohort lies in the user's cache folder, so all folds, variants and later runs of one body share one pass.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.features import open_feature_array
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.heads import MultiScaleHead, find_head, find_head_state_keys
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.progress.base import Progress

BATCH_SIZE = 32
ViewTransform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FeatureBank:
    """Features of a cohort.

    `features`: shape (views, n, d), on the disk; `row_by_file`: row of a file. `hflip_tta`: whether there is a second
    view, of the mirror images.
    """

    features: np.ndarray
    row_by_file: dict[str, int]
    hflip_tta: bool

    def find_rows(self, files: list[str]) -> np.ndarray:
        """Where these files stand."""
        return np.array([self.row_by_file[file] for file in files])


def make_feature_bank(learner: Learner, recipe: Recipe, progress: Progress) -> FeatureBank:
    """The features of every picture of the learner's cohort: as it is and, if the recipe says so, mirrored.

    No label is looked at, so that pictures of all splits may share the pass.
    """
    image_cache = learner.dls.fastcxr.image_cache
    views = make_views(recipe)
    shape = (len(views), len(image_cache.files), find_head(learner.model).linear.in_features)
    with open_feature_array(make_bank_key(learner, recipe), shape) as (features, is_new):
        if is_new:
            with progress.bar(shape[0] * shape[1], "looking at images") as bar:
                fill_feature_bank(features, learner, views, bar)
    return FeatureBank(features, {file: row for row, file in enumerate(image_cache.files)}, recipe.hflip_tta)


def make_views(recipe: Recipe) -> list[ViewTransform]:
    """What is made of gray bytes, shape (n, 1, size, size), for each view of the bank."""
    mirror_transforms = [lambda images: images.flip(3)] if recipe.hflip_tta else []
    return [lambda images: images, *mirror_transforms]


def make_bank_key(learner: Learner, recipe: Recipe) -> str:
    """A name that changes with the body's weights, the pictures, and all that stands between them."""
    digest = hashlib.sha256(hash_backbone(learner.model))
    image_cache = learner.dls.fastcxr.image_cache
    key_parts = (
        recipe.backbone,
        learner.dls.fastcxr.input_spec,
        learner.fastcxr.precision,
        recipe.hflip_tta,
        learner.dls.device.type,
        "joined",
    )
    # checksums of the squares, not their slots, which change where the store begins anew; without any there is no name
    image_hashes = image_cache.locations[:, 1].tobytes() if image_cache.mapped else uuid.uuid4().bytes
    digest.update(repr(key_parts).encode() + image_hashes)
    digest.update("\n".join(image_cache.files).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def hash_backbone(network: nn.Module) -> bytes:
    """A checksum of all weights but the head's."""
    digest, head_keys = hashlib.sha256(), find_head_state_keys(network)
    for name, tensor in network.state_dict().items():
        if name not in head_keys:
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


@torch.no_grad()  # inference tensors would stay in the network, which is to learn later
def fill_feature_bank(features: np.ndarray, learner: Learner, views: list[ViewTransform], bar) -> None:
    """One pass of the network over all pictures, in the order of the bank."""
    image_cache, device = learner.dls.fastcxr.image_cache, learner.dls.device
    network = fuse_for_inference(learner.model, learner.dls.fastcxr.input_spec, learner.fastcxr.precision)
    with output_head_features(find_head(network)):
        for start in range(0, len(image_cache.files), BATCH_SIZE):
            rows = range(start, min(start + BATCH_SIZE, len(image_cache.files)))
            images = torch.from_numpy(image_cache.read(rows)).to(device)[:, None]
            for view, transform in enumerate(views):
                batch = normalize(transform(images), learner.dls.fastcxr.input_spec)
                with autocast(learner.fastcxr.precision, device):
                    features[view, start : rows.stop] = network(batch).float().cpu().numpy()
                bar.advance(len(rows))


@contextmanager
def output_head_features(head: MultiScaleHead) -> Iterator[None]:
    """Inside, the network answers with what its head sees."""
    head.forward = head.gather_features
    try:
        yield
    finally:
        del head.forward
