"""A weights file of one's own goes into a network: safetensors, or a plain state dict read with weights_only."""

import logging
import struct
import warnings
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file that holds more than tensors (weights_only)
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastcxr.errors import InputMissingError, WeightsError
from fastcxr.training.chest_weights import XRV, read_xrv, rename_chexnet
from fastcxr.training.heads import head_entries, head_names

log = logging.getLogger("fastcxr")
SAFE_TORCH = (2, 10)  # earlier ones can be made to run code, weights_only or not: CVE-2025-32434, CVE-2026-24747
# everything that safetensors, zipfile and torch raise for a damaged file; whatever else comes is a bug and must be seen
BROKEN = (
    SafetensorError, BadZipFile, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, ImportError, struct.error,
)  # fmt: skip
ARCHIVE = b"PK\x03\x04"
PICKLE = b"\x80"  # of the protocols that torch.save has ever written
SHOWN = 6  # keys named in an error before the rest is counted


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fill `network` from a file, or from torchxrayvision's (xrv:NAME), in place.

    Layers of the head that differ start anew; every other mismatch is a WeightsError with the keys.
    """
    state = read_xrv(path) if str(path).startswith(XRV) else rename_chexnet(_unwrap(read_state(path)))
    own = network.state_dict()
    dropped = _other_head(state, own, head_names(network))
    state = {key: value for key, value in state.items() if key not in dropped}
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # older files lack them; nothing reads them
    missing = [key for key in own if key not in state and key not in head_entries(network) | counters]
    unexpected = [key for key in state if key not in own]
    reshaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    troubles = [
        f"{words} {_list(keys)}"
        for words, keys in (("lacks", missing), ("has unknown", unexpected), ("has other shapes for", reshaped))
        if keys
    ]
    if troubles:
        raise WeightsError(
            f"these weights do not fit: the file {'; '.join(troubles)}",
            "Name the backbone that these weights were saved from, or another file",
            path=path,
            code="E302",
        )
    endless = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if endless:
        what = f"numbers that are not finite in {_list(endless)}"
        raise WeightsError(what, "Copy or download the file again", path=path, code="E301")
    network.load_state_dict(state, strict=False)
    if dropped:
        log.info("weights from %s; the head differs and starts anew", Path(path).name)


def find_file(path: str | Path) -> Path:
    """The path of a weights file. Raises InputMissingError where there is none."""
    path = Path(path)
    if not path.is_file():
        raise InputMissingError(
            "no such weights file", "Give --weights imagenet, none, or a .safetensors or .pth file", path=path
        )
    return path


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name. No code in it is ever run."""
    path = find_file(path)
    if path.suffix == ".pkl":  # fastai's export: a whole Learner, which only a pickle can hold
        raise _holds_code(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except UnpicklingError as error:
        raise _holds_code(path) from error
    except BROKEN as error:
        if isinstance(error, WeightsError):
            raise
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise WeightsError(
            f"no weights can be read here ({reason})", "Copy or download the file again", path=path, code="E301"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """What torch.save wrote, tensors and plain containers alone."""
    if torch.__version__ < SAFE_TORCH:
        raise WeightsError(
            f"torch {torch.__version__} can be made to run code by such a file",
            "Run `pip install 'torch>=2.10'`, or give the weights as .safetensors",
            path=path,
            code="E303",
        )
    _check_archive(path)
    with warnings.catch_warnings():  # torch's own, of damaged files, which are told as errors
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"a {type(state).__name__}, not a dict of tensors")
    return state


def _check_archive(path: Path) -> None:
    """torch looks at no checksum of the archives that it writes, and unpacks whatever was packed into them."""
    with path.open("rb") as file:
        head = file.read(4)
    if head != ARCHIVE:
        if head[:1] != PICKLE:
            what, fix = "no weights file: torch.save did not write it", "Give a .safetensors or .pth file as --weights"
            raise WeightsError(what, fix, path=path, code="E301")
        return  # the older kind, which is no archive
    with ZipFile(path) as archive:
        if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
            raise ValueError("packed, which torch never does: it could unpack to any size")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged[:40]!r} differs")


def _holds_code(path: Path) -> WeightsError:
    what = "refused: this file holds code beside tensors"
    fix = "Save its state dict alone (torch.save(model.state_dict(), ...) or safetensors) where you trust it"
    if path.suffix == ".pkl":
        what = "refused: an export of fastai is a pickle, which runs code when it is opened"
        fix = "Where you trust it, torch.save(load_learner(FILE).model.state_dict(), 'weights.pth') and give that"
    return WeightsError(what, fix, path=path, code="E303")


def _other_head(state: dict, own: dict, heads: list[str]) -> set[str]:
    """The file's keys of layers of a head that this network's head has not, or has in another size."""
    inside = [key for key in state if key.startswith(tuple(f"{head}." for head in heads))]
    unlike = {key.rpartition(".")[0] for key in inside if key not in own or own[key].shape != state[key].shape}
    return {key for key in inside if key.rpartition(".")[0] in unlike}


def _unwrap(state: dict) -> dict[str, torch.Tensor]:
    """The state dict inside the usual wrappers, without the prefix that DataParallel leaves."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(key), dict):
            state = state[key]
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _list(keys: list[str]) -> str:
    rest = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + rest
