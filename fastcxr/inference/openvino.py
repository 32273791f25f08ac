"""A classifier's network as a graph that OpenVINO runs: an optional extra, for many images on a CPU."""

import importlib
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastcxr.errors import ModelError
from fastcxr.models.bundle import Classifier
from fastcxr.models.heads import StageFeatureExtractor


class OpenVINONetwork(nn.Module):
    """Stands where the network stood: the same logits from a compiled graph."""

    def __init__(self, network: nn.Module, compiled: Any):
        super().__init__()
        self.network, self.compiled = network, compiled

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, channels, size, size) -> (n, k)."""
        return torch.from_numpy(self.compiled([images.contiguous().numpy()])[0])


class OpenVINOFeatureExtractor(StageFeatureExtractor):
    """Replace the network for the OOD detector: the features of its stages come from the compiled graph too."""

    def __init__(self, network: StageFeatureExtractor, compiled: Any):
        super().__init__(network.network, network.stage_channels)
        self.compiled = compiled

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, channels, size, size) -> (n, k) and (n, all channels of the stages)."""
        outputs = self.compiled([images.contiguous().numpy()])
        return torch.from_numpy(outputs[0]), torch.from_numpy(outputs[1])


def to_openvino(classifier: Classifier) -> Classifier:
    """The same classifier, its network compiled for this CPU in the classifier's own precision.

    Raises ModelError where OpenVINO is not installed, or cannot convert the network.
    """
    openvino = _import_openvino()
    input_spec, detector = classifier.input_spec, classifier.ood_detector
    network = (
        (StageFeatureExtractor(classifier.network, detector.stage_channels) if detector else classifier.network)
        .cpu()
        .eval()
    )
    shape = (len(input_spec.mean), input_spec.image_size, input_spec.image_size)
    try:
        with warnings.catch_warnings():  # a traced size is a constant, and is meant to be one
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            graph = openvino.convert_model(network, example_input=torch.zeros(1, *shape), input=[-1, *shape])
        config = {"INFERENCE_PRECISION_HINT": "bf16" if classifier.precision == "bf16" else "f32"}
        compiled = openvino.Core().compile_model(graph, "CPU", config)
    except Exception as error:  # its own errors have no common kind
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"OpenVINO cannot convert this network ({first_line})", "Leave --engine out", code="E307"
        ) from error
    graph = (OpenVINOFeatureExtractor if detector else OpenVINONetwork)(network, compiled)
    return replace(classifier, network=graph, precision="fp32")  # torch has nothing left to cast


def _import_openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ModelError(
            f"--engine openvino needs OpenVINO ({error})", "Run `pip install 'fastcxr[openvino]'`", code="E203"
        ) from error
