"""State that make_loaders and make_learner attach to fastai's DataLoaders and Learner as the attribute `fastcxr`."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.findings import is_multi_label
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.models.device_images import DeviceImages
from fastcxr.models.ood import OODDetector
from fastcxr.models.preprocessing import InputSpec

if TYPE_CHECKING:  # fastai takes seconds to import
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner


@dataclass(kw_only=True)
class LoadersState:
    """`loaders.fastcxr`, set by make_loaders and by the DataBlock of make_datablock."""

    input_spec: InputSpec
    """Image size and normalization of the network's input."""
    manifest: pd.DataFrame
    """The whole manifest with bit depths, rows of the test split included."""
    image_cache: ImageCache | None
    """The decoded images in the order of the manifest; None for a model loaded without its images."""
    recipe: Recipe | None = None
    """The recipe that make_loaders received; None in a state that the caller made."""
    batch_size: int | None = None
    """The size for `batch_size="auto"`; None before train has chosen it."""
    images: DeviceImages | None = field(init=False)
    """The images of the image cache on the device of the loaders, which all loaders and passes share."""

    @property
    def task(self) -> str:
        """Whether an image has one class (single_label) or several findings (multi_label)."""
        return MULTI_LABEL if is_multi_label(self.manifest) else SINGLE_LABEL

    def __post_init__(self):
        self.images = None if self.image_cache is None else DeviceImages(self.image_cache)


@dataclass(kw_only=True)
class LearnerState:
    """`learner.fastcxr`, set by make_learner and completed by train."""

    precision: str = "fp32"
    """Precision of the forward pass in training and inference: fp32, fp16 or bf16."""
    backbone: Mapping[str, Any] | None = None
    """Entry `backbone` of model.json: the network and its initial weights."""
    temporary_dir: TemporaryDirectory | None = None
    """Folder in which fastai saves weights during training; removed with the learner."""
    fitted_probe: Any = None
    """Head fitted on cached features (training.linear_probe.FittedProbe), or None."""
    ood_detector: OODDetector | None = None
    """Out-of-distribution detector; None before training, and if it could not be fitted."""
    fitted_weights: bytes | None = None
    """Checksum of the weights for which `fitted_probe` and `ood_detector` were fitted; None: not checked."""
    fitted_splits: tuple[str, ...] = ("train",)
    """Splits of the images that the weights were fitted on."""
    recipe: Recipe | None = None
    """The recipe that make_learner received."""
    training_recipe: Recipe | None = None
    """The recipe of the last training with train; None before it."""

    def __getstate__(self) -> dict[str, Any]:
        # learner.export: the features have the paths of all images, and the folder belongs to this process
        return vars(self) | {"temporary_dir": None, "fitted_probe": None}


def get_loaders_state(loaders: "DataLoaders") -> LoadersState:
    """Return the state that make_loaders or make_datablock set. Raise ModelError for other loaders."""
    try:
        return loaders.fastcxr
    except AttributeError:
        problem = "the preprocessing of these DataLoaders is not known, so fastcxr cannot repeat it for other images"
        fix = (
            "Make them with make_loaders, or make_datablock(manifest, recipe).dataloaders(); or call fastai's get_preds"
        )
        raise ModelError(problem, fix) from None


def require_images(loaders: "DataLoaders") -> LoadersState:
    """Return the state of loaders that have images. Raise InputMissingError for a model loaded without its images."""
    state = get_loaders_state(loaders)
    if state.image_cache is None:
        raise make_no_images_error()
    return state


def make_no_images_error() -> InputMissingError:
    """Return the error for training or evaluation of a model that was loaded without its images."""
    fix = "Pass `data=FOLDER` to load_learner_from_run"
    return InputMissingError("this learner has no images, because it was loaded without the data of its run", fix)


def get_learner_state(learner: "Learner") -> LearnerState:
    """Return the state that make_learner set. Raise ModelError for other Learners."""
    try:
        return learner.fastcxr
    except AttributeError:
        fix = "Make it with make_learner, or set learner.fastcxr to a fastcxr.models.state.LearnerState"
        raise ModelError("this Learner lacks the state that make_learner sets", fix) from None


def find_learner_state(learner: "Learner") -> LearnerState:
    """Return the state that make_learner set, or the default state (float32, nothing fitted) for other Learners.

    Without fitted head and OOD detector if the weights changed after the fit: both describe features of other weights.
    """
    state = getattr(learner, "fastcxr", LearnerState())
    if state.fitted_weights is None:  # the hash of a large network takes long
        return state
    return _drop_stale_fits(state, hash_weights(cast(nn.Module, learner.model)))


def set_fitted_state(learner: "Learner", **fitted: Any) -> None:
    """Set fields of the state that were fitted for the current weights, and drop those fitted for other weights."""
    state, weights = get_learner_state(learner), hash_weights(cast(nn.Module, learner.model))
    vars(state).update(vars(_drop_stale_fits(state, weights)) | fitted | {"fitted_weights": weights})


def _drop_stale_fits(state: LearnerState, weights: bytes) -> LearnerState:
    """Return the state without what was fitted for other weights; `weights`: hash of those of the network."""
    is_current = state.fitted_weights in (None, weights)
    return state if is_current else replace(state, fitted_probe=None, ood_detector=None)


def hash_weights(network: nn.Module, excluded: Collection[str] = ()) -> bytes:
    """Return a checksum of the weights and buffers of a network, without the state dict keys `excluded`."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if name not in excluded:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()
