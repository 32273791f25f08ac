"""Cache the head inputs of a frozen backbone on disk, shared by folds, variants and later runs."""

import hashlib
import logging
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.features import FeatureArray, open_feature_array
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.device_images import DeviceImages
from fastcxr.models.fitting_batches import FittingBatches, choose_batch_size
from fastcxr.models.heads import MultiScaleHead, find_head, find_head_state_keys
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.models.state import hash_weights
from fastcxr.progress.base import Bar, Progress
from fastcxr.training.processes import compute_row_blocks, decide

log = logging.getLogger("fastcxr")
VIEWS = "images", "flipped images"


@dataclass(frozen=True)
class FeatureCache:
    """Features of a dataset.

    Attributes:
        features: Memory-mapped array of each view, shape (n, d). View 0 is the image, view 1 the flipped image.
        row_by_file: Row of each file.
        hflip_tta: Whether there is a view of the flipped images.
    """

    features: Sequence[np.ndarray]
    row_by_file: Mapping[str, int]
    hflip_tta: bool

    def find_rows(self, files: Sequence[str]) -> np.ndarray:
        """Return the rows of these files."""
        return np.fromiter(map(self.row_by_file.__getitem__, files), np.int64)


@dataclass(frozen=True, kw_only=True)
class FrozenNetwork:
    """A network, and the images whose features it computes: the inputs of its head.

    Attributes:
        network: the network on its device.
        backbone: library and name of the backbone.
        images: decoded images.
        input_spec: size and normalization of the images.
        precision: "fp32", "fp16" or "bf16".
    """

    network: nn.Module
    backbone: str
    images: DeviceImages
    input_spec: InputSpec
    precision: str

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the images."""
        return self.images.cache.files

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    @property
    def n_stage_features(self) -> int:
        """Number of features of the stages, which precede those of the last layer."""
        head = find_head(self.network)
        return sum(head.channels) if isinstance(head, MultiScaleHead) else 0


def make_feature_cache(learner: Learner, recipe: Recipe, progress: Progress) -> FeatureCache:
    """Read or compute the features of all images of the learner's dataset, and of the flipped ones with `hflip_tta`.

    No label is used: images of all splits may share the pass.
    """
    return compute_features(find_frozen_network(learner), progress, hflip_tta=recipe.hflip_tta)


def find_frozen_network(learner: Learner) -> FrozenNetwork:
    """Return the network and the images of a learner whose recipe uses cached features."""
    state, backbone = learner.dls.fastcxr, "{library}:{name}".format(**learner.fastcxr.backbone)
    return FrozenNetwork(
        network=cast(nn.Module, learner.model), backbone=backbone, images=state.images,
        input_spec=state.input_spec, precision=learner.fastcxr.precision,
    )  # fmt: skip


def compute_features(frozen: FrozenNetwork, progress: Progress, *, hflip_tta: bool = False) -> FeatureCache:
    """Read or compute the features of all images, and of the flipped ones with `hflip_tta`.

    Each view has its own array in the feature cache. Rows that an interrupted run finished are not computed again.
    """
    key, files, views = make_cache_key(frozen), frozen.files, VIEWS[: 1 + hflip_tta]
    shape, arrays = (len(files), count_features(find_head(frozen.network))), []
    with ExitStack() as stack:
        for view in views:
            in_use = [array.path for array in arrays if array.path]
            arrays.append(stack.enter_context(open_feature_array(_name_view(key, view), shape, in_use)))
            if done := _describe_finished(arrays[-1], view):
                log.info("an interrupted run has computed the features of %s: continuing after them", done)
        decide([array.n_finished for array in arrays])  # see compute_for_main
        if not all(array.is_complete for array in arrays):
            try:
                with progress.bar(len(views) * len(files), "computing features") as bar:
                    fill_feature_cache(arrays, frozen, bar)
            except KeyboardInterrupt as interrupt:
                done = [_describe_finished(array, view) for array, view in zip(arrays, views, strict=True)]
                if all(array.is_kept for array in arrays if not array.is_complete) and any(done):
                    interrupt.add_note(f"{next(filter(None, done))} are done")
                raise
    return FeatureCache(tuple(array.values for array in arrays), frozen.images.cache.row_by_file, hflip_tta)


def _describe_finished(array: FeatureArray, view: str) -> str | None:
    """Describe how many images of an array are computed, or return None if none or all are."""
    n_images = len(array.values)
    return f"{array.n_finished:,} of {n_images:,} {view}" if 0 < array.n_finished < n_images else None


def _name_view(key: str, view: str) -> str:
    return f"{key}-{view.replace(' ', '-')}"


def find_multi_scale_head(learner: Learner) -> MultiScaleHead:
    """Return the head of a learner whose recipe uses cached features."""
    return cast(MultiScaleHead, find_head(cast(nn.Module, learner.model)))


def make_cache_key(frozen: FrozenNetwork) -> str:
    """Return a name that changes with the backbone weights, the pixels and the preprocessing."""
    digest, image_cache = hashlib.sha256(hash_backbone(frozen.network)), frozen.images.cache
    features = "joined" if isinstance(find_head(frozen.network), MultiScaleHead) else "last layer"
    key_parts = frozen.backbone, frozen.input_spec, frozen.precision, frozen.device.type, features
    # pixel checksums and not slots, which change when the image cache is rebuilt; without checksums the name is random
    image_hashes = image_cache.locations[:, 1].tobytes() if image_cache.mapped else uuid.uuid4().bytes
    digest.update(repr(key_parts).encode() + image_hashes)
    digest.update("\n".join(frozen.files).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def hash_backbone(network: nn.Module) -> bytes:
    """Return a checksum of all weights except those of the head."""
    return hash_weights(network, find_head_state_keys(network))


def fill_feature_cache(arrays: Sequence[FeatureArray], frozen: FrozenNetwork, bar: Bar) -> None:
    """Compute the missing rows of the array of each view, in the order of the image cache."""
    bar.advance(sum(array.n_finished for array in arrays))  # the rate of a bar starts after its first step
    with closing(compute_views(frozen, [array.n_finished for array in arrays])) as computed:
        for view, rows, values in computed:
            array = arrays[view]
            array.values[rows] = values
            bar.advance(rows.stop - array.n_finished)
            array.finish_rows(rows.stop)


def compute_for_main(frozen: FrozenNetwork) -> None:
    """Compute the share of this process in the features that the main process has not cached."""
    with closing(compute_views(frozen, decide([]))) as computed:
        for _ in computed:
            pass  # the main process receives them


@torch.no_grad()  # inference mode would leave inference tensors in the network, which cannot be trained later
def compute_views(frozen: FrozenNetwork, first_rows: Sequence[int]) -> Generator[tuple[int, slice, np.ndarray]]:
    """Yield view, rows and features, of each view from its first row; of several processes, only in the main one."""
    network = fuse_for_inference(frozen.network, frozen.input_spec, frozen.precision)
    batches, n_images = FittingBatches(choose_batch_size(frozen.device)), len(frozen.files)
    n_features = count_features(find_head(network))

    def compute_rows(rows: slice, *, is_flipped: bool) -> tuple[slice, np.ndarray]:
        images = frozen.images.read(range(rows.start, rows.stop), frozen.device)[:, None]
        batch = normalize(images.flip(3) if is_flipped else images, frozen.input_spec)
        with autocast(frozen.precision, frozen.device):
            return rows, network(batch).float().flatten(1).cpu().numpy()

    with output_head_features(find_head(network)):
        for view, first_row in enumerate(first_rows):
            compute = partial(batches.compute, partial(compute_rows, is_flipped=view == 1))
            for rows, values in compute_row_blocks(compute, slice(first_row, n_images), n_features):
                yield view, rows, values


@contextmanager
def output_head_features(head: nn.Module) -> Iterator[None]:
    """Make the network return its head's input features instead of logits in this block; `head`: see find_head."""
    modules = list(head) if isinstance(head, nn.ModuleList) else [head]  # a distilled network returns their mean
    for module in modules:
        module.forward = module.gather_features if isinstance(module, MultiScaleHead) else _to_float32
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _to_float32(last_features: torch.Tensor) -> torch.Tensor:
    return last_features.float()


def count_features(head: nn.Module) -> int:
    """Return the number of features that a head receives."""
    layers = (module for module in head.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    first = next(layers)
    return first.in_features if isinstance(first, nn.Linear) else first.in_channels
