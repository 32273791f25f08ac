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
from fastai.torch_core import TensorImageBW
from fasttransform import Pipeline
from torch import nn

from fastcxr.data.cache.banks import open_bank
from fastcxr.progress import Progress
from fastcxr.recipe import Recipe
from fastcxr.training.arithmetic import computing
from fastcxr.training.continuing import put_random_state, take_random_state
from fastcxr.training.folding import quicken
from fastcxr.training.heads import DepthHead, head_entries, head_of
from fastcxr.training.loaders import make_augmentation, seed_everything
from fastcxr.training.pixels import normalize

BATCH = 32
View = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Bank:
    """Features of a cohort.

    `features`: shape (views, n, d), on the disk; `row_of`: where a file stands in it. `looks`: of so many views, the
    first ones, an answer is made; those after them are augmented ones, to learn from.
    """

    features: np.ndarray
    row_of: dict[str, int]
    looks: int

    def rows(self, files: list[str]) -> np.ndarray:
        """Where these files stand."""
        return np.array([self.row_of[file] for file in files])


def make_bank(learner: Learner, recipe: Recipe, progress: Progress) -> Bank:
    """The features of every picture of the learner's cohort: as it is and, as the recipe says, mirrored and augmented.

    No label is looked at, so that pictures of all splits may share the pass.
    """
    pictures = learner.dls.pictures
    looks = 2 if recipe.mirror_images else 1
    shape = (looks + recipe.augmented_views, len(pictures.files), head_of(learner.model).linear.in_features)
    with open_bank(name_bank(learner, recipe), shape) as (features, is_new):
        if is_new:
            with progress.bar(shape[0] * shape[1], "looking at images") as bar, drawing_from(recipe.seed):
                fill_bank(features, learner, make_views(learner, recipe), bar)
    return Bank(features, {file: row for row, file in enumerate(pictures.files)}, looks)


def make_views(learner: Learner, recipe: Recipe) -> list[View]:
    """What is made of gray bytes, shape (n, 1, size, size), for each view of the bank."""
    augment = Pipeline(make_augmentation(recipe.augment, learner.dls.pixels.image_size), split_idx=0)

    def move(squares: torch.Tensor) -> torch.Tensor:
        return 255 * augment(TensorImageBW(squares.float() / 255)).as_subclass(torch.Tensor)

    mirrored = [lambda squares: squares.flip(3)] if recipe.mirror_images else []
    return [lambda squares: squares, *mirrored, *[move] * recipe.augmented_views]


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
        (recipe.augmented_views, recipe.augment, recipe.seed) if recipe.augmented_views else "as they are",
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


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Inside, random numbers begin at `seed`; after it they go on as if none had been drawn, bank kept or not."""
    state = take_random_state()
    seed_everything(seed)
    try:
        yield
    finally:
        put_random_state(state)


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
