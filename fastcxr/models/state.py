"""What fastcxr knows of fastai's DataLoaders and Learner beyond fastai: one declared value on each, `.fastcxr`.

make_loaders and make_learner set them; everything below and above training reads them from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastcxr.data.cache.images import ImageCache
from fastcxr.errors import ModelError
from fastcxr.models.ood import OODDetector
from fastcxr.models.preprocessing import InputSpec

if TYPE_CHECKING:  # fastai takes seconds to import
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner


@dataclass(kw_only=True)
class LoadersState:
    """`loaders.fastcxr`, set by make_loaders."""

    input_spec: InputSpec
    """Size and normalization of the images that the network gets."""
    manifest: pd.DataFrame
    """The whole manifest with bit depths, rows of the test split included."""
    image_cache: ImageCache
    """The decoded images of the manifest, row by row."""


@dataclass(kw_only=True)
class LearnerState:
    """`learner.fastcxr`, set by make_learner and completed by train."""

    precision: str = "fp32"
    """Arithmetic of the network: fp32 or bf16."""
    backbone: Mapping[str, Any] | None = None
    """What model.json says of the backbone and of the weights that training begins with."""
    temporary_dir: TemporaryDirectory | None = None
    """The folder in which fastai keeps weights for a while; it is removed with the learner."""
    fitted_probe: Any = None
    """A head fitted on a feature bank (training.linear_probe.FittedProbe); None where there is none."""
    ood_detector: OODDetector | None = None
    """Finds images unlike the training images; None before training, and where none could be fitted."""


def get_loaders_state(loaders: "DataLoaders") -> LoadersState:
    """Return the state of loaders that make_loaders made. Raises ModelError for others."""
    try:
        return loaders.fastcxr
    except AttributeError:
        fix = "Make them with make_loaders, or set loaders.fastcxr to a fastcxr.models.state.LoadersState"
        raise ModelError("these DataLoaders lack the state that make_loaders sets", fix) from None


def get_learner_state(learner: "Learner") -> LearnerState:
    """Return the state of a Learner that make_learner made. Raises ModelError for others."""
    try:
        return learner.fastcxr
    except AttributeError:
        fix = "Make it with make_learner, or set learner.fastcxr to a fastcxr.models.state.LearnerState"
        raise ModelError("this Learner lacks the state that make_learner sets", fix) from None


def find_learner_state(learner: "Learner") -> LearnerState:
    """Return the state of a Learner; of one made without make_learner, that of full precision and nothing fitted."""
    try:
        return learner.fastcxr
    except AttributeError:
        return LearnerState()
