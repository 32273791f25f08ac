"""Write a trained network as a folder that timm loads without fastcxr: config.json, model.safetensors and README.md.

`timm.create_model("local-dir:FOLDER", pretrained=True)` reads it without network access. A linear head on timm's pooled
features is part of the folder (content "classifier"). Other heads are not networks of timm: then the folder holds the
backbone (content "backbone"), whose outputs are the pooled features.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save
from torch import nn

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import ModelError
from fastcxr.io.files import atomic_write, compute_sha256, write_json
from fastcxr.models.backbones import find_backbone, find_timm_config, make_timm_options
from fastcxr.models.bundle import REBUILD_ERRORS, Classifier, Ensemble
from fastcxr.models.encoder_network import make_encoder_options
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.heads import Head, MultiScaleHead, find_head_modules, find_head_state_keys
from fastcxr.models.preprocessing import InputSpec, normalize

log = logging.getLogger("fastcxr")
CONFIG_FILE, WEIGHTS_FILE, README_FILE = "config.json", "model.safetensors", "README.md"
CLASSIFIER, BACKBONE = "classifier", "backbone"
# of the largest difference, relative to the largest output if that is above 1: the head of a run computes in float64,
# and that of timm in float32, with differences up to 8e-7 in 30 networks
TOLERANCE = 1e-5
CHECK_BATCH_SIZE = 8
RESIZING = (
    "gray levels 0 to 255; the longer side is resized to the image size with Pillow's antialiased bilinear filter, the "
    "shorter side is rounded to whole pixels; centred on black, not cropped; divided by 255; the same values in each "
    "channel; then mean and std of config.json"
)
KEPT_SETTINGS = ("first_conv", "classifier", "fixed_input_size")  # of timm's pretrained_cfg: they belong to the network
README = """\
# {architecture}, trained with fastcxr

For research, not for diagnosis.

{content} Labels, calibration and critical warnings of the run: export.json.{terms}

```python
import numpy as np
import timm
import torch
from PIL import Image

SIZE, MEAN, STD = {size}, {mean}, {std}


def fit_square(image: Image.Image) -> np.ndarray:
    scale = SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    canvas[top : top + height, left : left + width] = image.convert("L").resize((width, height), Image.BILINEAR)
    return canvas


network = timm.create_model("local-dir:.", pretrained=True).eval()  # the path of this folder
gray = torch.from_numpy(fit_square(Image.open("image.png"))).float() / 255
mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
with torch.no_grad():
    print(network((gray - mean) / std))
```

Input: {resizing}. `convert("L")` is exact for 8-bit gray images. DICOM, files with more than 8 bits and images with
white as zero need the rules of fastcxr's reader.

Not part of a network of timm: calibration (in export.json: the temperature of single-label models, a line for each
finding), thresholds (in export.json), the out-of-distribution detector, and the average over an image and its flipped
image. The ONNX export computes the probabilities of fastcxr.
"""
CONTENT_TEXTS = {
    CLASSIFIER: "The outputs are logits of {n_outputs} labels, shape (n, {n_outputs}): {labels}.",
    BACKBONE: "This folder holds the backbone without the head: the outputs are pooled features, shape "
    "(n, {n_outputs}). The head of the run is not a network of timm.",
}


def write_timm_folder(
    model: Classifier | Ensemble, folder: Path, model_json: Mapping[str, Any], images: np.ndarray
) -> dict[str, Any]:
    """Write the folder, load it with timm, compare its outputs with those of the run, and describe it.

    Args:
        model: the model of a run, on the CPU; an ensemble is refused.
        folder: an existing folder.
        model_json: content of the run's model.json.
        images: gray bytes to compare, shape (n, image_size, image_size).

    Returns:
        The entries target, content, input, outputs, files, check (without `data`) and versions (of timm) of
        export.json.

    Raises:
        ModelError: timm does not have the network, or its outputs differ from those of the run.
    """
    if isinstance(model, Ensemble):
        problem = f"a folder of timm holds one network, and this model is the mean of {len(model.members)} networks"
        raise ModelError(problem, "Pass the folder of one fold, or `to='onnx'`")
    content = BACKBONE if has_other_head(model.network) else CLASSIFIER
    architecture, options = find_architecture(model_json["backbone"], model.input_spec)
    config = make_config(model, content, architecture, options)
    atomic_write(folder / WEIGHTS_FILE, save(make_state(model.network, content)))
    write_json(folder / CONFIG_FILE, config)
    check = check_outputs(model, folder, content, images)
    atomic_write(folder / README_FILE, _make_readme(config, content, model_json["backbone"].get("licence", "")))
    if content == BACKBONE:
        text = (
            "the head of this run is not a network of timm: the export holds the backbone; ONNX holds the whole model"
        )
        log.warning(text)
    n_outputs, spec = _count_outputs(config), model.input_spec
    return {
        "target": "timm",
        "content": content,
        "input": {
            "name": "x", "dtype": "float32", "shape": ["n", len(spec.mean), spec.image_size, spec.image_size],
            "resizing": RESIZING,
        },
        "outputs": {"logits" if content == CLASSIFIER else "features": {"dtype": "float32", "shape": ["n", n_outputs]}},
        "files": {name: compute_sha256(folder / name) for name in (CONFIG_FILE, WEIGHTS_FILE, README_FILE)},
        "check": check,
        "versions": {"timm": timm.__version__},
    }  # fmt: skip


def has_other_head(network: nn.Module) -> bool:
    """Return whether the head is more than one linear layer; dropout is not active at inference."""
    return any(
        isinstance(module, MultiScaleHead) or (isinstance(module, Head) and _has_hidden_layer(module))
        for module in network.modules()
    )


def _has_hidden_layer(head: Head) -> bool:
    return any(not isinstance(layer, nn.Dropout) for layer in list(head)[:-1])


def find_architecture(backbone_json: Mapping[str, Any], spec: InputSpec) -> tuple[str, dict[str, Any]]:
    """Return the name of the network in timm and the arguments of timm.create_model that JSON can hold."""
    library, name = backbone_json["library"], backbone_json["name"]
    if library == "chest":
        encoder = ENCODERS[name]
        if encoder.has_swiglu or encoder.features == "both":
            problem = (
                f"timm cannot construct chest:{name}, whose features are the class token and the mean of the patches"
            )
            raise ModelError(problem, "Export it with `to='onnx'`")
        return encoder.architecture, make_encoder_options(encoder, spec.image_size)
    if library != "timm":
        raise ModelError(f"{library}:{name} is not a network of timm", "Export it with `to='onnx'`")
    backbone = replace(find_backbone(f"{library}:{name}", "none"), mean=spec.mean, std=spec.std)
    return name, make_timm_options(backbone, spec.image_size)


def make_config(model: Classifier, content: str, architecture: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json; the loader of timm reads every value but num_features."""
    network: Any = model.network
    spec, timm_settings = model.input_spec, find_timm_config(architecture).to_dict()
    n_classes = len(model.labels) if content == CLASSIFIER else 0
    config = {
        "architecture": architecture,
        "num_classes": n_classes,
        "num_features": network.head_hidden_size if hasattr(network, "head_hidden_size") else network.num_features,
        "label_names": list(model.labels) if content == CLASSIFIER else None,
        "model_args": options,
        "pretrained_cfg": {
            "input_size": [len(spec.mean), spec.image_size, spec.image_size],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "border",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": n_classes,
            "pool_size": None,
        }
        | {name: timm_settings.get(name) for name in KEPT_SETTINGS},
    }
    return {name: value for name, value in config.items() if value not in (None, {})}


def _count_outputs(config: Mapping[str, Any]) -> int:
    return config["num_classes"] or config["num_features"]


def make_state(network: nn.Module, content: str) -> dict[str, torch.Tensor]:
    """Return the float32 weights under the names of timm: the head without the index of dropout, or no head."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if content == BACKBONE:
        head_keys = find_head_state_keys(network)
        return {name: tensor for name, tensor in state.items() if name not in head_keys}
    for head_name in find_head_modules(network):
        head = network.get_submodule(head_name)
        if isinstance(head, Head):
            prefix = f"{head_name}.{len(head) - 1}."
            state = {
                f"{head_name}.{name.removeprefix(prefix)}" if name.startswith(prefix) else name: tensor
                for name, tensor in state.items()
            }
    return state


def check_outputs(model: Classifier, folder: Path, content: str, images: np.ndarray) -> dict[str, Any]:
    """Return the entry `check` of export.json. Raises ModelError if the outputs of timm's network differ."""
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        parts = [
            _compute_both(model, network, content, images[start : start + CHECK_BATCH_SIZE])
            for start in range(0, len(images), CHECK_BATCH_SIZE)
        ]
        expected, found = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        difference = float(np.abs(found - expected).max())
    except REBUILD_ERRORS as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"timm {timm.__version__} cannot load the exported network ({first_line})"
        raise ModelError(problem, "Export it with `to='onnx'`", code="E315") from error
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= limit:  # NaN is refused too
        problem = (
            f"the outputs of timm's network differ from those of the run by {difference:.2g}, expected {limit:.2g}"
        )
        raise ModelError(problem, "Export it with `to='onnx'`", code="E315")
    if content == BACKBONE:
        n_same = None
    elif model.task == MULTI_LABEL:
        n_same = int(((found > 0) == (expected > 0)).all(axis=1).sum())
    else:
        n_same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    return {
        "images": len(images), "precision": "fp32", "max_difference": difference, "max_ood_difference": None,
        "same_class": n_same, "tolerance": limit,
    }  # fmt: skip


def _compute_both(
    model: Classifier, network: nn.Module, content: str, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, or features, of the run's network and of timm's, each of shape (n, outputs)."""
    with torch.no_grad():
        batch = normalize(torch.from_numpy(images)[:, None], model.input_spec)
        expected = model.network(batch) if content == CLASSIFIER else _compute_features(model.network, batch)
        return expected.numpy(), network(batch).numpy()


def _compute_features(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return what the head receives, shape (n, features); for two heads of a distilled network, the mean."""
    inputs: list[torch.Tensor] = []
    heads = [network.get_submodule(name) for name in find_head_modules(network)]
    hooks = [head.register_forward_pre_hook(lambda _, values: inputs.append(values[0].flatten(1))) for head in heads]
    try:
        network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(inputs).mean(dim=0)


def _make_readme(config: Mapping[str, Any], content: str, terms: str) -> str:
    settings = config["pretrained_cfg"]
    labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in config.get("label_names", ()))
    text = CONTENT_TEXTS[content].format(n_outputs=_count_outputs(config), labels=labels)
    return README.format(
        architecture=config["architecture"], content=text, size=settings["input_size"][-1], mean=settings["mean"],
        std=settings["std"], resizing=RESIZING, terms=f" Terms of the initial weights: {terms}." if terms else "",
    )  # fmt: skip
