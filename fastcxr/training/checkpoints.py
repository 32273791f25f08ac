"""Checkpoints of an unfinished run on disk: atomic writes, checksums, two generations, no pickle.

A checkpoint is one safetensors file with its JSON part in the header, and a sha256 file that is written before it.
"""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fastcxr.errors import ModelError, OutputError
from fastcxr.io.files import atomic_write, compute_sha256, require_free_space
from fastcxr.io.formats import CHECKPOINT_FORMAT, FORMAT_KEY

log = logging.getLogger("fastcxr")
N_GENERATIONS = 2
FREE_SPACE_FIX = "Free disk space and repeat the command"
STATE_FILE_PATTERN = re.compile(r"state-(\d{6})\.safetensors")
JSON_TYPES = (bool, int, str, type(None))


def count_run_bytes(weights_bytes: int) -> int:
    """Return the bytes of all files of a run with weights of this size."""
    # a checkpoint has the weights, the best weights and two optimizer moments; the final model needs one more
    return weights_bytes * (4 * N_GENERATIONS + 1)


class Checkpoints:
    """The two newest checkpoints of one run in `folder`, with a verified backup in `mirror` (a slower disk)."""

    def __init__(self, folder: str | Path, mirror: str | Path | None = None):
        self.folder, self.mirror = Path(folder), Path(mirror) if mirror else None

    def write(self, state: dict[str, Any]) -> None:
        """Write a checkpoint. Raises StorageError without free space; earlier checkpoints are kept."""
        tensors: dict = {}
        tree = flatten(state, tensors)
        content = save(tensors, {FORMAT_KEY: str(CHECKPOINT_FORMAT), "tree": json.dumps(tree, allow_nan=False)})
        kept = "the previous checkpoint is kept"
        self._validate_free_space(len(content), "checkpoint", f"; {kept}")
        number = max(self._list_numbers(), default=0) + 1
        try:
            _write_state(self.folder, number, content)
        except OutputError as error:
            problem = f"a checkpoint of {len(content) / 1e6:,.1f} MB {error.problem}; {kept}"
            raise type(error)(problem, FREE_SPACE_FIX, path=self.folder) from error
        _remove_old_states(self.folder)
        if self.mirror:
            self._write_to_mirror(self.mirror, number, content)

    def validate_free_space(self, weights_bytes: int) -> None:
        """Raise StorageError if the disk lacks space for all files of a run with weights of this size."""
        self._validate_free_space(count_run_bytes(weights_bytes), "run")

    def _validate_free_space(self, needed_bytes: int, purpose: str, addition: str = "") -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        require_free_space(self.folder, needed_bytes, f"the {purpose}", FREE_SPACE_FIX, addition)

    def read(self) -> dict[str, Any] | None:
        """Return the newest intact checkpoint, or None if there is no checkpoint. Damaged ones are logged.

        Raises ModelError if all checkpoints are damaged.
        """
        numbers = sorted(self._list_numbers(), reverse=True)
        for number in numbers:
            try:
                return _read_state(self.folder / _make_name(number))
            except ModelError as error:
                log.warning("%s", error)
        if numbers:
            fix = "Restore a backup of it, or choose another `folder` for a new run"
            raise ModelError("no intact checkpoint in this folder", fix, path=self.folder, code="E303")
        return None

    def copy_from_mirror(self) -> None:
        """Copy the checkpoints and CSV files of the mirror to an empty folder. `read` verifies them."""
        if self.has_states() or not self.mirror:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*self.mirror.glob("state-*"), *self.mirror.glob("*.csv")]:
            atomic_write(self.folder / path.name, path.read_bytes())

    def copy_to_mirror(self, name: str) -> None:
        """Copy a file of the folder to the mirror."""
        if self.mirror:
            atomic_write(self.mirror / name, (self.folder / name).read_bytes())

    def has_states(self) -> bool:
        """Return whether the folder has a checkpoint, intact or not."""
        return bool(self._list_numbers())

    def remove(self) -> None:
        """Remove all checkpoints, those of the mirror included."""
        for folder in filter(None, (self.folder, self.mirror)):
            shutil.rmtree(folder, ignore_errors=True)

    def _list_numbers(self) -> list[int]:
        matches = (STATE_FILE_PATTERN.fullmatch(path.name) for path in self.folder.glob("state-*"))
        return [int(match[1]) for match in matches if match]

    def _write_to_mirror(self, mirror: Path, number: int, content: bytes) -> None:
        """Write the checkpoint to the mirror and verify it; a failure is logged and does not stop the training."""
        path = mirror / _make_name(number)
        try:
            _write_state(mirror, number, content)
            if compute_sha256(path) != hashlib.sha256(content).hexdigest():
                raise OutputError("the written file has another checksum", "Check this disk for errors", path=path)
            _remove_old_states(mirror)
        except OSError as error:
            log.warning("the checkpoint is not in the mirror (%s); the one in %s is intact", error, self.folder)


def _make_name(number: int) -> str:
    return f"state-{number:06d}.safetensors"


def _make_checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_state(folder: Path, number: int, content: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _make_name(number)
    atomic_write(_make_checksum_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    atomic_write(path, content)


def _remove_old_states(folder: Path) -> None:
    """Remove all but the newest generations, and temporary files and checksums that a crash left."""
    kept_names = {path.name for path in sorted(folder.glob("state-*.safetensors"))[-N_GENERATIONS:]}
    for path in [*folder.glob("state-*"), *folder.glob(".state-*")]:
        if path.name.removesuffix(".sha256") not in kept_names:
            path.unlink(missing_ok=True)


def _read_state(path: Path) -> dict[str, Any]:
    """Verify the checksum of a checkpoint before it is parsed."""
    checksum_path = _make_checksum_path(path)
    checksum = checksum_path.read_text(encoding="utf-8", errors="replace")[:64] if checksum_path.is_file() else ""
    fix = "Resume from the previous checkpoint"
    if checksum != compute_sha256(path):
        raise ModelError("the checkpoint is damaged (sha256 differs)", fix, path=path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            if header.get(FORMAT_KEY) != str(CHECKPOINT_FORMAT):
                problem = f"the checkpoint has format {header.get(FORMAT_KEY)!r}, expected {CHECKPOINT_FORMAT}"
                fix = "Resume with the fastcxr version that started the run, or choose another `folder` for a new run"
                raise ModelError(problem, fix, path=path)
            return unflatten(json.loads(header["tree"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the file is no fastcxr checkpoint ({error})", fix, path=path) from error


def flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the value as JSON and add its tensors to `tensors`, each under a number.

    Types: dict, list (fastcore's L becomes a list), tuple, str, bool, None, int, float, NumPy arrays and numbers,
    tensors. Raises TypeError for others.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return _store_tensor(value, tensors)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, JSON_TYPES):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[flatten(key, tensors), flatten(element, tensors)] for key, element in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [flatten(element, tensors) for element in value]}
    if isinstance(value, list) or type(value).__name__ == "L":
        return [flatten(element, tensors) for element in value]
    raise TypeError(f"a checkpoint cannot store a {type(value).__name__}")


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Return the value that `flatten` converted. Tensors have their original strides, on the CPU."""
    if isinstance(tree, list):
        return [unflatten(element, tensors) for element in tree]
    if not isinstance(tree, dict):
        return tree
    [(tag, content)] = [item for item in tree.items() if item[0] != "stride"]
    if tag == "tensor":
        tensor, stride = tensors[content], tree["stride"]
        if list(tensor.stride()) == stride:
            return tensor
        return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    if tag == "array":
        return tensors[content].numpy()
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(unflatten(element, tensors) for element in content)
    return {unflatten(key, tensors): unflatten(element, tensors) for key, element in content}


def _store_tensor(value: torch.Tensor | np.ndarray, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    name = f"{len(tensors):06d}"
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    tensors[name] = value.detach().cpu().contiguous()
    # the stride is stored because sums in another memory order may be rounded differently
    return {"tensor": name, "stride": list(value.stride())}
