"""An exported model without training: a linear layer on the mean gray value, written with the package onnx."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.export.export_json import INPUT_NAME, ONNX_FILE, OOD_NAME, PROBABILITY_NAME
from fastcxr.io.files import compute_sha256, write_json
from fastcxr.io.formats import EXPORT_FORMAT, FORMAT_KEY, MODEL_FORMAT
from fastcxr.io.run_folders import EXPORT_JSON_FILE

LABELS = ("clear", "haze", "opacity")
NOTICE = {"level": "critical", "title": "Image-level split", "text": "Images of a patient are in several splits."}


def write_mean_export(
    folder: Path, *, labels: Sequence[str] = LABELS, task: str = SINGLE_LABEL, size: int = 32, **changes: object
) -> Path:
    """Write an export; `changes`: other values in export.json. Images darker than 1/4 or brighter than 3/4 are OOD."""
    folder.mkdir(parents=True)
    _write_graph(folder / ONNX_FILE, labels, task, size)
    recipe = Recipe("resnet50", image_size=size)
    content = {
        FORMAT_KEY: EXPORT_FORMAT,
        "target": "onnx",
        "task": task,
        "labels": list(labels),
        "image_size": size,
        "has_ood_detector": True,
        "calibration": {"thresholds": {name: {"threshold": 0.35} for name in labels}, "uncertain_below": 0.34},
        "bit_depths": {"sources": {}, "default": None},
        "files": {ONNX_FILE: compute_sha256(folder / ONNX_FILE)},
        "check": {},
        "versions": {},
        "notices": [NOTICE],
        "run": {"name": "first", "backbone": "resnet50", "hflip_tta": False, "n_models": 1},
        "recipe": json.loads(recipe.to_json()),
        "model": {FORMAT_KEY: MODEL_FORMAT, "backbone": {"library": "timm", "name": "resnet50"}, "choices": {}},
    }
    write_json(folder / EXPORT_JSON_FILE, content | changes)
    return folder


def _write_graph(path: Path, labels: Sequence[str], task: str, size: int) -> None:
    import onnx
    from onnx import helper, numpy_helper

    n_labels = len(labels)
    weights = np.linspace(-4, 4, n_labels, dtype=np.float32)
    constants = {
        "axes": np.array([1, 2], np.int64),
        "most": np.float32(255),
        "middle": np.float32(0.5),
        "four": np.float32(4),
        "weights": weights[None],
        "bias": -0.45 * weights,
        "column": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", [INPUT_NAME], ["gray"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["gray", "axes"], ["sum"], keepdims=0),
        helper.make_node("Div", ["sum", "most"], ["mean"]),
        helper.make_node("Unsqueeze", ["mean", "column"], ["feature"]),
        helper.make_node("MatMul", ["feature", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Sigmoid" if task == MULTI_LABEL else "Softmax", ["logits"], [PROBABILITY_NAME]),
        helper.make_node("Sub", ["mean", "middle"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Mul", ["distance", "four"], [OOD_NAME]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.UINT8, ["n", size, size])],
        [
            helper.make_tensor_value_info(PROBABILITY_NAME, onnx.TensorProto.FLOAT, ["n", n_labels]),
            helper.make_tensor_value_info(OOD_NAME, onnx.TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"labels": json.dumps(list(labels), ensure_ascii=False), "task": task})
    onnx.checker.check_model(model)
    onnx.save(model, path)
