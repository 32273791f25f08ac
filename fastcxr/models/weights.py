"""A weights file of one's own goes into a network: safetensors, or a plain state dict read with weights_only."""

import contextlib
import io
import logging
import re
import struct
import warnings
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file that holds more than tensors (weights_only)
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastcxr.errors import InputMissingError, RecipeError, WeightsError
from fastcxr.models.heads import find_head_modules, find_head_state_keys

log = logging.getLogger("fastcxr")
MIN_SAFE_TORCH = (2, 10)  # earlier ones can be made to run code, weights_only or not: CVE-2025-32434, CVE-2026-24747
# everything that safetensors, zipfile and torch raise for a damaged file; whatever else comes is a bug and must be seen
DAMAGED_FILE_ERRORS = (
    SafetensorError, BadZipFile, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, ImportError, struct.error,
)  # fmt: skip
ZIP_SIGNATURE = b"PK\x03\x04"
PICKLE_SIGNATURE = b"\x80"  # of the protocols that torch.save has ever written
MAX_SHOWN_KEYS = 6  # keys named in an error before the rest is counted
XRV_PREFIX = "xrv:"  # before the name of weights of torchxrayvision
XRV_MEAN, XRV_STD = (0.5,), (1 / 2048,)  # of 0 to 1: black becomes -1024, white 1024
XRV_DENSENETS = ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
# name of the weights: the network they belong to, and the side of the images that they learned from
XRV_WEIGHTS = {f"densenet121-res224-{data}": ("densenet121", 224) for data in XRV_DENSENETS} | {
    "resnet50-res512-all": ("resnet50", 512)
}
LEGACY_KEY_PATTERN = re.compile(r"\b(norm|conv)\.([12])\.")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill `network` from a file, or from torchxrayvision's (xrv:NAME), in place.

    Layers of the head that differ start anew; every other mismatch is a WeightsError with the keys.
    """
    state = (
        read_xrv_weights(path)
        if str(path).startswith(XRV_PREFIX)
        else rename_chexnet_keys(_unwrap_state_dict(read_state_dict(path)))
    )
    network_state = network.state_dict()
    dropped = _find_mismatched_head_keys(state, network_state, find_head_modules(network))
    state = {key: value for key, value in state.items() if key not in dropped}
    counter_keys = {
        key for key in network_state if key.endswith("num_batches_tracked")
    }  # older files lack them; nothing reads them
    missing = [
        key for key in network_state if key not in state and key not in find_head_state_keys(network) | counter_keys
    ]
    unexpected = [key for key in state if key not in network_state]
    reshaped = [key for key in state if key in network_state and state[key].shape != network_state[key].shape]
    problems = [
        f"{prefix} {_format_keys(keys)}"
        for prefix, keys in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", reshaped))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"these weights do not fit: the file {'; '.join(problems)}",
            "Name the backbone that these weights were saved from, or another file",
            path=path,
            code="E205",
        )
    non_finite = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if non_finite:
        problem = f"numbers that are not finite in {_format_keys(non_finite)}"
        raise WeightsError(problem, "Copy or download the file again", path=path, code="E204")
    network.load_state_dict(state, strict=False)
    if dropped:
        log.info("weights from %s; the head differs and starts anew", Path(path).name)


def find_weights_file(path: str | Path) -> Path:
    """The path of a weights file. Raises InputMissingError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise InputMissingError(
            "no such weights file", "Give --weights pretrained, none, or a .safetensors or .pth file", path=path
        )
    return path


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name. No code in it is ever run."""
    path = find_weights_file(path)
    if path.suffix == ".pkl":  # fastai's export: a whole Learner, which only a pickle can hold
        raise _make_code_error(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except UnpicklingError as error:
        raise _make_code_error(path) from error
    except DAMAGED_FILE_ERRORS as error:
        if isinstance(error, WeightsError):
            raise
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise WeightsError(
            f"no weights can be read here ({reason})", "Copy or download the file again", path=path, code="E204"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """What torch.save wrote, tensors and plain containers alone."""
    if torch.__version__ < MIN_SAFE_TORCH:
        raise WeightsError(
            f"torch {torch.__version__} can be made to run code by such a file",
            "Run `pip install 'torch>=2.10'`, or give the weights as .safetensors",
            path=path,
            code="E206",
        )
    _validate_archive(path)
    with warnings.catch_warnings():  # torch's own, of damaged files, which are told as errors
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}, not a dict of tensors")
    return state


def _validate_archive(path: Path) -> None:
    """torch looks at no checksum of the archives that it writes, and unpacks whatever was packed into them."""
    with path.open("rb") as file:
        signature = file.read(4)
    if signature != ZIP_SIGNATURE:
        if signature[:1] != PICKLE_SIGNATURE:
            problem, fix = (
                "no weights file: torch.save did not write it",
                "Give a .safetensors or .pth file as --weights",
            )
            raise WeightsError(problem, fix, path=path, code="E204")
        return  # the older kind, which is no archive
    with ZipFile(path) as archive:
        if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
            raise ValueError("packed, which torch never does: it could unpack to any size")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged[:40]!r} differs")


def _make_code_error(path: Path) -> WeightsError:
    problem = "refused: this file holds code beside tensors"
    fix = "Save its state dict alone (torch.save(model.state_dict(), ...) or safetensors) where you trust it"
    if path.suffix == ".pkl":
        problem = "refused: an export of fastai is a pickle, which runs code when it is opened"
        fix = "Where you trust it, torch.save(load_learner(FILE).model.state_dict(), 'weights.pth') and give that"
    return WeightsError(problem, fix, path=path, code="E206")


def _find_mismatched_head_keys(state: dict, network_state: dict, head_modules: list[str]) -> set[str]:
    """The file's keys of layers of a head that this network's head has not, or has in another size."""
    head_keys = [key for key in state if key.startswith(tuple(f"{name}." for name in head_modules))]
    mismatched_layers = {
        key.rpartition(".")[0]
        for key in head_keys
        if key not in network_state or network_state[key].shape != state[key].shape
    }
    return {key for key in head_keys if key.rpartition(".")[0] in mismatched_layers}


def _unwrap_state_dict(state: dict) -> dict[str, torch.Tensor]:
    """The state dict inside the usual wrappers, without the prefix that DataParallel leaves."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _format_keys(keys: list[str]) -> str:
    suffix = f" and {len(keys) - MAX_SHOWN_KEYS} more" if len(keys) > MAX_SHOWN_KEYS else ""
    return ", ".join(keys[:MAX_SHOWN_KEYS]) + suffix


def rename_chexnet_keys(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of today, if these are CheXNet's; else the state as it is."""
    is_legacy = any(key.startswith("densenet121.") or LEGACY_KEY_PATTERN.search(key) for key in state)
    if not is_legacy or not any(".denselayer1." in key for key in state):
        return state
    renamed = {_modernize_key(key): value for key, value in state.items()}
    log.info("these weights are in CheXNet's layout: %d names brought up to date", len(set(state) - set(renamed)))
    return renamed


def _modernize_key(key: str) -> str:
    key = key.removeprefix("densenet121.").replace("classifier.0.", "classifier.")
    return LEGACY_KEY_PATTERN.sub(r"\1\2.", key)


def find_xrv_weights(weights: str) -> tuple[str, int]:
    """Network and image size of xrv:NAME. Raises RecipeError for a name that torchxrayvision does not have."""
    name = weights.removeprefix(XRV_PREFIX)
    if name in XRV_WEIGHTS:
        return XRV_WEIGHTS[name]
    close = get_close_matches(name, XRV_WEIGHTS, n=1)
    fix = f"Did you mean 'xrv:{close[0]}'?" if close else f"Choose from {', '.join(f'xrv:{n}' for n in XRV_WEIGHTS)}"
    raise RecipeError(f"torchxrayvision has no weights called {name!r}", fix)


def read_xrv_weights(weights: str) -> dict[str, torch.Tensor]:
    """The tensors of xrv:NAME under the names of timm's network.

    torchxrayvision downloads the file once and loads it with torch.load, which unpickles it and can run code in it: use
    trusted sources only.
    """
    name = weights.removeprefix(XRV_PREFIX)
    models = _import_xrv()
    try:
        # it tells standard output about its downloads, where only the path of the report belongs
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            model = models.get_model(name)
    except Exception as error:  # whatever its downloader and its unpickling may raise, it is these weights' fault
        raise WeightsError(
            f"torchxrayvision could not give {name} ({type(error).__name__})",
            f"Fetch {models.model_urls[name]['weights_url']} into ~/.torchxrayvision/models_data",
            code="E202",
        ) from error
    state = {key.removeprefix("model."): value for key, value in model.state_dict().items()}
    state.pop("op_threshs", None)  # its thresholds for 18 findings, no part of the network
    return state


def _import_xrv():
    try:
        with warnings.catch_warnings():  # on import it silences every warning of the process
            from torchxrayvision import models
    except ImportError as error:
        raise WeightsError(
            f"xrv: weights need torchxrayvision ({error})", "Run `pip install 'fastcxr[xrv]'`", code="E203"
        ) from error
    return models
