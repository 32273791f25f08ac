"""Nested Python values with tensors in them become strict JSON and a flat dict of tensors, and come back the same.

What an optimizer or a random generator keeps is such a tree; so it is written without pickle, and without loss.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, str, type(None))


def flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON; its tensors are added to `tensors`, each under a number.

    dict, list (fastcore's L becomes one), tuple, str, bool, None, int, float, NumPy arrays and numbers, tensors.
    Raises TypeError for anything else.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return _put(value, tensors)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[flatten(key, tensors), flatten(part, tensors)] for key, part in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [flatten(part, tensors) for part in value]}
    if isinstance(value, list) or type(value).__name__ == "L":
        return [flatten(part, tensors) for part in value]
    raise TypeError(f"no state can hold a {type(value).__name__}")


def restore(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value that `flatten` was given; tensors lie in memory as they lay, on the CPU."""
    if isinstance(tree, list):
        return [restore(part, tensors) for part in tree]
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = [item for item in tree.items() if item[0] != "stride"]
    if kind == "tensor":
        return _take(tensors[content], tree["stride"])
    if kind == "array":
        return tensors[content].numpy()
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(restore(part, tensors) for part in content)
    return {restore(key, tensors): restore(part, tensors) for key, part in content}


def _put(value: torch.Tensor | np.ndarray, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    name = f"{len(tensors):06d}"
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    value = value.detach()
    # the strides too: arithmetic in another order of the memory may round otherwise
    tensors[name] = value.cpu().contiguous()
    return {"tensor": name, "stride": list(value.stride())}


def _take(tensor: torch.Tensor, stride: list[int]) -> torch.Tensor:
    if list(tensor.stride()) == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
