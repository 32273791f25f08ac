"""A weights file of one's own goes into a network: safetensors, or a plain state dict read with weights_only."""

import logging
from pathlib import Path
from pickle import UnpicklingError  # what torch raises when a file holds more than tensors; nothing is unpickled here

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastcxr.errors import InputMissingError, WeightsError
from fastcxr.training.chest_weights import XRV, read_xrv, rename_chexnet
from fastcxr.training.heads import head_entries, head_names

log = logging.getLogger("fastcxr")
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
    network.load_state_dict(state, strict=False)
    if dropped:
        log.info("weights from %s; the head differs and starts anew", Path(path).name)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file, by name. No code in it is ever run."""
    path = Path(path)
    if not path.is_file():
        raise InputMissingError(
            "no such weights file", "Give --weights imagenet, none, or a .safetensors or .pth file", path=path
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            "refused: this file holds code beside tensors",
            "Save its state dict alone (torch.save(model.state_dict(), ...) or safetensors) where you trust it",
            path=path,
            code="E303",
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        raise WeightsError(
            f"no weights can be read here ({str(error).splitlines()[0][:100] if str(error) else type(error).__name__})",
            "Copy or download the file again",
            path=path,
            code="E301",
        ) from error


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
    return {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _list(keys: list[str]) -> str:
    rest = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + rest
