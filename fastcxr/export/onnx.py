"""Write a classifier or an ensemble as one ONNX file, from gray bytes to calibrated probabilities and OOD scores."""

import importlib
import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from fastcxr.errors import ModelError
from fastcxr.export.export_json import INPUT_NAME, ONNX_FILE, OOD_NAME, PROBABILITY_NAME, WARNING
from fastcxr.export.graph import ModelGraph
from fastcxr.io.files import compute_sha256
from fastcxr.io.packages import require_packages
from fastcxr.models.bundle import Classifier, Ensemble
from fastcxr.version import VERSION

log = logging.getLogger("fastcxr")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20  # the default of torch.onnx; onnxruntime has it since 1.17, its build for web pages too
MAX_FILE_BYTES = 1_500_000_000  # above it the weights are a second file: a protobuf message holds at most 2 GB
DYNAMIC_AXIS = "n"  # the number of images
N_TRACED_IMAGES = 2  # torch.export makes a number of images a constant if it is 1
RESIZING = (
    "8-bit gray image, resized with Pillow's antialiased bilinear filter so that its longer side has the image size, "
    "centred on a black square, without cropping"
)


def write_onnx(model: Classifier | Ensemble, folder: Path) -> dict[str, Any]:
    """Write model.onnx into a folder, and return what export.json states about it.

    The graph computes in float32. If the OOD score cannot be converted, the file has none, and a warning states it.

    Returns:
        The entries target, has_ood_detector, input, outputs, opset, files, versions and notices of export.json.

    Raises:
        ModelError: the network cannot be converted, or a package is missing.
    """
    require_packages(ONNX_PACKAGES, "an export to ONNX")
    program, has_ood, notices = _convert(model)
    _describe_in_file(program.model, model)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _list_tensors(model))
    program.save(folder / ONNX_FILE, external_data=n_bytes > MAX_FILE_BYTES)
    size, n_labels = model.input_spec.image_size, len(model.labels)
    outputs = {PROBABILITY_NAME: {"dtype": "float32", "shape": ["n", n_labels], "values": "calibrated, of each label"}}
    if has_ood:
        values = "above 1: the image is out of distribution, and its probabilities are not to be used"
        outputs[OOD_NAME] = {"dtype": "float32", "shape": ["n"], "values": values}
    return {
        "target": "onnx",
        "has_ood_detector": has_ood,
        "input": {"name": INPUT_NAME, "dtype": "uint8", "shape": ["n", size, size], "resizing": RESIZING},
        "outputs": outputs,
        "opset": OPSET,
        "files": {path.name: compute_sha256(path) for path in sorted(folder.glob(f"{ONNX_FILE}*"))},
        "versions": {name: importlib.import_module(name).__version__ for name in ("torch", *ONNX_PACKAGES)},
        "notices": notices,
    }


def _convert(model: Classifier | Ensemble) -> tuple[Any, bool, list[dict[str, str]]]:
    """Return the ONNX program, whether it has an OOD score, and a notice if the model has one and the program not."""
    try:
        return _trace(ModelGraph(model, with_ood=True)), model.has_ood_detector, []
    except ModelError as error:
        if not model.has_ood_detector:
            raise
        program = _trace(ModelGraph(model, with_ood=False))
        log.warning("the export has no OOD score (%s): every image gets a class", error.problem)
        text = "The OOD score of the model cannot be converted to ONNX: images unlike the training images get a class"
        return program, False, [{"level": "warning", "title": "No out-of-distribution (OOD) score", "text": text}]


@torch.no_grad()
def _trace(graph: ModelGraph) -> Any:
    """Return the ONNX program of a module. Raises ModelError if torch cannot convert it."""
    size = graph.image_size
    images = torch.zeros(N_TRACED_IMAGES, size, size, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on deprecated parts of torch, which the exporter itself uses
            shapes = {INPUT_NAME: {0: torch.export.Dim("n")}}
            # not strict: hooks, which collect the features of stages, run as they are
            program = torch.export.export(graph.eval(), (images,), dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(
                program,
                input_names=[INPUT_NAME],
                output_names=[PROBABILITY_NAME, OOD_NAME][: 1 + graph.with_ood],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the errors of torch.export have no common base class
        first_line = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        problem = f"the network cannot be converted to ONNX ({first_line})"
        raise ModelError(problem, "Train with another backbone, or pass `to='timm'`", code="E307") from error


def _describe_in_file(graph_model: Any, model: Classifier | Ensemble) -> None:
    """Write labels, task and warning into the ONNX model, and remove what the exporter notes about this machine.

    The number of images is named n, as in export.json.
    """
    for node in graph_model.graph.all_nodes():
        node.metadata_props.clear()  # the source lines of each operator, with the folders of this machine
    _name_dynamic_axis(graph_model.graph)
    graph_model.producer_name, graph_model.producer_version = "fastcxr", VERSION
    graph_model.metadata_props.clear()
    graph_model.metadata_props.update(
        labels=json.dumps(model.labels, ensure_ascii=False), task=model.task, fastcxr=VERSION, warning=WARNING
    )


def _name_dynamic_axis(graph: Any) -> None:
    """Name the number of images n in the shapes of all values, where the exporter has a symbol such as s34."""
    symbol = re.compile(rf"\b{re.escape(str(graph.inputs[0].shape[0]))}\b")
    for value in (*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)):
        for i, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                value.shape[i] = symbol.sub(DYNAMIC_AXIS, str(size))


def _list_tensors(model: Classifier | Ensemble) -> list[torch.Tensor]:
    members = model.members if isinstance(model, Ensemble) else (model,)
    return [tensor for member in members for tensor in member.network.state_dict().values()]
