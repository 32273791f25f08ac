"""Write a trained network as a folder that timm loads without fastcxr: config.json, model.safetensors and README.md.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads it without network access. A linear head on timm's pooled
features is part of the folder (content "classifier"). Other heads are not networks of timm: then the folder holds the
backbone (content "backbone"), whose output is the pooled features.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save
from timm.models import PretrainedCfg
from torch import nn

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import ModelError
from fastcxr.io.files import atomic_write, compute_sha256, write_json
from fastcxr.models.bundle import Classifier, Ensemble
from fastcxr.models.encoder_network import list_network_options
from fastcxr.models.encoders import ENCODERS, Encoder
from fastcxr.models.heads import Head, MultiScaleHead, find_head_modules, find_head_state_keys
from fastcxr.models.preprocessing import InputSpec, normalize

log = logging.getLogger("fastcxr")
CONFIG_FILE, WEIGHTS_FILE, README_FILE = "config.json", "model.safetensors", "README.md"
CLASSIFIER, BACKBONE = "classifier", "backbone"
TOLERANCE = 1e-6  # largest difference of the outputs, relative to the largest output of the run
ONNX_FIX = "Pass `to='onnx'`, which exports every network"
RESIZING = (
    "gray levels 0 to 255; longer side resized to image_size with Pillow's antialiased bilinear filter, the shorter "
    "side rounded; centred on black; no crop; divided by 255; the same values in each channel; then mean and std"
)


def write_timm_folder(
    model: Classifier | Ensemble, folder: Path, model_json: Mapping[str, Any], images: np.ndarray
) -> dict[str, Any]:
    """Write the folder, load it with timm, compare the outputs, and return the entries of export.json that it decides.

    The entries: target, content, input, outputs, files, check (without `data`) and timm's version as `versions`.

    Args:
        model: the model of a run; an ensemble is refused.
        folder: an existing folder.
        model_json: content of the run's model.json.
        images: gray bytes for the check, shape (n, image_size, image_size).

    Raises ModelError if timm cannot have the network, or the folder has other outputs than the run.
    """
    if isinstance(model, Ensemble):
        problem = f"a folder of timm holds one network, and this model is the mean of {len(model.members)} networks"
        raise ModelError(problem, "Pass the folder of one fold, or `to='onnx'`")
    config = _make_config(model, model_json["backbone"])
    content = BACKBONE if config["num_classes"] == 0 else CLASSIFIER
    if content == BACKBONE:
        text = (
            "the head of this run is not a network of timm: the folder holds the backbone, which outputs pooled "
            "features; `to='onnx'` exports the whole model"
        )
        log.warning(text)
    atomic_write(folder / WEIGHTS_FILE, save(_make_state(model.network, content)))
    write_json(folder / CONFIG_FILE, config)
    check = _check_outputs(model, folder, content, images)
    readme = _make_readme(config, content, str(model_json["backbone"].get("licence", "")))
    atomic_write(folder / README_FILE, readme)
    spec, outputs = model.input_spec, config["num_classes"] or config["num_features"]
    return {
        "target": "timm",
        "content": content,
        "input": {
            "name": "x", "dtype": "float32", "shape": ["n", len(spec.mean), spec.image_size, spec.image_size],
            "resizing": RESIZING,
        },
        "outputs": {"logits" if content == CLASSIFIER else "features": {"dtype": "float32", "shape": ["n", outputs]}},
        "files": {name: compute_sha256(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, README_FILE)},
        "check": check,
        "versions": {"timm": timm.__version__},
    }  # fmt: skip
