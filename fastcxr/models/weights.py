"""Loading of weights into a network: safetensors, PyTorch state dicts (weights_only) and torchxrayvision."""

import contextlib
import io
import logging
import re
import struct
import warnings
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError  # raised by torch (weights_only) for a file with objects other than tensors
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastcxr.errors import InputMissingError, RecipeError, WeightsError
from fastcxr.models.encoders import XRV_PREFIX, XRV_WEIGHTS
from fastcxr.models.heads import find_head_modules, find_head_state_keys

log = logging.getLogger("fastcxr")
MIN_SAFE_TORCH = "2.10"  # earlier versions can run code in spite of weights_only: CVE-2025-32434, CVE-2026-24747
# raised by safetensors, zipfile and torch for damaged files; any other exception is a bug
DAMAGED_FILE_ERRORS = (
    SafetensorError, BadZipFile, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, ImportError, struct.error,
)  # fmt: skip
ZIP_SIGNATURE = b"PK\x03\x04"
PICKLE_SIGNATURE = b"\x80"  # of all pickle protocols that torch.save has used
MAX_SHOWN_KEYS = 6  # keys listed in an error
LEGACY_KEY_PATTERN = re.compile(r"\b(norm|conv)\.([12])\.")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load weights from a file or from torchxrayvision (xrv:NAME) into `network`, in place.

    Layers of the head with other names or shapes keep their initial values. Raise WeightsError with the keys for every
    other mismatch, and for NaN or infinite values.
    """
    if str(path).startswith(XRV_PREFIX):
        state = read_xrv_weights(str(path))
    else:
        state = rename_chexnet_keys(_unwrap_state_dict(read_state_dict(path)))
    network_state = network.state_dict()
    dropped = _find_mismatched_head_keys(state, network_state, find_head_modules(network))
    n_outputs = sorted({len(state[key]) for key in dropped if key.endswith(".bias")})
    state = {key: value for key, value in state.items() if key not in dropped}
    optional_keys = find_head_state_keys(network)
    optional_keys |= {key for key in network_state if key.endswith("num_batches_tracked")}  # unused, not in older files
    mismatches = {
        "missing keys": [key for key in network_state if key not in state and key not in optional_keys],
        "unknown keys": [key for key in state if key not in network_state],
        "different shapes": [k for k in state if k in network_state and state[k].shape != network_state[k].shape],
    }
    if problems := [f"{name}: {_format_keys(keys)}" for name, keys in mismatches.items() if keys]:
        problem = f"the weights do not fit the backbone ({'; '.join(problems)})"
        fix = "Pass the backbone that these weights were saved from, or another file"
        raise WeightsError(problem, fix, path=path, code="E205")
    non_finite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if non_finite:
        problem = f"NaN or infinite values in {_format_keys(non_finite)}"
        raise WeightsError(problem, "Copy or download the file again", path=path, code="E204")
    network.load_state_dict(state, strict=False)
    if dropped:
        text = "weights loaded from %s; the head is new, because that of the file differs (outputs: %s)"
        log.info(text, Path(path).name, ", ".join(map(str, n_outputs)) or "unknown")


def find_weights_file(path: str | Path) -> Path:
    """Return the path of a weights file. Raise InputMissingError if it does not exist."""
    path = Path(path)
    if not path.is_file():
        fix = "Pass `weights='pretrained'`, `weights='none'`, or a .safetensors or .pth file"
        raise InputMissingError("weights file not found", fix, path=path)
    return path


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file by name, without running code in the file.

    Raise WeightsError if the file is damaged, or contains objects other than tensors and plain containers.
    """
    path = find_weights_file(path)
    if path.suffix == ".pkl":
        problem = "a fastai export is a pickle, which can run code when it is loaded"
        fix = "If you trust it, pass the result of torch.save(load_learner(FILE).model.state_dict(), 'weights.pth')"
        raise WeightsError(problem, fix, path=path, code="E206")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except UnpicklingError as error:
        problem = "the file contains other objects than tensors, which can run code when they are loaded"
        fix = "If you trust it, save only its state dict, with torch.save(model.state_dict(), FILE) or safetensors"
        raise WeightsError(problem, fix, path=path, code="E206") from error
    except DAMAGED_FILE_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        problem = f"no weights can be read from the file ({reason})"
        raise WeightsError(problem, "Copy or download the file again", path=path, code="E204") from error


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    if torch.__version__ < MIN_SAFE_TORCH:
        problem = f"torch {torch.__version__} can run code in this file; torch >= {MIN_SAFE_TORCH} is needed"
        fix = f"Run `pip install 'torch>={MIN_SAFE_TORCH}'`, or pass the weights as .safetensors"
        raise WeightsError(problem, fix, path=path, code="E206")
    _validate_archive(path)
    with warnings.catch_warnings():  # torch also warns about damaged files, which raise errors here
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"got a {type(state).__name__}, expected a dict of tensors")
    return state


def _validate_archive(path: Path) -> None:
    """Raise unless the file is an uncompressed zip archive with correct checksums, or a pickle of older versions.

    torch.load checks neither the checksums nor the compression.
    """
    with path.open("rb") as file:
        signature = file.read(4)
    if signature != ZIP_SIGNATURE:
        if signature[:1] != PICKLE_SIGNATURE:
            problem, fix = "not a file written by torch.save", "Pass a .safetensors or .pth file as `weights`"
            raise WeightsError(problem, fix, path=path, code="E204")
        return
    with ZipFile(path) as archive:
        if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed, but torch.save does not compress: the decompressed size is unknown")
        if damaged := archive.testzip():
            raise ValueError(f"wrong checksum of {damaged[:40]!r}")


def _find_mismatched_head_keys(state: dict, network_state: dict, head_modules: list[str]) -> set[str]:
    """Return the keys of the file's head layers that are missing or have another shape in the network."""
    head_keys = [key for key in state if key.startswith(tuple(f"{name}." for name in head_modules))]
    mismatched_layers = {
        key.rpartition(".")[0]
        for key in head_keys
        if key not in network_state or network_state[key].shape != state[key].shape
    }
    return {key for key in head_keys if key.rpartition(".")[0] in mismatched_layers}


def _unwrap_state_dict(state: dict) -> dict[str, torch.Tensor]:
    """Return the state dict from common checkpoint formats, without DataParallel's prefix "module."."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


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
