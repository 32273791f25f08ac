"""Files of a published model that timm reads too: config.json, model.safetensors, and other heads.

`timm.create_model("hf-hub:owner/name", pretrained=True)` reads config.json and model.safetensors. A linear head has the
names of timm, and the file is that of the run. Any other head is in head.safetensors, which only fastcxr reads: then
timm gets the backbone, and no weights are published twice.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from safetensors.torch import save

from fastcxr.errors import ModelError
from fastcxr.export.timm_folder import (
    BACKBONE,
    CLASSIFIER,
    CONFIG_FILE,
    check_outputs,
    find_architecture,
    has_other_head,
    make_config,
    make_state,
)
from fastcxr.io.files import atomic_write, compute_sha256, write_json
from fastcxr.io.hub_names import is_hub_name
from fastcxr.models.bundle import OOD_FILE, Classifier
from fastcxr.models.heads import find_head_state_keys
from fastcxr.models.model_json import MODEL_JSON_FILE, WEIGHTS_FILE, read_model_json
from fastcxr.report.shared_record import MODEL_ENTRIES

HEAD_FILE = "head.safetensors"
N_CHECK_IMAGES = 4
SHARED_ENTRIES = (*MODEL_ENTRIES, "bit_depths", "ood")  # of model.json; every other entry is left out
BACKBONE_ENTRIES = ("library", "name", "tag", "weights", "weights_sha256", "parameters", "licence", "citation")


def write_model_files(run: Path, folder: Path) -> None:
    """Copy weights and OOD detector of a run folder with one model into `folder`, and write its model.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model_json = read_model_json(run)
    for name in [*model_json["files"], *([OOD_FILE] if model_json.get("ood") else [])]:
        shutil.copyfile(run / name, folder / name)
    write_json(folder / MODEL_JSON_FILE, make_shared_model(model_json))


def make_shared_model(model_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of model.json that are published; of the initial weights the name without folders."""
    backbone = {name: value for name, value in model_json["backbone"].items() if name in BACKBONE_ENTRIES}
    weights = str(backbone.get("weights") or "")
    if backbone.get("weights_sha256") and not is_hub_name(weights):
        backbone["weights"] = PurePath(weights.replace("\\", "/")).name
    return {name: value for name, value in model_json.items() if name in SHARED_ENTRIES} | {"backbone": backbone}


def share_with_timm(model: Classifier, folder: Path) -> str:
    """Write config.json, move a head that timm does not have to head.safetensors, and compare timm's outputs.

    Args:
        model: the model of the folder, on the CPU in fp32.
        folder: folder of write_model_files.

    Returns:
        What timm loads: "classifier" or "backbone".

    Raises:
        ModelError: timm does not have the network, or its outputs differ; the folder has then no config.json.
    """
    model_json = read_model_json(folder)
    architecture, options = find_architecture(model_json["backbone"], model.input_spec)
    state = model.network.state_dict()
    is_linear = not has_other_head(model.network) and set(make_state(model.network, CLASSIFIER)) == set(state)
    content = CLASSIFIER if is_linear else BACKBONE
    write_json(folder / CONFIG_FILE, make_config(model, content, architecture, options))
    if content == BACKBONE:
        head_keys = find_head_state_keys(model.network)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name in head_keys}
        atomic_write(folder / HEAD_FILE, save(head))
        atomic_write(folder / WEIGHTS_FILE, save(make_state(model.network, BACKBONE)))
        checksums = {name: compute_sha256(folder / name) for name in (WEIGHTS_FILE, HEAD_FILE)}
        write_json(folder / MODEL_JSON_FILE, model_json | {"files": checksums})
    try:
        check_outputs(model, folder, content, make_check_images(model.input_spec.image_size))
    except ModelError:
        (folder / CONFIG_FILE).unlink()
        raise
    return content


def make_check_images(size: int) -> np.ndarray:
    """Return gray bytes of noise with different mean and contrast, shape (N_CHECK_IMAGES, size, size)."""
    draw = np.random.default_rng(0)
    contrasts = np.linspace(0.2, 1, N_CHECK_IMAGES)[:, None, None]
    return (draw.integers(0, 256, (N_CHECK_IMAGES, size, size)) * contrasts).astype(np.uint8)
