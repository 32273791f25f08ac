"""Loading of weights into a network: from files of all layouts, and from torchxrayvision."""

import contextlib
import io
import logging
import re
import warnings
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from fastcxr.errors import RecipeError, WeightsError
from fastcxr.models.checkpoint_file import read_state_dict
from fastcxr.models.convert import Converted, State, convert_state, find_tensors
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS, XRV_PREFIX, XRV_WEIGHTS
from fastcxr.models.heads import find_head_modules, find_head_state_keys
from fastcxr.models.layouts import describe_convolutional

log = logging.getLogger("fastcxr")
MAX_SHOWN_KEYS = 6  # keys listed in an error
HUGGING_FACE = "Hugging Face "  # before the name of a layout that is published with other names too
LEGACY_KEY_PATTERN = re.compile(r"\b(norm|conv)\.([12])\.")


def load_weights(network: nn.Module, path: str | Path) -> Converted:
    """Load weights from a file or from torchxrayvision (xrv:NAME) into `network`, in place; return what was found.

    The file may have another layout (see convert_state). Layers of the head with other names or shapes keep their
    initial values. Raise WeightsError with the keys for every other mismatch, and for NaN or infinite values.
    """
    is_file = not str(path).startswith(XRV_PREFIX)
    tensors = rename_chexnet_keys(find_tensors(read_state_dict(path))) if is_file else read_xrv_weights(str(path))
    if not tensors:
        fix = "Pass a file with a state dict, as of torch.save(model.state_dict(), FILE)"
        raise WeightsError("no tensors in the file", fix, path=path, code="E204")
    converted = _convert(tensors, network, path)
    state = converted.state
    dropped = _find_mismatched_head_keys(state, network.state_dict(), find_head_modules(network))
    n_outputs = sorted({len(state[key]) for key in dropped if key.endswith(".bias")})
    state = {key: value for key, value in state.items() if key not in dropped}
    if problems := _list_mismatches(state, network):
        raise _make_mismatch_error(tensors, converted, problems, path)
    non_finite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if non_finite:
        problem = f"NaN or infinite values in {_format_keys(non_finite)}"
        raise WeightsError(problem, "Copy or download the file again", path=path, code="E204")
    network.load_state_dict(state, strict=False)
    if converted.found or converted.changes:
        found = converted.found or f"{len(tensors)} tensors"
        log.info("%s: %s", Path(path).name, "; ".join([found, *converted.changes]))
    if converted.resampled:
        log.info("%s: %s", Path(path).name, converted.resampled)
    if dropped:
        text = "weights loaded from %s, without its head, which differs (outputs: %s)"
        log.info(text, Path(path).name, ", ".join(map(str, n_outputs)) or "unknown")
    return converted


def _convert(tensors: State, network: nn.Module, path: str | Path) -> Converted:
    try:
        return convert_state(tensors, network)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:  # tensors that no network of the layout has
        problem = f"the tensors do not have the names or shapes of their layout ({type(error).__name__})"
        raise WeightsError(problem, "Pass another file, or download it again", path=path, code="E205") from error


def _list_mismatches(state: State, network: nn.Module) -> list[str]:
    """Describe the keys that are missing, unknown, or of another shape, one text for each of the three."""
    network_state = network.state_dict()
    optional_keys = find_head_state_keys(network)
    optional_keys |= {key for key in network_state if key.endswith("num_batches_tracked")}  # unused, not in older files
    mismatches = {
        "missing keys": [key for key in network_state if key not in state and key not in optional_keys],
        "unknown keys": [key for key in state if key not in network_state],
        "different shapes": [k for k in state if k in network_state and state[k].shape != network_state[k].shape],
    }
    return [f"{name}: {_format_keys(keys)}" for name, keys in mismatches.items() if keys]


def _make_mismatch_error(tensors: State, converted: Converted, problems: list[str], path: str | Path) -> WeightsError:
    if names := _find_fitting_encoders(tensors, converted):
        problem = f"the file holds another network than the backbone: {converted.found}"
        return WeightsError(
            problem, f"Pass {' or '.join(names)} as the backbone if these are its weights", path=path, code="E205"
        )
    description = converted.found or describe_convolutional(tensors)
    found = f"; found: {description}" if description else ""
    problem = f"the weights do not fit the backbone ({'; '.join(problems)}{found})"
    fix = "Pass the backbone that these weights were saved from, or another file"
    return WeightsError(problem, fix, path=path, code="E205")


def _find_fitting_encoders(tensors: State, converted: Converted) -> list[str]:
    """Return the names of the encoders of this layout whose network has exactly the names and shapes of the file.

    Their networks are made on the meta device, which takes no memory.
    """
    tensors, names = {key: value.to("meta") for key, value in tensors.items()}, []
    layout = (converted.layout or "").removeprefix(HUGGING_FACE)
    for encoder in ENCODERS.values():
        if layout != encoder.layout.removeprefix(HUGGING_FACE):
            continue
        with torch.device("meta"):
            network = make_encoder_network(encoder, 2, encoder.image_size)
            state = convert_state(tensors, network).state
        dropped = _find_mismatched_head_keys(state, network.state_dict(), find_head_modules(network))
        if not _list_mismatches({key: value for key, value in state.items() if key not in dropped}, network):
            names.append(encoder.name)
    return names


def _find_mismatched_head_keys(state: dict, network_state: dict, head_modules: list[str]) -> set[str]:
    """Return the keys of the file's head layers that are missing or have another shape in the network."""
    head_keys = [key for key in state if key.startswith(tuple(f"{name}." for name in head_modules))]
    mismatched_layers = {
        key.rpartition(".")[0]
        for key in head_keys
        if key not in network_state or network_state[key].shape != state[key].shape
    }
    return {key for key in head_keys if key.rpartition(".")[0] in mismatched_layers}


def _format_keys(keys: list[str]) -> str:
    suffix = f" and {len(keys) - MAX_SHOWN_KEYS} more" if len(keys) > MAX_SHOWN_KEYS else ""
    return ", ".join(keys[:MAX_SHOWN_KEYS]) + suffix


def rename_chexnet_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a CheXNet state dict with the key names of current DenseNets, and any other state dict unchanged."""
    is_legacy = any(key.startswith("densenet121.") or LEGACY_KEY_PATTERN.search(key) for key in state)
    if not is_legacy or not any(".denselayer1." in key for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        current_key = key.removeprefix("densenet121.").replace("classifier.0.", "classifier.")
        renamed[LEGACY_KEY_PATTERN.sub(r"\1\2.", current_key)] = value
    log.info("the weights have CheXNet's key names: %d keys renamed", len(set(state) - set(renamed)))
    return renamed


def find_xrv_weights(weights: str) -> tuple[str, int]:
    """Return backbone and image size of xrv:NAME. Raise RecipeError if torchxrayvision has no such weights."""
    name = weights.removeprefix(XRV_PREFIX)
    if name in XRV_WEIGHTS:
        return XRV_WEIGHTS[name]
    close = get_close_matches(name, XRV_WEIGHTS, n=1)
    fix = f"Did you mean 'xrv:{close[0]}'?" if close else f"Choose from {', '.join(f'xrv:{n}' for n in XRV_WEIGHTS)}"
    raise RecipeError(f"unknown torchxrayvision weights {name!r}", fix)


def read_xrv_weights(weights: str) -> dict[str, torch.Tensor]:
    """Return the tensors of xrv:NAME under the key names of timm's network.

    torchxrayvision downloads the file once and unpickles it with torch.load, which can run code in it: use trusted
    sources only.
    """
    name = weights.removeprefix(XRV_PREFIX)
    try:
        with warnings.catch_warnings():  # on import it silences all warnings of the process
            from torchxrayvision import models  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        problem = f"xrv: weights need torchxrayvision ({error})"
        raise WeightsError(problem, "Run `pip install 'fastcxr[xrv]'`", code="E203") from error
    try:
        # it prints to standard output, which is reserved for the path of the report
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            model = models.get_model(name)
    except Exception as error:  # the download and the unpickling can raise any exception
        fix = f"Download {models.model_urls[name]['weights_url']} into ~/.torchxrayvision/models_data"
        raise WeightsError(f"torchxrayvision cannot load {name} ({type(error).__name__})", fix, code="E202") from error
    state = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    state.pop("op_threshs", None)  # thresholds for 18 findings, not part of the network
    return state
