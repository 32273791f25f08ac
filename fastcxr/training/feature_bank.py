"""A frozen network looks at each picture once, and what its head would see is kept.

The bank of a cohort lies in the user's cache folder, so all folds, arms and later runs of one body share one pass.
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
from fastcxr.data.cache.features import open_bank
from fastcxr.models.cpu_fusion import quicken
from fastcxr.models.heads import DepthHead, head_entries, head_of
from fastcxr.models.precision import computing
from fastcxr.models.preprocessing import normalize
from fastcxr.progress.base import Progress

BATCH = 32
View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Bank:
    """Features of a cohort.

    `features`: shape (views, n, d), on the disk; `row_of`: row of a file. `mirror_images`: whether there is a second
    view, of the mirror images.
    """

    features: np.ndarray
    row_of: dict[str, int]
    mirror_images: bool

    def rows(self, files: list[str]) -> np.ndarray:
        """Where these files stand."""
        return np.array([self.row_of[file] for file in files])


def make_bank(learner: Learner, recipe: Recipe, progress: Progress) -> Bank:
    """The features of every picture of the learner's cohort: as it is and, if the recipe says so, mirrored.

    No label is looked at, so that pictures of all splits may share the pass.
    """
    pictures = learner.dls.pictures
    views = make_views(recipe)
    shape = (len(views), len(pictures.files), head_of(learner.model).linear.in_features)
    with open_bank(name_bank(learner, recipe), shape) as (features, is_new):
        if is_new:
            with progress.bar(shape[0] * shape[1], "looking at images") as bar:
                fill_bank(features, learner, views, bar)
    return Bank(features, {file: row for row, file in enumerate(pictures.files)}, recipe.mirror_images)


def make_views(recipe: Recipe) -> list[View]:
    """What is made of gray bytes, shape (n, 1, size, size), for each view of the bank."""
    mirrored = [lambda squares: squares.flip(3)] if recipe.mirror_images else []
    return [lambda squares: squares, *mirrored]


def name_bank(learner: Learner, recipe: Recipe) -> str:
    """A name that changes with the body's weights, the pictures, and all that stands between them."""
    digest = hashlib.sha256(hash_body(learner.model))
    pictures = learner.dls.pictures
    facts = (
        recipe.backbone,
        learner.dls.pixels,
        learner.precision,
        recipe.mirror_images,
        learner.dls.device.type,
        "joined",
    )
    # checksums of the squares, not their slots, which change where the store begins anew; without any there is no name
    seen = pictures.places[:, 1].tobytes() if pictures.slots else uuid.uuid4().bytes
    digest.update(repr(facts).encode() + seen)
    digest.update("\n".join(pictures.files).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def hash_body(network: nn.Module) -> bytes:
    """A checksum of all weights but the head's."""
    digest, head = hashlib.sha256(), head_entries(network)
    for name, tensor in network.state_dict().items():
        if name not in head:
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


@torch.no_grad()  # inference tensors would stay in the network, which is to learn later
def fill_bank(features: np.ndarray, learner: Learner, views: list[View], bar) -> None:
    """One pass of the network over all pictures, in the order of the bank."""
    pictures, device = learner.dls.pictures, learner.dls.device
    network = quicken(learner.model, learner.dls.pixels, learner.precision)
    with giving_features(head_of(network)):
        for start in range(0, len(pictures.files), BATCH):
            rows = range(start, min(start + BATCH, len(pictures.files)))
            squares = torch.from_numpy(pictures.read(rows)).to(device)[:, None]
            for view, look in enumerate(views):
                batch = normalize(look(squares), learner.dls.pixels)
                with computing(learner.precision, device):
                    features[view, start : rows.stop] = network(batch).float().cpu().numpy()
                bar.advance(len(rows))


@contextmanager
def giving_features(head: DepthHead) -> Iterator[None]:
    """Inside, the network answers with what its head sees."""
    head.forward = head.gather
    try:
        yield
    finally:
        del head.forward
