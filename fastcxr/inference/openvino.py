"""Convert the network of a classifier to OpenVINO: an optional extra for fast inference on a CPU."""

import copy
import importlib
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastcxr.errors import ModelError
from fastcxr.models.bundle import Classifier, Ensemble
from fastcxr.models.heads import StageFeatureExtractor


class OpenVINONetwork(nn.Module):
    """Network with the same logits from a compiled graph."""

    def __init__(self, network: nn.Module, compiled: Any):
        super().__init__()
        self.network, self.compiled = network, compiled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, size, size) -> (n, k)."""
        return torch.from_numpy(self.compiled([images.contiguous().numpy()])[0])


class OpenVINOFeatureExtractor(StageFeatureExtractor):
    """Network with the same logits, and the same stage features for the OOD detector, from a compiled graph."""

    def __init__(self, network: StageFeatureExtractor, compiled: Any):
        super().__init__(network.network, network.stage_channels)
        self.compiled = compiled

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, size, size) -> (n, k) and (n, all channels of the stages)."""
        outputs = self.compiled([images.contiguous().numpy()])
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])


def model_to_openvino(model: Classifier | Ensemble) -> Classifier | Ensemble:
    """Return the classifier, or the ensemble of classifiers, with compiled networks. Raises ModelError."""
    if isinstance(model, Ensemble):
        return Ensemble(members=tuple(map(to_openvino, model.members)))
    return to_openvino(model)


def to_openvino(classifier: Classifier) -> Classifier:
    """Return the classifier with its network compiled for this CPU in the precision of the classifier.

    Raises:
        ModelError: OpenVINO is not installed, or cannot convert the network.
    """
    openvino = _import_openvino()
    input_spec, detector, network = classifier.input_spec, classifier.ood_detector, classifier.network
    if detector:
        network = StageFeatureExtractor(network, detector.stage_channels)
    network = copy.deepcopy(network).cpu().eval()  # the given network stays on its device
    shape = (len(input_spec.mean), input_spec.image_size, input_spec.image_size)
    try:
        with warnings.catch_warnings():  # tracing makes the image size a constant, as intended
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
            graph = openvino.convert_model(network, example_input=torch.zeros(1, *shape), input=[-1, *shape])
        config = {"INFERENCE_PRECISION_HINT": "bf16" if classifier.precision == "bf16" else "f32"}
        compiled = openvino.Core().compile_model(graph, "CPU", config)
    except Exception as error:  # OpenVINO's errors have no common base class
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"OpenVINO cannot convert this network ({first_line})"
        raise ModelError(problem, "Predict with PyTorch, the default engine", code="E307") from error
    has_features = isinstance(network, StageFeatureExtractor)
    network = OpenVINOFeatureExtractor(network, compiled) if has_features else OpenVINONetwork(network, compiled)
    return replace(classifier, network=network, precision="fp32")  # no autocast by torch


def _import_openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        problem = f"the engine OpenVINO is not installed ({error})"
        raise ModelError(problem, "Run `pip install 'fastcxr[openvino]'`", code="E203") from error
