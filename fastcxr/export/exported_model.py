"""An exported model, run with onnxruntime: without torch, fastai and timm."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastcxr.config.tasks import MULTI_LABEL, describe_model
from fastcxr.data.bit_depth import BitDepths
from fastcxr.errors import ModelError, RecipeError
from fastcxr.export.export_json import (
    COPY_AGAIN_FIX,
    INPUT_NAME,
    ONNX_FILE,
    OOD_NAME,
    PROBABILITY_NAME,
    read_export_json,
    shorten_value,
)
from fastcxr.inference.scores import Scorer, Scores
from fastcxr.io.cpus import count_cpus

BATCH_SIZE = 32
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class ExportedModel(Scorer):
    """The ONNX file of an export with its labels, thresholds and warnings.

    Attributes:
        folder: folder of the export.
        description: content of export.json; see fastcxr.export.export_json.
    """

    def __init__(self, folder: Path, description: dict[str, Any], session: Any):
        self.folder, self.description, self.session = folder, description, session
        self.labels, self.task = tuple(description["labels"]), description["task"]
        self.image_size, self.thresholds = description["image_size"], description["calibration"]
        self.bit_depths = BitDepths(**description["bit_depths"])
        self.has_ood_detector, self.batch_size = description["has_ood_detector"], BATCH_SIZE

    @property
    def dtype_and_device(self) -> str:
        """Precision and device, for example `float32 with onnxruntime on cpu`."""
        provider = self.session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        return f"float32 with onnxruntime on {provider}"

    def __repr__(self) -> str:
        notices = [f"{row['level']}: {row['title']}" for row in self.description.get("notices", [])]
        return "; ".join([describe_model(self, self.image_size)[:-1], *notices]) + ">"

    def score(self, images: np.ndarray) -> Scores:
        """Return the scores of gray bytes, shape (n, image_size, image_size)."""
        names = [PROBABILITY_NAME, OOD_NAME][: 1 + self.has_ood_detector]
        probability, *ood_scores = (part.astype(float) for part in self.session.run(names, {INPUT_NAME: images}))
        if self.task != MULTI_LABEL:  # the graph computes in float32, and the metrics require rows that sum to one
            probability /= probability.sum(axis=1, keepdims=True)
        return Scores(probability, ood_scores[0] if ood_scores else None)


def load_export(folder: str | Path, device: str = "auto") -> ExportedModel:
    """Load an exported model. `device`: auto (the CPU), cpu or cuda.

    Raises:
        InputMissingError: the folder is not an export, or is incomplete.
        ModelError: it is damaged or inconsistent, or onnxruntime is not installed or cannot load it.
        RecipeError: the device is not available.
    """
    description = read_export_json(folder)
    path = Path(folder) / ONNX_FILE
    onnxruntime = _import_onnxruntime()
    provider = PROVIDERS.get("cpu" if device == "auto" else device)
    if provider not in onnxruntime.get_available_providers():
        problem = f"onnxruntime does not support the device {device!r} here"
        fix = "Pass `device='cpu'`"
        raise RecipeError(problem, f"{fix}, or install onnxruntime-gpu" if device == "cuda" else fix)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count_cpus()  # the default counts all cores of the machine, also in a container
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # the errors of onnxruntime have no common base class
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"onnxruntime cannot load the model ({first_line})"
        raise ModelError(problem, "Export the run again, or update onnxruntime", path=path, code="E305") from error
    if list_shapes(session) != (expected := expect_shapes(description)):
        problem = f"the model has {_describe_shapes(list_shapes(session))}; expected {_describe_shapes(expected)}"
        raise ModelError(problem, "Export the run again", path=path, code="E305")
    _compare_metadata(session.get_modelmeta().custom_metadata_map, description, path)
    return ExportedModel(Path(folder), description, session)


def _describe_shapes(shapes: Mapping[str, list[int]]) -> str:
    """Return for example `images of n x 224 x 224, probabilities of n x 3`."""
    return ", ".join(f"{name} of {' x '.join(map(str, ('n', *shape)))}" for name, shape in shapes.items())


def _compare_metadata(metadata: Mapping[str, str], description: Mapping[str, Any], path: Path) -> None:
    """Raise ModelError if labels or task in the ONNX file differ from those in export.json."""
    for name, text in (("labels", metadata.get("labels", "")), ("task", json.dumps(metadata.get("task")))):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if found != description[name]:
            problem = (
                f"{name} {shorten_value(found)}, expected those of export.json: {shorten_value(description[name])}"
            )
            raise ModelError(problem, COPY_AGAIN_FIX, path=path, code="E301")


def list_shapes(session: Any) -> dict[str, list[int]]:
    """Return the shape of each input and output without the number of images, by name."""
    return {one.name: list(one.shape[1:]) for one in (*session.get_inputs(), *session.get_outputs())}


def expect_shapes(description: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes that the content of export.json implies; see list_shapes."""
    shapes = {INPUT_NAME: [description["image_size"]] * 2, PROBABILITY_NAME: [len(description["labels"])]}
    return shapes | ({OOD_NAME: []} if description["has_ood_detector"] else {})


def _import_onnxruntime() -> Any:
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        problem = f"onnxruntime, which runs exported models, is not installed ({error})"
        raise ModelError(
            problem, "Run `pip install 'fastcxr[onnx]'`, or `pip install onnxruntime`", code="E203"
        ) from error
