"""A gate as gate.safetensors and a few facts in model.json: written beside the network, checked when it is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays

from fastcxr.errors import InputMissingError, ModelError
from fastcxr.storage import sha256_of, write_whole
from fastcxr.training.gate import ARRAYS, Gate

GATE_FILE = "gate.safetensors"
NUMBERS = ("limit", "images", "patients")


def write_gate(folder: Path, gate: Gate) -> dict[str, Any]:
    """Write gate.safetensors; returns what model.json is to say of it."""
    write_whole(folder / GATE_FILE, save_arrays({name: getattr(gate, name) for name in ARRAYS}))
    facts = {name: getattr(gate, name) for name in NUMBERS}
    return {"depths": dict(gate.depths), **facts, "sha256": sha256_of(folder / GATE_FILE)}


def read_gate(folder: Path, facts: Mapping[str, Any] | None) -> Gate | None:
    """The gate that model.json speaks of; None for a model without one, as those of earlier versions are.

    Raises InputMissingError where its file is gone, ModelError where it is not the one that was written.
    """
    if facts is None:
        return None
    path = folder / GATE_FILE
    if not path.is_file():
        raise InputMissingError("model.json speaks of a gate that is not here", "Copy the whole run folder", path=path)
    try:
        if sha256_of(path) != facts["sha256"]:
            raise ValueError("sha256 differs from model.json")
        gate = Gate(depths=dict(facts["depths"]), **load_arrays(path), **{name: facts[name] for name in NUMBERS})
        _check(gate)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"this gate makes no sense ({first_line})", "Copy it again", path=path, code="E301") from error
    return gate


def _check(gate: Gate) -> None:
    width, count = sum(gate.depths.values()), len(gate.variances)
    wanted = {"mean": (width,), "deviation": (width,), "directions": (count, width), "variances": (count,)}
    shapes = {name: getattr(gate, name).shape for name in ARRAYS}
    if shapes != wanted | {"noise": (1,)}:
        raise ValueError(f"arrays of the shapes {shapes}")
    divisors = np.concatenate([gate.deviation, gate.variances, gate.noise, [gate.limit]])
    if not (np.isfinite([*gate.mean, *gate.directions.ravel()]).all() and (divisors > 0).all()):
        raise ValueError("numbers that no fit gives")
